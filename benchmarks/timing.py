"""Clocks, spreads and stages for the benchmarks; without PyTorch, so that a peer's environment can use it as well."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np

CLOCKS = ("wall", "cpu")
OTHER = "other"
MIN_REPEATS = 3

Clock = Callable[[], np.ndarray]
Work = Callable[[], Any]


def make_clock(synchronize: Work | None = None) -> Clock:
    """A clock in seconds (2,): wall time, and CPU time of all threads of this process.

    `synchronize` waits until the device has done its work, before each reading.
    """

    def read() -> np.ndarray:
        if synchronize is not None:
            synchronize()
        return np.array([time.perf_counter(), time.process_time()])

    return read


def timed(work: Work, clock: Clock) -> np.ndarray:
    """What one call of `work` takes, (2,), as `clock` reads it."""
    start = clock()
    work()
    return clock() - start


def alternate(works: dict[str, Work], clock: Clock, repeats: int, seconds: float) -> dict[str, np.ndarray]:
    """Time several pieces of work in turn, A B A B, so that what slows the machine slows each of them.

    Ends after `repeats` rounds, or after `seconds` once there are MIN_REPEATS rounds.
    Returns: (rounds, 2) seconds by name.
    """
    taken: dict[str, list[np.ndarray]] = {name: [] for name in works}
    end = time.perf_counter() + seconds
    for round_ in range(repeats):
        if round_ >= MIN_REPEATS and time.perf_counter() > end:
            break
        for name, work in works.items():
            taken[name].append(timed(work, clock))
    return {name: np.array(rows) for name, rows in taken.items()}


def spread(samples: np.ndarray) -> dict[str, Any]:
    """Median, p10, p90 and p99 of samples (N, 2), by clock, and N."""
    figures = {
        clock: dict(zip(("median", "p10", "p90", "p99"), np.percentile(column, (50, 10, 90, 99)).tolist()))
        for clock, column in zip(CLOCKS, np.asarray(samples).T)
    }
    return figures | {"n": len(samples)}


class Stages:
    """Charges what a reading counts (seconds, FLOP) to named stages of work that knows nothing of it.

    Every moment of `whole()` belongs to the innermost stage that is open then, and to OTHER where none is: stages
    exclude the stages inside them, and their sum is the whole.

    Args:
        read: returns an array that grows, such as a clock.
    """

    def __init__(self, read: Clock):
        self.read = read
        self.totals: dict[str, np.ndarray] = {}
        self._open: list[str] = []

    @contextmanager
    def _inside(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        now = self.read()
        if self._open:
            name = self._open[-1]
            self.totals[name] = self.totals.get(name, 0.0) + now - self._last
        self._last = now

    @contextmanager
    def whole(self, points: Iterable[tuple[Any, str, str]]) -> Iterator[None]:
        """Charge what happens in the block; points: (owner, attribute, stage) of the functions that are stages.

        The attributes are replaced inside the block only. Raises AttributeError for one that is not there.
        """
        self.totals = {}
        with ExitStack() as stack:
            for owner, attribute, stage in points:
                stack.enter_context(mock.patch.object(owner, attribute, self._stage(getattr(owner, attribute), stage)))
            with self._inside(OTHER):
                yield

    def _stage(self, function: Callable, name: str) -> Callable:
        def wrapped(*args, **kwargs):
            with self._inside(name):
                return function(*args, **kwargs)

        return wrapped


def serve(works: dict[str, Work], facts: dict[str, Any]) -> None:
    """Do the work that each line of standard input names, and answer with its seconds by clock, as a line of JSON.

    Every work is done once before. The first answer is `facts` with the names of `works`. What libraries print goes to
    standard error.
    """
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for work in works.values():
            work()
        print(json.dumps(facts | {"works": list(works)}), file=answers, flush=True)
        for line in sys.stdin:
            seconds = timed(works[line.strip()], make_clock())
            print(json.dumps(dict(zip(CLOCKS, seconds.tolist()))), file=answers, flush=True)
