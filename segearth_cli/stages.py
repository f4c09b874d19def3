"""Where the time goes: seconds of each stage of a run, counted when somebody asks for them."""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager


class Stopwatch:
    """Seconds per stage, of those entered inside ``running``.

    A stage inside a stage takes its time off the outer one. Stages in another thread than the one
    that made the watch are counted in ``beside``: they overlap with what that one does.

    Args:
        synchronize: waits for the device to finish what it was given.
    """

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.beside: dict[str, float] = defaultdict(float)
        self._synchronize = synchronize
        self._thread = threading.get_ident()
        self._open: list[float] = []  # seconds of inner stages, per open stage

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time until the end of the block."""
        if threading.get_ident() != self._thread:
            started = time.perf_counter()
            yield
            self.beside[name] += time.perf_counter() - started
            return
        self._synchronize()
        started = time.perf_counter()
        self._open.append(0.0)
        yield
        self._synchronize()
        elapsed = time.perf_counter() - started
        self.seconds[name] += elapsed - self._open.pop()
        if self._open:
            self._open[-1] += elapsed

    @contextlib.contextmanager
    def running(self) -> Iterator["Stopwatch"]:
        """Let every stage be counted here."""
        global _watch
        _watch = self
        try:
            yield self
        finally:
            _watch = None


_watch: Stopwatch | None = None


def stage(name: str) -> AbstractContextManager[None]:
    """A part of a run whose time is counted while a stopwatch runs."""
    return contextlib.nullcontext() if _watch is None else _watch.stage(name)
