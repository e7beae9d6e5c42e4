"""Many calculations at a time: callers that wait for one another are answered by one batch.

A call of a fast potential on a small structure is mostly overhead of the operations, which a batch
pays once. Optimisers of ASE know one structure each, so each runs in a thread of its own with a
calculator that hands its structure over and waits; when all are waiting, one prediction of all is
made in the thread that started them. What each gets is what it would have got alone, to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import torch

from mlip.calculator import MLIPCalculator
from mlip.errors import DataError
from mlip.graph import Arrays

T = TypeVar("T")
Results = dict[str, Any]
Ask = Callable[[Arrays], Results]
Request = tuple[Arrays, Future[Results]]


class _Member(MLIPCalculator):
    """The same potential, answered by somebody else."""

    def __init__(self, model: MLIPCalculator, ask: Ask) -> None:
        vars(self).update(vars(model))  # nothing is loaded again
        self.reset()
        self._ask = ask

    def evaluate(self, structures: Sequence[Arrays]) -> list[Results]:
        return [self._ask(structure) for structure in structures]


def together(
    calculator: MLIPCalculator,
    tasks: Sequence[Callable[[MLIPCalculator], T]],
    at_once: int,
) -> list[T | DataError]:
    """Run tasks, each with a calculator of its own, and their predictions in batches.

    Args:
        calculator: the potential.
        tasks: called once each, `at_once` at a time, in threads.
        at_once: structures in a batch at most.

    Returns:
        What each task returned, or the DataError it ended in; the others go on.

    Raises:
        Exception: any other error of a task.
    """
    requests: SimpleQueue[Request | None] = SimpleQueue()
    results: dict[int, Any] = {}
    failures: list[BaseException] = []
    order = itertools.count()  # shared: `next` is one step, whatever the thread

    def ask(structure: Arrays) -> Results:
        answer: Future[Results] = Future()
        requests.put((structure, answer))
        return answer.result()

    def work() -> None:
        while not failures and (index := next(order)) < len(tasks):
            try:
                results[index] = tasks[index](_Member(calculator, ask))
            except DataError as error:
                results[index] = error
            except BaseException as error:
                failures.append(error)
        requests.put(None)

    running = min(at_once, len(tasks))
    for _ in range(running):
        Thread(target=work, daemon=True).start()
    waiting: list[Request] = []
    while running:
        if (request := requests.get()) is None:
            running -= 1
        else:
            waiting.append(request)
        if waiting and len(waiting) == running:
            _answer(calculator, waiting)
            waiting = []
    if failures:
        raise failures[0]
    return [results[index] for index in range(len(tasks))]


def _answer(calculator: MLIPCalculator, waiting: Sequence[Request]) -> None:
    try:
        found = calculator.evaluate([structure for structure, _ in waiting])
    except (DataError, torch.OutOfMemoryError) as error:  # the fault of one, or too much at a time
        if len(waiting) == 1:
            waiting[0][1].set_exception(error)
            return
    except Exception as error:  # theirs to raise, each in its thread
        for _, answer in waiting:
            answer.set_exception(error)
        return
    else:
        for (_, answer), result in zip(waiting, found, strict=True):
            answer.set_result(result)
        return
    half = len(waiting) // 2  # out here, where the error no longer holds what memory was full of
    _answer(calculator, waiting[:half])
    _answer(calculator, waiting[half:])
