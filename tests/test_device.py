import pytest
import torch

from segearth_cli.device import pick_precision

CPU = torch.device("cpu")
QUESTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


@pytest.mark.parametrize(
    ("answers", "precision"),
    [
        ((True, True), "bf16"),
        ((False, True), "bf16"),
        ((True, None), "bf16"),
        ((False, False), "fp32"),
        ((None, None), "fp32"),  # a torch that cannot tell
    ],
)
def test_auto_is_bf16_where_the_cpu_has_it(answers, precision, monkeypatch):
    for question, answer in zip(QUESTIONS, answers, strict=True):
        if answer is None:
            monkeypatch.delattr(torch.cpu, question, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, question, lambda answer=answer: answer, raising=False)

    assert pick_precision("auto", CPU) == precision
    assert pick_precision("fp32", CPU) == "fp32"
