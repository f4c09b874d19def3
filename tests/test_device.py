import pytest
import torch

from segearth_cli import device
from segearth_cli.device import pass_size, pick_precision
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.options import ModelOptions

CPU = torch.device("cpu")
QUESTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


def run_on(name, monkeypatch, answers=(False, True)):
    """Let torch say that this is such a processor."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name}, raising=False)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        if answer is None:
            monkeypatch.delattr(torch.cpu, question, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, question, lambda answer=answer: answer, raising=False)


@pytest.mark.parametrize(
    ("answers", "name", "precision"),
    [
        ((True, True), "Intel Xeon", "bf16"),
        ((False, True), "AMD EPYC", "bf16"),
        ((False, True), "Intel Xeon", "fp32"),
        ((True, None), "Intel Xeon", "bf16"),
        ((False, False), "AMD EPYC", "fp32"),
        ((None, None), "", "fp32"),  # a torch that cannot tell
    ],
)
def test_auto_is_bf16_where_the_cpu_is_faster_with_it(answers, name, precision, monkeypatch):
    run_on(name, monkeypatch, answers)

    assert pick_precision("auto", CPU) == precision
    assert pick_precision("fp32", CPU) == "fp32"


@pytest.mark.parametrize("has_products", [True, False])
def test_bf16_gets_a_warning_where_it_is_slow(has_products, monkeypatch, caplog):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_products)
    device._warn_where_bf16_is_slow.cache_clear()

    for name in ("bf16", "bf16", "fp32"):
        assert pick_precision(name, CPU) == name

    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (0 if has_products else 1)
    assert not said or "give fp32" in said[0]


@pytest.mark.parametrize("name", ["AMD EPYC", "Intel Xeon"])
def test_float32_is_float32_whoever_multiplies(name, monkeypatch):
    run_on(name, monkeypatch)
    monkeypatch.setattr(device, "_onednn_is_as_exact", device._onednn_is_as_exact.__wrapped__)
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 96, 96, generator=random) for _ in range(2))
    before = torch.get_float32_matmul_precision()  # which fails while torch has the leave to round

    with device.float32_products(CPU), device.float32_products(CPU):
        products = a @ b

    torch.testing.assert_close(products, (a.double() @ b.double()).float(), rtol=1e-5, atol=1e-5)
    assert torch.get_float32_matmul_precision() == before


def test_a_cpu_that_would_round_is_not_given_leave_to(monkeypatch):
    run_on("AMD EPYC", monkeypatch)
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(  # what oneDNN does with AMX
        torch.Tensor, "__matmul__", lambda a, b: product(a.bfloat16(), b.bfloat16()).float()
    )

    assert not device._onednn_is_as_exact.__wrapped__()


@pytest.mark.parametrize(
    ("name", "has_kernels", "batch_size", "exact", "windows"),
    [
        ("cpu", False, None, False, 4),
        ("cpu", False, 32, True, 4),
        ("cuda", True, None, False, 128),
        ("cuda", True, None, True, 16),
        ("cuda", False, None, False, 16),
        ("cuda", True, 32, True, 32),
        ("mps", False, None, False, 16),
    ],
)
def test_a_pass_has_many_windows_only_where_kernels_need_little_memory(
    name, has_kernels, batch_size, exact, windows, monkeypatch
):
    monkeypatch.setattr(device, "has_triton", lambda of: has_kernels)
    own = ModelOptions(batch_size=batch_size, exact=exact)
    many, few = (WindowGrid(224, 112 * (count + 1), 224, 112) for count in (1000, 3))
    assert pass_size(torch.device(name), own, many) == windows
    assert pass_size(torch.device(name), own, few) == 3
