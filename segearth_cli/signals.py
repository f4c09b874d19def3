"""Ctrl-C, SIGTERM and a lost terminal, handled in some other way for a while."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int  # or one of signal's own
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
STOPPING = tuple(signal.Signals[name] for name in _NAMES if hasattr(signal, name))


@contextlib.contextmanager
def handled_by(handler: Handler, *numbers: int) -> Iterator[None]:
    """These signals call ``handler`` in the block; those that the process ignores stay ignored.

    In other threads than the main one nothing changes.
    """
    with contextlib.ExitStack() as stack:
        for number in numbers if threading.current_thread() is threading.main_thread() else ():
            own = signal.getsignal(number)
            if own is not signal.SIG_IGN:
                stack.callback(signal.signal, number, own or signal.SIG_DFL)
                signal.signal(number, handler)
        yield


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """The first of the signals that stop a run takes effect at the end of the block."""
    came: list[int] = []
    try:
        with handled_by(lambda number, frame: came.append(number), *STOPPING):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])
