"""Attention in bf16 on a CPU: near the exact numbers, and each image's its own."""

import pytest
import torch
import torch.nn.functional as F

from segearth_cli.model.attention import attend


def heads(tokens, channels=64, images=2):
    """Queries, keys and values in bf16, with memory as a projection leaves it."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(images, tokens, 3 * 3 * channels, generator=generator)
    return qkv.bfloat16().unflatten(-1, (3, 3, channels)).permute(2, 0, 3, 1, 4)


@pytest.mark.parametrize("tokens", [1, 50, 197, 257, 700])
@pytest.mark.parametrize("scale", [None, 1 / 32])
def test_it_is_as_near_to_the_exact_one_as_bf16_allows(tokens, scale):
    q, k, v = heads(tokens)
    with torch.inference_mode():
        actual = attend(q, k, v, scale)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=scale)
    assert actual.dtype == torch.bfloat16
    difference = (actual - exact).norm() / exact.norm()
    assert difference < 6e-3  # rounding the result alone makes 1.6e-3


def test_an_image_does_not_depend_on_the_others_nor_on_autocast():
    q, k, v = heads(300)
    with torch.inference_mode():
        both = attend(q, k, v)
        torch.testing.assert_close(attend(q[1:], k[1:], v[1:]), both[1:], atol=0, rtol=0)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(attend(q, k, v), both, atol=0, rtol=0)


def test_gradients_pass():
    q, k, v = (part.clone().requires_grad_() for part in heads(20))
    attend(q, k, v).sum().backward()
    assert all(part.grad.isfinite().all() for part in (q, k, v))
