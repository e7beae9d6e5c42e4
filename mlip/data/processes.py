"""Processes that work for this one: started afresh, gone when it is, heard in order.

They are spawned: a fork copies locks that threads of libraries hold. So a script that makes use of
several needs `if __name__ == "__main__":`, but for what training does, whose workers are forked.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, TypeVar

from mlip.errors import DataError

T = TypeVar("T")
StartMethod = Literal["fork", "spawn", "forkserver"]

_done: Any = None  # items that all workers have done, in each worker


class Workers:
    """The processes of one task."""

    def __init__(self, pool: ProcessPoolExecutor, done: Any) -> None:
        self._pool, self._counter = pool, done

    @property
    def done(self) -> int:
        """How many items workers have said to have done, by `count_done`."""
        return self._counter.value

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have a worker do something."""
        return self._pool.submit(work, *arguments)

    def in_turn(
        self, work: Callable[..., T], arguments: Iterable[tuple[Any, ...]], ahead: int
    ) -> Iterator[T]:
        """Yield what `work` makes of each of the arguments, in their order.

        Args:
            work: a function of a module.
            arguments: are taken only as they are needed.
            ahead: how many are worked at while the first of them is waited for.
        """
        left = iter(arguments)
        waiting: deque[Future[T]] = deque()
        while True:
            for more in islice(left, ahead - len(waiting)):
                waiting.append(self.submit(work, *more))
            if not waiting:
                return
            yield waiting.popleft().result()


@contextmanager
def workers(number: int, killed: str, start_method: StartMethod = "spawn") -> Iterator[Workers]:
    """Start processes for the duration of the block; what waits to be done is dropped at its end.

    Args:
        number: of processes.
        killed: what to say when one of them was killed.
        start_method: of the processes.

    Raises:
        DataError: a worker was killed.
    """
    context = multiprocessing.get_context(start_method)
    done = context.Value("q", 0)
    pool = ProcessPoolExecutor(number, context, _start, (done,))
    try:
        yield Workers(pool, done)
    except BrokenProcessPool:
        raise DataError(killed) from None
    except KeyboardInterrupt:  # what they are at, and what waits in their queue, is of no use
        for process in list(pool._processes.values()):  # `terminate_workers` from Python 3.14 on
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def first_failure(running: Sequence[Future[Any]]) -> None:
    """Wait for all and raise what the first of those that failed did, not the quickest."""
    for future in running:
        future.result()


def count_done(n: int) -> None:
    """Say, in a worker, that `n` items more are done."""
    with _done.get_lock():
        _done.value += n


def _start(done: Any) -> None:
    global _done
    _done = done
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a command in the background does
        # Or a worker hands an interrupt over as a result and takes the next item.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave no worker behind when its parent is killed."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
