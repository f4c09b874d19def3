"""Outputs appear whole or not at all: made in a folder beside their places, renamed at the end."""

import contextlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from segearth_cli.errors import OutputError
from segearth_cli.geo.companions import companions
from segearth_cli.signals import signals_wait

PREFIX = ".segearth-"
_LOCK = "lock"
_NO_LOCK = "nolock"
_OLD_SECONDS = 24 * 3600  # without a change
_DYING_SECONDS = 10  # that a process that was killed may take to end

logger = logging.getLogger(__name__)


def shown(path: Path) -> Path:
    """A file's name for messages: without the staging folder it may still be in."""
    return Path(*(part for part in path.parts if not part.startswith(PREFIX)))


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
            made = (parent or Path(tempfile.gettempdir())) / _new_name()
            try:
                self._make(made)
            except FileNotFoundError:  # another run has just removed a parent that stayed empty
                self._make(made)
            self._stack.callback(_lock(made).close)
        except OSError as error:
            in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
            why = "it or a folder above it is a file" if in_the_way else error.strerror
            raise OutputError(
                f"cannot write into {parent or 'the temporary folder'}: {why}; "
                "choose another folder"
            ) from error
        return made

    def _make(self, folder: Path) -> None:
        """A private folder, and the parents that are missing."""
        for path in reversed([path for path in folder.parents if not os.path.exists(path)]):
            self._stack.callback(_remove_if_empty, path)
            path.mkdir(exist_ok=True)
        # first: a Ctrl-C may come as soon as the folder is there
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(mode=0o700)


def _new_name() -> str:
    """A temporary folder's: it tells the machine and the process, see `_owner`."""
    return f"{PREFIX}{quote(socket.gethostname(), safe='')}-{os.getpid()}-{secrets.token_hex(8)}"


def _owner(folder: Path) -> tuple[str, int]:
    """The machine and the process that a temporary folder is of.

    Raises:
        ValueError: it does not say.
    """
    host, process, _ = folder.name.removeprefix(PREFIX).rsplit("-", 2)
    return unquote(host), int(process)


def _lock(folder: Path) -> IO[bytes]:
    """A file in the folder that is locked as long as this process lives, where systems can.

    It gets its name when it is locked already, or cannot be.
    """
    if fcntl is None:
        return (folder / _NO_LOCK).open("wb")
    unnamed, name = folder / f"{_LOCK}.new", _NO_LOCK
    stream = unnamed.open("wb")
    with contextlib.suppress(OSError):  # some network file systems have no locks
        fcntl.flock(stream, fcntl.LOCK_EX)
        name = _LOCK
    unnamed.rename(folder / name)
    return stream


def remove_abandoned(folder: Path, lost: Collection[tuple[str, int]] = ()) -> None:
    """Remove temporary folders whose process, of this machine, was killed before it could.

    Of other machines', which share the disk, nobody knows, as not all of them share locks: only
    those of ``lost`` processes, by their machine's name and number, are removed.
    """
    for left in sorted(folder.glob(f"{PREFIX}*")) if fcntl is not None else ():
        try:
            owner = _owner(left)
            is_lost = owner in lost
            if not _is_abandoned(left, owner, is_lost):
                _warn_if_old(left, owner[0])
                continue
        except (OSError, ValueError, OverflowError):  # somebody works there, or nobody knows
            continue
        shutil.rmtree(left, ignore_errors=True)
        level = logging.INFO if is_lost else logging.WARNING
        logger.log(level, "removed %s, which a killed run left", left)


def _warn_if_old(folder: Path, host: str) -> None:
    """Name a folder of another machine, or of a container that is no more, in which nothing moves.

    Raises:
        OSError: it is gone.
    """
    if not os.access(folder, os.R_OK | os.X_OK):  # another user's
        return
    files = [folder, *folder.rglob("*")]
    if max(file.stat().st_mtime for file in files) < time.time() - _OLD_SECONDS:
        logger.warning(
            "%s is of a run on %s and a day old; remove it if none is at work there", folder, host
        )


def _is_abandoned(folder: Path, owner: tuple[str, int], is_lost: bool) -> bool:
    """Whether nobody works in a temporary folder any more, as far as that can be told.

    Raises:
        OSError: somebody does.
    """
    host, process = owner
    if host == socket.gethostname():
        if (folder / _LOCK).exists():
            with (folder / _LOCK).open("rb") as stream:
                _take_lock(stream, _DYING_SECONDS if is_lost else 0)
            return True
        if not (folder / _NO_LOCK).exists() and not _lives(process):
            return True  # it was killed before it could lock anything
    return is_lost


def _lives(process: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _take_lock(stream: IO[bytes], patience: float) -> None:
    """Lock a file that another process may have locked; within so many seconds, if it ends.

    Raises:
        OSError: it has it still, or there are no locks here.
    """
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
        time.sleep(0.05)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def publish(finished: dict[Path, Path]) -> None:
    """Rename finished files into place; what belonged to a file that was there goes.

    Whenever the process dies, a file that names an output is whole and its parts belong to it: it
    is the last to come, and where it has parts the first to go. Signals wait until all are there.

    Raises:
        OutputError: a file cannot be put there.
    """
    places = {destination: file for file, destination in finished.items()}
    parts = {part for destination in places for part in companions(destination)}
    with signals_wait():
        for destination in places:
            if destination not in parts:
                _put(destination, places)


def _put(destination: Path, places: dict[Path, Path]) -> None:
    own = companions(destination)
    try:
        for path in (destination, *own):
            if path in places:
                _sync(places[path])
        if any(part in places or part.exists() for part in own):
            destination.unlink(missing_ok=True)
        for part in own:
            if part in places:
                places[part].replace(part)
            else:
                part.unlink(missing_ok=True)
        places[destination].replace(destination)
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror}") from error


def _sync(file: Path) -> None:
    """Have the content on the disk before the name: a machine that loses power keeps both."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
