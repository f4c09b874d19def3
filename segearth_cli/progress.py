"""Progress bars on stderr; there are none where it is no terminal."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(wanted: bool, over: Iterable[Any] | None = None, **more: Any) -> Any:
    """A bar that goes when it is done; none where it is not wanted or nobody sees it.

    ``more`` is tqdm's: ``total``, ``unit``, ``desc``, ``initial``.
    """
    return tqdm(over, disable=None if wanted else True, leave=False, **more)
