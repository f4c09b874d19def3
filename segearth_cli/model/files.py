"""Files of weights and descriptions: read, checked, digested."""

import contextlib
import functools
import hashlib
import json
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segearth_cli.errors import ModelError, SegEarthError
from segearth_cli.names import listed, shortened

if TYPE_CHECKING:
    from torch import Tensor

# What torch and open_clip raise over weights or a description that make no sense.
UNLOADABLE = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    OSError,
    EOFError,
    LookupError,
    pickle.PickleError,
)
logger = logging.getLogger(__name__)

SAVED = (b"PK", b"\x80")  # what files of torch.save begin with: archives, and pickles of old
_AVERAGES = re.compile("ema|average", re.IGNORECASE)  # of weights, that trainers keep as well
NESTS = ("state_dict", "model")  # what trainers call the weights among all that they save


def read_checkpoint(path: Path) -> dict[str, "Tensor"]:
    """The weights of a ``.safetensors`` file or of a torch checkpoint, which may not run code.

    Raises:
        ModelError: damaged, or holds other things than weights.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            _check_saved(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than weights, which could run code, and is refused; save its "
            "state_dict alone, best as safetensors"
        ) from error
    except (SafetensorError, *UNLOADABLE) as error:
        raise_lack_of_memory(error)
        raise ModelError(
            f"{path} is not a checkpoint that torch or safetensors can read ({first_line(error)}); "
            "get another copy"
        ) from error
    weights = {
        name.removeprefix("module."): value
        for name, value in _innermost(content, path).items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not weights:
        found = f", but {listed([*map(str, content)])}" if isinstance(content, dict) else ""
        raise ModelError(f"{path} holds no weights by name{found}; give a state_dict")
    check_numbers(weights, path)
    return weights


def raise_lack_of_memory(error: Exception) -> None:
    """Let go of what torch says for want of memory among what it says of a file.

    Raises:
        MemoryError: that was it.
    """
    from segearth_cli.device import is_out_of_memory

    if is_out_of_memory(error):
        raise MemoryError from error


def _innermost(content: Any, path: Path) -> dict[Any, Any]:
    """What a checkpoint holds by name, or what trainers put into that as the weights."""
    if not isinstance(content, dict):
        return {}
    nest = next((name for name in NESTS if isinstance(content.get(name), dict)), None)
    if nest is None:
        return content
    others = [str(name) for name in content if _AVERAGES.search(str(name))]
    if others:
        logger.warning("of %s %s is read, and %s is not", path, nest, listed(others))
    return _innermost(content[nest], path)


def _check_saved(path: Path) -> None:
    """Refuse a file that torch never wrote, and programs: what its reader says helps nobody."""
    with path.open("rb") as file:
        start = file.read(2)
        is_archive = zipfile.is_zipfile(file)
    if not start.startswith(SAVED):
        raise ModelError(
            f"{path} is no checkpoint: torch did not write it, and it does not end with "
            ".safetensors; give the file that holds the weights"
        )
    if is_archive:
        names: list[str] = []
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):  # as OpenAI publishes CLIP
            save = f"torch.save(torch.jit.load({str(path)!r}, 'cpu').state_dict(), 'weights.pt')"
            raise ModelError(
                f"{path} is a TorchScript program, which could do anything; if you trust it, save "
                f'its weights alone, python -c "import torch; {save}", and give weights.pt'
            )


def check_numbers(state: Mapping[str, "Tensor"], path: Path) -> None:
    """Refuse weights that are not all finite, of which every map would come out the same.

    Raises:
        ModelError: some are not.
    """
    import torch

    for name, value in state.items():
        # far faster than to ask every number: one that is not finite makes the sum so
        if value.is_floating_point() and not value.sum(dtype=torch.float32).isfinite():
            raise ModelError(
                f"{path} holds weights that are no numbers ({name}): damaged, or its training "
                "went wrong; get another copy"
            )


def first_line(error: Exception) -> str:
    """The error's message, short enough for a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else type(error).__name__
    return shortened(text, 200)


def check_length(path: Path) -> None:
    """Refuse a safetensors file whose length is not what its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length) if length < size else b"")
            ends = [t["data_offsets"][1] for k, t in header.items() if k != "__metadata__"]
            whole = size == 8 + length + max(ends)
        except (ValueError, TypeError, AttributeError, LookupError):
            whole = False
    if not whole:
        raise ModelError(
            f"{path} is not a whole safetensors file ({size} bytes); copy it again, or pull the "
            "model again with --force"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(
            f"{path} cannot be read as JSON: {error}; correct or replace it"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object; correct or replace it")
    return content


def file_digest(path: Path) -> str:
    """The sha256 of a file's content.

    Raises:
        SegEarthError: it cannot be read.
    """
    try:
        stat = path.stat()
        return _sha256(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise SegEarthError(f"cannot read {path}: {error.strerror}") from error


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Of the file's content; size and time of change make the cache notice a new one."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
