"""Scenes on servers: which they are, and patience with those that fall silent.

GDAL asks again by itself for errors that a server owns up to (429, 500, 502, 503, 504) and for
connections that break, not for answers that stop in the middle: those it even keeps.
"""

import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import rasterio
from rasterio.errors import CRSError

from segearth_cli.errors import SceneError
from segearth_cli.geo.failures import GDAL_ERRORS
from segearth_cli.names import files_named

_WEB = ("http://", "https://", "ftp://")
_STORES = {"s3": "/vsis3", "gs": "/vsigs", "az": "/vsiaz", "oss": "/vsioss"}
_REMOTE_VSI = ("/vsicurl", "/vsis3", "/vsigs", "/vsiaz", "/vsiadls", "/vsioss", "/vsiswift")
_RETRIES, _DELAY = 3, 1.0  # GDAL_HTTP_MAX_RETRY, GDAL_HTTP_RETRY_DELAY (seconds)
_SLOWER = 4  # times the pause before
_FINAL = re.compile(r"HTTP response code: (400|401|403|404|410)|Range downloading not supported")

T = TypeVar("T")

give_up = threading.Event()  # nobody wants what is being tried

logger = logging.getLogger(__name__)


def is_remote(source: str) -> bool:
    """Whether GDAL reads the source over a network."""
    stores = (f"{scheme}://" for scheme in _STORES)
    places = (*_WEB, *stores, *_REMOTE_VSI)
    files = [file for file in files_named(source) if not os.path.exists(file)]
    return any(part in file for file in files for part in places)  # in archives too


def retry_settings() -> dict[str, str]:
    """GDAL's own settings for servers: it asks again, and waits for none for ever."""
    return {
        "GDAL_HTTP_MAX_RETRY": str(_RETRIES),
        "GDAL_HTTP_RETRY_DELAY": f"{_DELAY:g}",
        "GDAL_HTTP_CONNECTTIMEOUT": "30",
        "GDAL_HTTP_LOW_SPEED_TIME": "30",  # seconds below the limit: a server that fell silent
        "GDAL_HTTP_LOW_SPEED_LIMIT": "1",  # bytes a second
    }


def patiently(source: str, attempt: Callable[[], T]) -> T:
    """What ``attempt`` returns, made again after a while where a server did not answer.

    As often as GDAL_HTTP_MAX_RETRY says, and without what GDAL has kept of the failed answer; no
    more from when somebody sets ``give_up``.

    Raises:
        SceneError: the last attempt's.
    """
    try:
        return attempt()
    except SceneError as error:
        failure = error
    for pause in _pauses() if is_remote(source) else ():
        if not _may_pass(failure):
            break
        logger.warning("%s: trying again in %g s", failure, pause)
        if give_up.wait(pause):
            break
        try:
            names = ":".join(map(_gdal_name, files_named(source)))
            with rasterio.Env(CPL_VSIL_CURL_NON_CACHED=names):
                return attempt()
        except SceneError as error:
            failure = error
    raise failure


def _may_pass(failure: SceneError) -> bool:
    """Whether it was GDAL that failed to read, and not for good: servers recover."""
    if _FINAL.search(str(failure)):
        return False
    cause = failure.__cause__
    while cause is not None:
        if isinstance(cause, GDAL_ERRORS) and not isinstance(cause, CRSError):
            return True
        cause = cause.__cause__
    return False


def _pauses() -> Iterator[float]:
    retries = int(_setting("GDAL_HTTP_MAX_RETRY", _RETRIES))
    delay = _setting("GDAL_HTTP_RETRY_DELAY", _DELAY)
    return (delay * _SLOWER**again for again in range(retries))


def _setting(name: str, usual: float) -> float:
    try:
        value = float(os.environ.get(name, usual))
    except ValueError:  # GDAL makes nothing of it either
        return usual
    return value if math.isfinite(value) and value >= 0 else usual


def _gdal_name(source: str) -> str:
    scheme, separator, rest = source.partition("://")
    if not separator or source.startswith("/vsi"):
        return source
    return f"{_STORES[scheme]}/{rest}" if scheme in _STORES else f"/vsicurl/{source}"
