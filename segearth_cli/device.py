"""Device, number format and autocast: what accelerators do differently."""

import contextlib
import functools
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray

from segearth_cli.errors import SegEarthError, UsageError
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.options import ModelOptions

CPU_PASS = 4  # windows
KERNELS_PASS = 128 * 224**2  # pixels, where our own kernels run
ACCELERATOR_PASS = 16 * 224**2
_NO_MEMORY = (  # how torch says it without an error of its own: on a CPU, of CUDA and its libraries
    "can't allocate memory",
    "Cannot allocate memory",  # the system, to what maps a file
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",
    "unable to find an engine",  # cuDNN, where none has room to work
    "[CUDA]: out of memory",  # triton
    "MPS backend out of memory",
)
_COUNTING = threading.Lock()
_inside = 0  # how many threads and blocks want float32 by oneDNN

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

T = TypeVar("T")
torch.backends.cudnn.allow_tf32 = False  # float32 is float32, in convolutions too
logger = logging.getLogger(__name__)


def pick_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the first accelerator at hand, else the CPU.

    A GPU that is named becomes torch's own: triton launches its kernels there.

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
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """``fp32``, ``bf16`` or ``fp16``; ``auto`` is the fastest the device has in hardware.

    Raises:
        UsageError: the device cannot run that precision.
    """
    if name == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
    if name == "bf16" and device.type == "cpu":
        _warn_where_bf16_is_slow()
    if name != "auto":
        return name
    if device.type == "cpu":
        return "bf16" if _cpu_has_bf16() else "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "fp32"


