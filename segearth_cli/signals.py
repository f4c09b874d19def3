"""Ctrl-C and SIGTERM, handled in some other way for a while."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def handled_by(handler: Callable[[int, object], None], *numbers: int) -> Iterator[None]:
    """These signals call ``handler`` in the block. In other threads than the main one: as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own or signal.SIG_DFL)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM take effect at the end of the block."""
    came: list[int] = []
    try:
        with handled_by(lambda number, frame: came.append(number), *STOPPING):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])
