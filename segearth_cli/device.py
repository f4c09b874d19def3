"""Device, number format and autocast: the only file that names an accelerator."""

import contextlib
from contextlib import AbstractContextManager

import torch

from segearth_cli.errors import UsageError

CPU_PASS = 4  # windows; more are no faster
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the first accelerator at hand, else the CPU.

    Raises:
        UsageError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"--device {name!r} is no device; use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    at_hand = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not at_hand.get(device.type, False):
        raise UsageError(f"--device {name}: torch finds no such device here; use auto or cpu")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """``fp32``, ``bf16`` or ``fp16``; ``auto`` is the fastest the device has in hardware.

    Raises:
        UsageError: the device cannot run that precision.
    """
    if name == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
    if name != "auto":
        return name
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Context in which the network runs at that precision."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def default_batch_size(device: torch.device) -> int:
    """Windows at once: enough to fill the device, few enough for a small one."""
    return CPU_PASS if device.type == "cpu" else 32


def pass_size(device: torch.device, batch_size: int, windows: int) -> int:
    """Windows in every forward pass over a scene of ``windows``, the last one filled up.

    bf16 matrix products of another size round differently: on a CPU the size is the same
    whatever the batch size, so that the map is too.
    """
    return min(CPU_PASS if device.type == "cpu" else batch_size, windows)


def use_threads(threads: int | None) -> None:
    """Limit the CPU threads of the network."""
    if threads is not None:
        torch.set_num_threads(threads)
