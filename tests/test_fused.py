"""The kernels for GPUs, run by triton's interpreter on a CPU, against what torch computes."""

import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from scenes import surroundings

from segearth_cli.device import DTYPES, has_triton

pytest.importorskip("triton", reason="triton comes with torch's CUDA builds only")


def interpreted(code, *arguments):
    """What a program prints whose kernels run in triton's interpreter."""
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from interpreted import guard, hasten\nguard()\nhasten()\n{code}",
            *arguments,
        ],
        env=surroundings(TRITON_INTERPRET="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


ALONE = """
import sys
import torch
from segearth_cli.model.fused import FusedKernels
from segearth_cli.model.tiles import TileKernels, doubled
from segearth_cli.model.upsampler import JBU

radius, sigma, dtype, tolerance = sys.argv[1:]
torch.manual_seed(0)
jbu = JBU(int(radius)).eval().requires_grad_(False)
jbu.range_temp.fill_(2.0)
jbu.sigma_spatial.fill_(float(sigma))
for height, width in ((6, 7), (9, 5)):
    features = torch.randn(2, height, width, 3)
    guidance = torch.randn(2, 3, 2 * height, 2 * width)
    expected = doubled(TileKernels(jbu, torch.float32), features, guidance)
    actual = FusedKernels(TileKernels(jbu, getattr(torch, dtype))).doubled(features, guidance)
    torch.testing.assert_close(actual.float(), expected, atol=float(tolerance), rtol=0)
"""


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
def test_images_alone_are_doubled_as_by_products(radius, sigma, dtype, tolerance):
    interpreted(ALONE, str(radius), str(sigma), dtype, str(tolerance))


CELLS = """
import sys
import torch
import torch.nn.functional as F
from segearth_cli.model.fused import FusedKernels, Scoring, Seen, resized
from segearth_cli.model.tiles import TileKernels, doubled
from segearth_cli.model.upsampler import JBU

RADIUS, CHANNELS, QUERIES = 2, 16, 3
height, width, count = map(int, sys.argv[1:])  # of a cell; windows side by side
torch.manual_seed(0)
jbu = JBU(RADIUS).eval().requires_grad_(False)
jbu.range_temp.fill_(2.0)
exact = TileKernels(jbu, torch.float32)
kernels = FusedKernels(exact)
picture = torch.randn(3, 3 * height, (count + 1) * width)  # under two rows of windows
there = torch.ones(2, count + 2, dtype=torch.uint8)  # of the lower and the upper row
there[:, 0] = there[:, -1] = there[1, count] = 0
features = torch.randn(2, count + 2, height, width, CHANNELS)
features[there == 0] = torch.nan
shift, text = torch.randn(CHANNELS), torch.randn(QUERIES, CHANNELS)
down, across = torch.rand(2 * height), torch.rand(2 * width)
bias = torch.randn(2, count + 2, QUERIES)

around = F.pad(picture[None], [RADIUS] * 4, mode="replicate")[0].movedim(0, -1)
part = around[height : 2 * height + 2 * RADIUS].contiguous()
guide = kernels.guide(part, count + 1, (height, width), RADIUS * part.shape[1] + RADIUS, width)
wanted = torch.ones(count + 1, dtype=torch.uint8)
windows = Seen(resized(*features), there.flatten(), wanted, 2)
out = torch.zeros(2, *windows.features[: count + 2].shape)
kernels.double(guide, windows, *out)
logits = torch.zeros(QUERIES, height, (count + 1) * width)
moves = (width, logits.stride(1), logits.stride(0))
scoring = Scoring(logits, moves, down, across, shift, text, bias.flatten(0, 1))
kernels.score(guide, windows, scoring)

expected = torch.zeros_like(logits)
for row, column in there.nonzero().tolist():
    left, top = (column - 1) * width, (1 - row) * height
    image = picture[:, top : top + 2 * height, left : left + 2 * width]
    fine = doubled(exact, features[row, column][None], image[None])[0]
    cells = slice(row * height, (row + 1) * height)  # the rows that are asked for
    torch.testing.assert_close(out[row, column, cells], fine[cells], atol=3e-5, rtol=0)
    cosines = torch.einsum("hwc,qc->qhw", F.normalize(fine[cells] + shift, dim=-1), text)
    part = expected[:, :, left : left + 2 * width]
    part += down[cells, None] * across * (cosines - bias[row, column, :, None, None])
torch.testing.assert_close(logits, expected, atol=3e-5, rtol=0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "size", [("8", "48", "1"), ("12", "16", "2")]
)  # insides of both directions
def test_cells_have_what_each_window_has_alone(size):
    interpreted(CELLS, *size)


@pytest.mark.slow
def test_a_window_of_shared_cells_has_the_logits_that_products_give():
    code = """
from test_mosaic import picture, segmenter
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model import fused
from segearth_cli.model.cells import shares_cells
from segearth_cli.model.mosaic import image_logits
from segearth_cli.model.upsampler import JBUOne

image, grid = picture(32, 32), WindowGrid(32, 32, 32, 16, blend="smooth")
upsampler = lambda channels: JBUOne(channels, radius=3)
expected = image_logits(segmenter(upsampler, patch=4), image, grid)
fused.has_triton = lambda device: True
own = segmenter(upsampler, patch=4)
assert own.fast_upsampler.fused_for(1) is not None
assert shares_cells(grid, own.fast_upsampler)
print((image_logits(own, image, grid) - expected).abs().max().item())
"""
    assert float(interpreted(code)) < 1e-6


def test_layers_between_products_are_those_of_torch():
    code = """
import torch
import torch.nn.functional as F
from segearth_cli.model import fused_layers

torch.manual_seed(0)
tokens, more = torch.randn(2, 2, 3, 24).half()
norm = torch.nn.LayerNorm(24)
torch.nn.init.normal_(norm.weight)
torch.nn.init.normal_(norm.bias)
close = torch.testing.assert_close
with torch.inference_mode():
    close(fused_layers.normed(norm, tokens), norm(tokens.float()).half())
    total, normed = fused_layers.added_and_normed(norm, tokens, more)
    close(total, tokens + more)
    close(normed, norm(total.float()).half())
    exact = tokens.float()
    close(fused_layers.activated(tokens.clone(), False), F.gelu(exact).half())
    close(fused_layers.activated(tokens.clone(), True), (exact * (1.702 * exact).sigmoid()).half())
"""
    interpreted(code)


# --- compiled ----------------------------------------------------------------------------------

POINTERS = {
    "scores": {"keys": "fp16", "items": "i32", "wanted": "u8", "out": "fp32"},
    "weights": {
        **dict.fromkeys(("scores", "guide", "log_spatial", "narrow", "last_bias"), "fp32"),
        **dict.fromkeys(("hidden", "last", "out"), None),  # of the precision
        **{"items": "i32", "wanted": "u8"},
    },
    "sums": {
        **dict.fromkeys(("down_weight", "across_weight", "shift", "text", "bias"), "fp32"),
        **dict.fromkeys(("weights", "features"), None),
        **{"out": "fp32", "out_above": "fp32", "tiles": "i32", "wanted": "u8", "there": "u8"},
    },
}
KINDS = [
    *product(("scores",), (80, 100), ("fp32",), (32,)),
    *product(("weights",), (80, 90), ("fp32", "bf16"), (32,)),
    *product(("sums",), (80, 90), ("fp32", "bf16"), (32,)),
    ("sums", 90, "bf16", 64),
    ("sums", 80, "fp16", 512),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "capability", "precision", "channels"), KINDS)
def test_it_compiles_for_gpus_and_fits_their_memory(
    name, capability, precision, channels, tmp_path, monkeypatch
):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from segearth_cli.model import fused, triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    kernel = getattr(triton_kernels, name)
    dtype = DTYPES.get(precision, torch.float32)
    constants, how = fused.compiled_for(name, 5, dtype, channels, halves=2, is_narrow=False)
    if name == "sums":
        constants |= {"HAS_LOGITS": True}
    kinds = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
    kinds |= {name: f"*{kind or precision}" for name, kind in POINTERS[name].items()}
    place = {name: (number,) for number, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel,
        kinds,
        {place[name]: value for name, value in constants.items()},
        # what a launch finds out: torch's memory begins at multiples of 16
        {place[pointer]: [["tt.divisibility", 16]] for pointer in POINTERS[name]},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=how)
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run(
        [tool, "-res-usage", binary], capture_output=True, text=True, check=True
    ).stdout

    assert compiled.metadata.shared <= 99 << 10  # what the smallest of these GPUs has
    assert re.search(r"mma(\.sync|_async)", compiled.asm["ptx"])  # tensor cores
    if precision != "fp32" and channels <= 64:
        assert int(re.search(r"STACK:(\d+)", said)[1]) <= 64  # bytes of a thread's in memory


@pytest.mark.parametrize(
    ("capability", "hip", "runs"),
    [((8, 0), None, True), ((7, 5), None, False), ((9, 4), "6.4", False)],
)
def test_it_runs_where_it_gains(capability, hip, runs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert has_triton(torch.device("cuda")) is runs
    assert not has_triton(torch.device("cpu"))
