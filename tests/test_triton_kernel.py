"""The kernel for GPUs, run by triton's interpreter on a CPU, against the products of `tiles`."""

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from segearth_cli.device import DTYPES, has_triton

pytest.importorskip("triton", reason="triton comes with torch's CUDA builds only")

INTERPRETED = """
import sys
import torch
from segearth_cli.model import tiles
from segearth_cli.model.upsampler import JBU

def doubled(jbu, features, guidance, dtype, fused):
    tiles.has_triton = lambda device: fused
    kernels = tiles.TileKernels(jbu, dtype)
    with torch.inference_mode():
        fine = tiles.doubled(kernels, features, guidance)
    assert kernels._is_fused, "the kernel did not run"
    return fine

radius, sigma, dtype, tolerance = sys.argv[1:]
torch.manual_seed(0)
jbu = JBU(int(radius)).eval().requires_grad_(False)
jbu.range_temp.fill_(2.0)
jbu.sigma_spatial.fill_(float(sigma))
for height, width in ((6, 7), (9, 5)):
    features = torch.randn(2, height, width, 3)
    guidance = torch.randn(2, 3, 2 * height, 2 * width)
    expected = doubled(jbu, features, guidance, torch.float32, False)
    actual = doubled(jbu, features, guidance, getattr(torch, dtype), True)
    torch.testing.assert_close(actual, expected, atol=float(tolerance), rtol=0)
"""


def interpreted(code, *arguments):
    """What a program prints whose kernels run in triton's interpreter."""
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize(
    ("radius", "sigma", "dtype", "tolerance"),
    [
        pytest.param(5, 1.0, "float32", 3e-5, marks=pytest.mark.slow),
        # a Gaussian so narrow that it is multiplied in
        pytest.param(2, 0.05, "float32", 3e-5, marks=pytest.mark.slow),
        # no bf16: the interpreter multiplies its bits as integers
        pytest.param(3, 1.0, "float16", 3e-3, marks=pytest.mark.slow),
    ],
)
def test_it_gives_what_the_products_give(radius, sigma, dtype, tolerance):
    arguments = [str(radius), str(sigma), dtype, str(tolerance)]
    interpreted(INTERPRETED, *arguments)


KINDS = [
    *product((80, 89, 90, 100), ("fp32", *DTYPES), (11,), (False,)),
    (80, "fp32", 11, True),
    (80, "bf16", 7, False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "dtype", "side", "is_narrow"), KINDS)
def test_it_compiles_for_gpus_and_keeps_to_their_registers(
    capability, dtype, side, is_narrow, tmp_path, monkeypatch
):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from segearth_cli.model import triton_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    kernel = triton_kernel._weighted_sums
    constants = {
        "KEYS": 32,
        "SIDE": side,
        "WIDTH": 1 << (side**2 + 3).bit_length(),
        "BLOCK": triton_kernel.PIXELS,
        "IS_NARROW": is_narrow,
        "PRECISION": triton_kernel.precision_of_products(DTYPES.get(dtype, torch.float32)),
    }
    exact = ("keys", "image", "features", "log_spatial", "narrow", "last_bias", "out")
    kinds = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
    kinds |= dict.fromkeys(exact, "*fp32") | dict.fromkeys(("hidden", "last"), f"*{dtype}")
    place = {name: (number,) for number, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel,
        kinds,
        {place[name]: value for name, value in constants.items()},
        # what a launch finds out: torch's memory begins at multiples of 16
        {place[name]: [["tt.divisibility", 16]] for name in (*exact, "hidden", "last")},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": triton_kernel.WARPS},
    )
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run(
        [tool, "-res-usage", binary], capture_output=True, text=True, check=True
    ).stdout

    assert int(re.search(r"STACK:(\d+)", said)[1]) <= 16  # bytes of a thread's in memory
    assert compiled.metadata.shared <= 99 << 10  # what the smallest of these GPUs has
    assert "mma" in compiled.asm["ptx"]  # tensor cores


@pytest.mark.parametrize(
    ("capability", "hip", "runs"),
    [((8, 0), None, True), ((7, 5), None, False), ((9, 4), "6.4", False)],
)
def test_it_runs_where_it_gains(capability, hip, runs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert has_triton(torch.device("cuda")) is runs
    assert not has_triton(torch.device("cpu"))


@pytest.mark.slow
def test_windows_that_share_cells_are_added_up_by_it():
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from test_mosaic import picture, segmenter
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model import tiles
from segearth_cli.model.mosaic import image_logits

image, grid = picture(16, 24), WindowGrid(16, 24, 16, 8, blend="smooth")
expected = image_logits(segmenter(patch=4), image, grid, size=2)
tiles.has_triton = lambda device: True
fused = segmenter(patch=4)
print((image_logits(fused, image, grid, size=2) - expected).abs().max().item())
assert all(kernels._is_fused for kernels in fused.fast_upsampler.kernels)
"""
    assert float(interpreted(code, str(Path(__file__).parent))) < 1e-6
