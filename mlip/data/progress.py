"""A line on the terminal that says how far a long reading is; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
EVERY = 200  # items between two updates


def counted(items: Iterable[T], name: str, unit: str = "frames") -> Generator[T, None, None]:
    """Yield `items`, and show how many went by and how long it took, on a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task(name, total=None)
        for number, item in enumerate(items, start=1):
            if number % EVERY == 0:
                speed = bar.tasks[0].elapsed or 0.0
                rate = f", {number / speed:,.0f} a second" if speed else ""
                bar.update(task, description=f"{name}: {number:,} {unit}{rate}")
            yield item