def precision_here(options: ModelOptions) -> str:
    """The number format that a network with these options has on this machine.

    Raises:
        UsageError: there is no such device here, or it cannot run that precision.
    """
    return pick_precision(options.precision_wanted, pick_device(options.device))


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 faster than float32, as far as this torch can tell.

    AMX does. Of AVX-512's bf16 products Intel's processors do half as many in a cycle as AMD's,
    which is as many as of float32's, and converting comes on top.
    """
    if _says("_is_amx_tile_supported"):
        return True
    return _says("_is_avx512_bf16_supported") and not _cpu_name().startswith("Intel")


@functools.cache  # once is enough
def _warn_where_bf16_is_slow() -> None:
    """Say so where torch has no products of bf16 that are made for the CPU."""
    has_products = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if has_products is not None and not has_products():
        logger.warning(
            "--precision bf16: this CPU has no instructions for bf16, which takes it some twenty "
            "times as long as fp32; leave --precision away, or give fp32"
        )


def _says(name: str) -> bool:
    """The answer of a question that torch has in some versions only."""
    return bool(getattr(torch.cpu, name, lambda: False)())


def _cpu_name() -> str:
    """The processor's, where this torch tells it."""
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)
    return str(capabilities().get("cpu_name", ""))


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Context in which the network runs at that precision."""
    lower: AbstractContextManager[object] = contextlib.nullcontext()
    if precision != "fp32":
        lower = torch.autocast(device.type, dtype=DTYPES[precision])
    with float32_products(device), lower:
        yield


@contextlib.contextmanager
def float32_products(device: torch.device) -> Iterator[None]:
    """Context in which matrices of float32 are multiplied by what is fastest, to the last digits.

    Of what AMD's AVX-512 can do MKL, which torch takes, does less than half, and oneDNN most. The
    way to oneDNN is torch's leave to round to bf16, which that makes use of on CPUs with AMX alone.
    The setting is torch's own, for the whole process: it is put back.
    """
    global _inside
    if device.type != "cpu" or not _onednn_is_as_exact():
        yield
        return
    with _COUNTING:
        # where it is the caller's it stays
        is_ours = _inside > 0 or _products().fp32_precision == "none"
        if is_ours:
            _inside += 1
            _products().fp32_precision = "bf16"
    try:
        yield
    finally:
        with _COUNTING:
            _inside -= is_ours
            if is_ours and not _inside:
                _products().fp32_precision = "none"


def _products() -> Any:
    """Torch's settings of oneDNN's matrix products; ``None`` before torch 2.9."""
    return getattr(torch.backends.mkldnn, "matmul", None)


@functools.cache
def _onednn_is_as_exact() -> bool:
    """Whether oneDNN multiplies float32 faster than MKL here, and rounds nothing."""
    is_amd = _says("_is_avx512_bf16_supported") and _cpu_name().startswith("AMD")
    if _products() is None or not is_amd:
        return False
    before = _products().fp32_precision
    ones = torch.ones(4, 64, 64)
    _products().fp32_precision = "bf16"
    try:  # a number that bf16 has no digits for
        products = (ones * (1 + 2**-12)) @ ones
    finally:
        _products().fp32_precision = before
    return bool((products == 64 * (1 + 2**-12)).all())


def pass_size(device: torch.device, options: ModelOptions, grid: WindowGrid) -> int:
    """Windows in every forward pass over a scene, the last pass filled up.

    Our own kernels do without the memory that the exact path takes. bf16 matrix products of another
    size round differently: a CPU, where more windows at once are no faster, always takes the same
    number, so that the map does not depend on ``batch_size``.
    """
    if device.type == "cpu":
        return min(CPU_PASS, len(grid))
    usual = KERNELS_PASS if has_triton(device) and not options.exact else ACCELERATOR_PASS
    return min(options.batch_size or max(1, usual // grid.window_pixels), len(grid))


@contextlib.contextmanager
def memory_guard(advice: str) -> Iterator[None]:
    """Turn running out of memory, the device's or the machine's, into one line with advice.

    Raises:
        SegEarthError: there was not enough memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise SegEarthError(f"out of memory; {advice}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether that is what an error means, of the machine or the device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def has_triton(device: torch.device) -> bool:
    """Whether kernels written for triton can run on the device, and gain by it.

    On NVIDIA's GPUs before 8.0 triton does without tensor cores, and runs out of registers; AMD's
    were not looked at.
    """
    if device.type != "cuda" or torch.version.hip or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def tried(attempt: Callable[[], T], slower: str) -> T | None:
    """What a first use of triton's kernels gives; ``None``, and a warning, where they do not run.

    They are compiled then, which takes a C compiler.
    """
    try:
        return attempt()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        logger.warning("no kernels by triton, the %s is slower: %s", slower, error)
        return None


def ready_for(device: torch.device, array: NDArray[Any]) -> torch.Tensor:
    """An array where the device can take it from without the processor."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def fetched(tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], Callable[[], object]]:
    """Tensors on their way from the device, and what waits until they have arrived."""
    here = [tensor.to("cpu", non_blocking=tensor.is_cuda) for tensor in tensors]
    if not tensors[0].is_cuda:
        return here, lambda: None
    arrival = torch.cuda.Event()
    arrival.record(torch.cuda.current_stream(tensors[0].device))
    return here, arrival.synchronize


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release_memory(device: torch.device) -> None:
    """Give back what the device holds for tensors that are no more."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def has_own_memory(device: torch.device) -> bool:
    """Whether what the device holds takes none of the machine's memory."""
    return device.type == "cuda"


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64."""
    return device.type != "mps"


def reset_peak_memory(device: torch.device) -> None:
    """Forget what `peak_memory` counted."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that tensors have taken on the device; ``None`` where nobody counts them."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def use_threads(threads: int | None) -> None:
    """Limit the CPU threads of the network."""
    if threads is not None:
        torch.set_num_threads(min(threads, os.cpu_count() or 1))


@contextlib.contextmanager
def random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Torch's own generators, of the CPU and of all GPUs, go on afterwards as if nothing was."""
    with_gpus = device.type == "cuda" or torch.cuda.is_initialized()
    gpus = range(torch.cuda.device_count() if with_gpus else 0)
    with torch.random.fork_rng(gpus, device_type="cuda"):
        yield
