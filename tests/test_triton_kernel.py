"""The kernel for GPUs, run by triton's interpreter on a CPU, against the products of `tiles`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segearth_cli.device import DTYPES

pytest.importorskip("triton", reason="triton comes with torch's CUDA builds only")

INTERPRETED = """
import sys
from pathlib import Path
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


@pytest.mark.parametrize(
    ("radius", "sigma", "dtype", "tolerance"),
    [
        (5, 1.0, "float32", 3e-5),
        (2, 0.05, "float32", 3e-5),  # a Gaussian so narrow that it is multiplied in
        (3, 1.0, "float16", 3e-3),  # no bf16: the interpreter multiplies its bits as integers
    ],
)
def test_it_gives_what_the_products_give(radius, sigma, dtype, tolerance):
    arguments = [str(radius), str(sigma), dtype, str(tolerance)]
    run = subprocess.run(
        [sys.executable, "-c", INTERPRETED, *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 89, 90, 100])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_it_compiles_for_gpus_and_keeps_to_their_registers(
    capability, dtype, tmp_path, monkeypatch
):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from segearth_cli.model import triton_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    kernel = triton_kernel._weighted_sums
    names = kernel.arg_names
    constants = {
        "KEYS": 32,
        "SIDE": 11,
        "WIDTH": 128,
        "BLOCK": triton_kernel.PIXELS,
        "IS_NARROW": False,
        "PRECISION": triton_kernel.precision_of_products(DTYPES.get(dtype, torch.float32)),
    }
    kinds = dict.fromkeys(names, "i32")
    kinds |= dict.fromkeys(constants, "constexpr")
    kinds |= dict.fromkeys(("keys", "image", "features", "log_spatial", "narrow"), "*fp32")
    kinds |= {"last_bias": "*fp32", "out": "*fp32", "hidden": f"*{dtype}", "last": f"*{dtype}"}
    source = ASTSource(
        kernel, kinds, {(names.index(name),): value for name, value in constants.items()}
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

    spilled = int(re.search(r"STACK:(\d+)", said)[1])
    assert spilled <= 16, said  # bytes of a thread's
    assert compiled.metadata.shared <= 99 << 10  # what the smallest of these GPUs has
    assert "mma" in compiled.asm["ptx"]  # tensor cores
