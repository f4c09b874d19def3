"""The next scene made ready in another thread while one is worked on."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from segearth_cli.geo.remote import give_up
from segearth_cli.geo.source import CHATTER

Item = TypeVar("Item")
Made = TypeVar("Made")


class HeldBack(logging.Filter):
    """Keeps what a thread logs until its scene's turn comes."""

    def __init__(self) -> None:
        super().__init__()
        self.thread: int | None = None
        self._records: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record may go on now."""
        if self.thread is None or record.thread != self.thread:
            return True
        if record not in self._records:  # several handlers ask
            self._records.append(record)
        return False

    def release(self) -> None:
        """Let out what was kept."""
        records, self._records = self._records, []
        for record in records:
            record.thread = threading.get_ident()
            logging.getLogger(record.name).handle(record)


@contextlib.contextmanager
def holding_back() -> Iterator[HeldBack]:
    """All handlers of the root logger wait for one thread's records."""
    held = HeldBack()
    handlers = list(logging.root.handlers)
    for handler in handlers:
        handler.addFilter(held)
    try:
        yield held
    finally:
        for handler in handlers:
            handler.removeFilter(held)


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Without warnings that each thread silences for itself: the list of filters is shared.

    Two threads that put it back in the wrong order would let them through.
    """
    with warnings.catch_warnings():
        for kind in CHATTER:
            warnings.simplefilter("ignore", kind)
        warnings.filterwarnings("ignore", "'crs' was not provided")
        yield


def prefetched(
    items: Sequence[Item], make: Callable[[Item], Made], discard: Callable[[Made], None]
) -> Generator[tuple[Item, Callable[[], Made]], None, None]:
    """Each item with a function that returns what ``make`` makes of it, to be called once.

    From then on the next one is being made. What nobody took is given to ``discard``; servers are
    not asked again for it.
    """
    coming: Future[Made] | None = None
    following = iter(items[1:])
    with holding_back() as held, _quiet_threads(), ThreadPoolExecutor(1) as pool:

        def begin() -> Future[Made] | None:
            item = next(following, None)
            return None if item is None else pool.submit(made_beside, item)

        def made_beside(item: Item) -> Made:
            held.thread = threading.get_ident()
            return make(item)

        try:
            for item in items:

                def take(item: Item = item) -> Made:
                    nonlocal coming
                    ready, goes_on = coming, False
                    try:
                        made = make(item) if ready is None else ready.result()
                        goes_on = True
                        return made
                    except Exception:
                        goes_on = True
                        raise
                    finally:
                        held.release()
                        if goes_on:  # after Ctrl-C nothing more is begun
                            coming = begin()

                yield item, take
        finally:
            if coming is not None and not coming.cancel():
                give_up.set()
                try:
                    if coming.exception() is None:
                        discard(coming.result())
                finally:
                    give_up.clear()
