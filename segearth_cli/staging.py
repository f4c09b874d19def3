"""Outputs appear whole or not at all: made in a folder beside their places, renamed at the end.

Also which files belong to an output by their names: parts of it, or made from it by others.
"""

import contextlib
import os
import tempfile
from pathlib import Path

from segearth_cli.errors import OutputError
from segearth_cli.options import RASTER_SUFFIXES

PREFIX = ".segearth-"
STAC_SUFFIX = ".stac.json"
_RECORD = "{name}.segearth.json"  # of formats that cannot carry how they were made

_COMPANIONS = {
    ".shp": (
        *(f"{{stem}}.{end}" for end in ("shx", "dbf", "prj", "cpg", "qpj", "qix", "sbn", "sbx")),
        _RECORD,
    ),
    ".geojsonl": (_RECORD,),
    ".gpkg": ("{name}-journal", "{name}-wal", "{name}-shm"),
    ".png": ("{name}.aux.xml",),
    **dict.fromkeys(RASTER_SUFFIXES, ("{name}.aux.xml", "{name}.ovr", "{name}.msk")),
}


def companions(path: Path) -> list[Path]:
    """The files, there or not, that a GIS takes for parts of an output.

    Left behind by an older one they would spoil it: a projection, an index, overviews.
    """
    names = _COMPANIONS.get(path.suffix.lower(), ())
    return [path.with_name(name.format(stem=path.stem, name=path.name)) for name in names]


def record_beside(path: Path) -> Path:
    """Where the record of an output lies that cannot carry it."""
    return path.with_name(_RECORD.format(name=path.name))


def shown(path: Path) -> Path:
    """A file's name for messages: without the staging folder it may still be in."""
    return Path(*(part for part in path.parts if not part.startswith(PREFIX)))


def files_of(path: Path) -> list[Path]:
    """The output and its companions, as far as they are there."""
    return [file for file in (path, *companions(path)) if os.path.exists(file)]


class Staging:
    """Temporary folders beside the outputs, so that finished files only need to be renamed."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def beside(self, destination: Path | None = None) -> Path:
        """A new folder on the destination's file system, or anywhere.

        Its parents are made; those that stay empty go again.

        Raises:
            OutputError: the folder cannot be made.
        """
        parent = None if destination is None else destination.parent
        try:
            if parent is not None:
                self._make(parent)
            folder = tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent)
        except OSError as error:
            in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
            why = "it or a folder above it is a file" if in_the_way else error.strerror
            raise OutputError(
                f"cannot write into {parent or 'the temporary folder'}: {why}; "
                "choose another folder"
            ) from error
        return Path(self._stack.enter_context(folder))

    def _make(self, folder: Path) -> None:
        missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            self._stack.callback(_remove_if_empty, path)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def publish(finished: dict[Path, Path]) -> None:
    """Rename finished files into place; what belonged to a file that was there goes.

    Raises:
        OutputError: a file cannot be put there.
    """
    for file, destination in finished.items():
        try:
            for stale in set(companions(destination)) - set(finished.values()):
                stale.unlink(missing_ok=True)
            file.replace(destination)
        except OSError as error:
            raise OutputError(f"cannot write {destination}: {error.strerror}") from error
