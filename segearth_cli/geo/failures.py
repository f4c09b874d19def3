"""How GDAL and disks fail: the errors to catch, and one line of what they mean."""

import errno
import shutil
from pathlib import Path

from rasterio._err import CPLE_BaseError  # public in no module, and what warping and CRSs raise
from rasterio.errors import CRSError, RasterioError

__all__ = ["DISK_FULL", "GDAL_ERRORS", "CPLE_BaseError", "damage", "disk_is_full", "reason"]

GDAL_ERRORS = (RasterioError, CRSError, CPLE_BaseError)
DISK_FULL = "the disk is full; free some space or write elsewhere"
_NO_DAMAGE = (  # a file that a VRT is made of; servers; what GDAL does not do
    "No such file",
    "HTTP response code",
    "connect to server",
    "resolve host",
    "Range downloading not supported",
    "CPL_ALLOW_VSISTDIN",
)
_NO_ROOM = "No space left on device"  # as libraries pass it on
_FULL = 1 << 20  # bytes: when writing failed with less left, that was the cause


def reason(error: BaseException) -> str:
    """Return the first line of the deepest message that GDAL gave."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else "GDAL failed"


def damage(error: BaseException) -> str:
    """Return why a raster cannot be read, with the likeliest cause where GDAL does not name it."""
    message = reason(error)
    says_why = any(words in message for words in _NO_DAMAGE)
    return message if says_why else f"{message}; the file may be damaged or cut short"


def disk_is_full(folder: Path, error: BaseException) -> bool:
    """Whether writing into a folder failed for want of room: GDAL itself does not always say so."""
    cause = error.__cause__ or error
    if getattr(cause, "errno", None) == errno.ENOSPC or _NO_ROOM in str(cause):
        return True
    return folder.is_dir() and shutil.disk_usage(folder).free < _FULL
