"""What lies between a transformer's matrix products, in half precision on GPUs: a pass each.

Torch takes three passes over memory for a LayerNorm under autocast, and as many for QuickGELU.
Imported where triton is at hand.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

NUMBERS = 4096  # of a program


def normed(norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
    """LayerNorm in float32, rounded to the tokens' type: ... x C."""
    return _launch_norm(norm, tokens, None)[1]


def added_and_normed(norm: nn.LayerNorm, tokens: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """A sum, rounded to the tokens' type, and LayerNorm of it: ... x C each."""
    return _launch_norm(norm, tokens, more)


def activated(hidden: Tensor, is_quick: bool) -> Tensor:
    """QuickGELU or GELU, in place."""
    assert hidden.is_contiguous()
    _activate[(triton.cdiv(hidden.numel(), NUMBERS),)](
        hidden, hidden.numel(), IS_QUICK=is_quick, NUMBERS=NUMBERS, num_warps=8
    )
    return hidden


def _launch_norm(norm: nn.LayerNorm, tokens: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
    tokens = tokens.contiguous()
    total = tokens if more is None else torch.empty_like(tokens)
    out = torch.empty_like(tokens)
    channels = tokens.shape[-1]
    _norm[(tokens.numel() // channels,)](
        tokens,
        tokens if more is None else more.contiguous(),
        norm.weight,
        norm.bias,
        total,
        out,
        channels,
        norm.eps,
        HAS_MORE=more is not None,
        WIDTH=triton.next_power_of_2(channels),
        num_warps=4,
    )
    return total, out


@triton.jit  # type: ignore[untyped-decorator]
def _norm(  # type: ignore[no-untyped-def]
    tokens,
    more,
    weight,
    bias,
    total,
    out,
    channels,
    eps,
    HAS_MORE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    channel = tl.arange(0, WIDTH)
    own = channel < channels
    place = tl.program_id(0).to(tl.int64) * channels + channel
    token = tl.load(tokens + place, mask=own, other=0.0)
    if HAS_MORE:
        token += tl.load(more + place, mask=own, other=0.0)
        tl.store(total + place, token, mask=own)
    exact = token.to(tl.float32)
    mean = tl.sum(exact, axis=0) / channels
    exact = tl.where(own, exact - mean, 0.0)
    exact *= tl.rsqrt(tl.sum(exact * exact, axis=0) / channels + eps)
    exact *= tl.load(weight + channel, mask=own, other=0.0).to(tl.float32)
    exact += tl.load(bias + channel, mask=own, other=0.0).to(tl.float32)
    tl.store(out + place, exact.to(out.dtype.element_ty), mask=own)


@triton.jit  # type: ignore[untyped-decorator]
def _activate(  # type: ignore[no-untyped-def]
    hidden, count, IS_QUICK: tl.constexpr, NUMBERS: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * NUMBERS + tl.arange(0, NUMBERS)
    own = place < count
    number = tl.load(hidden + place, mask=own, other=0.0).to(tl.float32)
    if IS_QUICK:
        number *= tl.sigmoid(1.702 * number)
    else:
        number *= 0.5 + 0.5 * tl.erf(number * 0.7071067811865476)
    tl.store(hidden + place, number.to(hidden.dtype.element_ty), mask=own)
