"""The errors a user can cause: each message says what is wrong and what to do next."""

import errno
import os
from signal import SIGINT

from segearth_cli.names import shortened

NO_MEMORY = "there is not enough memory for this process; allow it more, or give it less to do"


_LONGEST = 203  # letters of a name in a message
_REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give yourself access to it, or name another"),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR), "check the name"),
}


def why_not_usable(error: OSError) -> str | None:
    """What the system has against a file or folder by that name; nothing where it has not."""
    if error.errno not in _REMEDIES or not isinstance(error.filename, str | bytes):
        return None
    name = shortened(os.fsdecode(error.filename), _LONGEST)
    return f"cannot use {name}: {error.strerror}; {_REMEDIES[error.errno]}"


class SegEarthError(Exception):
    """Root of every expected error; the command line prints it as one line and exits 1."""

    exit_code = 1


class UsageError(SegEarthError):
    """The options contradict each other or name something that does not exist (exit code 2)."""

    exit_code = 2


class SceneError(SegEarthError):
    """A scene cannot be opened, read or placed on the ground."""


class ModelError(SegEarthError):
    """A model's files are missing, damaged or of another shape than its description."""


class OutputError(SegEarthError):
    """An output exists already or cannot be written."""


class TrainingError(SegEarthError):
    """A run cannot go on: a loss that is no number, a checkpoint of another run."""


class Stopped(KeyboardInterrupt):
    """A run was interrupted, and saved; the message says how to go on, if this process says it.

    Args:
        message: empty where another process says it.
        number: of the signal that stopped it.

    Attributes:
        result: what it came to so far.
    """

    result: object = None

    def __init__(self, message: str, number: int = SIGINT) -> None:
        super().__init__(message)
        self.number = number


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came: as Ctrl-C, but for the exit code (143, 129)."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
