"""The kernel for GPUs, run by triton's interpreter on a CPU, against the products of `tiles`."""

import os
import subprocess
import sys

import pytest

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
