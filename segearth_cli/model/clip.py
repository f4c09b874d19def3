"""Dense features from any open_clip vision transformer: the walk through its blocks.

The last block's attention is what SegEarth-OV and its rivals change (paper 3.1.1, 5.2 "Baseline"):
the dense features are that block's modulated attention output, without residual and feed-forward.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segearth_cli.device import DTYPES, has_triton, tried
from segearth_cli.errors import ModelError
from segearth_cli.model.attention import attend

Heads = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v: B n N d -> B n N d

GEM_DEPTH = 7

# what the heads of the last block compute; gem is a path of its own
HEADS: dict[str, Heads] = {
    "segearth": lambda q, k, v: attend(q, q, v) + attend(k, k, v) + attend(v, v, v),
    "sclip": lambda q, k, v: attend(q, q, v) + attend(k, k, v),
    "clearclip": lambda q, k, v: attend(q, q, v),
    "maskclip": lambda q, k, v: v,
    "vanilla": lambda q, k, v: attend(q, k, v),
}


class DenseEncoder(nn.Module):
    """Patch features and class token of an open_clip ``VisionTransformer``.

    Args:
        visual: the vision tower of an open_clip model.
        attention: one of ``options.ATTENTIONS``.
        modulated_blocks: how many of the last blocks contribute their modulated output; the
            contributions are summed. ``gem`` has a depth of its own and takes no notice.
        residual: keep the residual and the feed-forward of the modulated blocks.

    Raises:
        ModelError: the tower is not a plain class-token transformer, or has too few blocks.
    """

    def __init__(
        self,
        visual: nn.Module,
        attention: str = "segearth",
        modulated_blocks: int = 1,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.visual = checked_tower(visual, modulated_blocks)
        self.attention = attention
        self.modulated_blocks = modulated_blocks
        self.residual = residual
        self.checkpointing = False  # in training: compute a block's inside again going backward

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.visual.patch_size[0])

    @property
    def output_dim(self) -> int:
        """Channels of the projected features."""
        return int(self.visual.output_dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode normalised images whose sides are multiples of the patch.

        Args:
            images: B x 3 x H x W, normalised with the model's mean and standard deviation.

        Returns:
            Projected patch features, B x D x H/patch x W/patch, and class token, B x D; neither
            is normalised.
        """
        return self.dense(self.block_inputs(images), images)

    def block_inputs(self, images: Tensor) -> list[Tensor]:
        """What enters each block, B x 1+N x C: the same for every attention of the last ones."""
        inputs = [self.embed(images)]
        for block in self.visual.transformer.resblocks[:-1]:
            inputs.append(self._run(block_output, block, inputs[-1]))
        return inputs

    def dense(self, inputs: list[Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` returns, of `block_inputs`."""
        output = self._gem(inputs) if self.attention == "gem" else self._modulated(inputs)
        features = self.project(output)  # B 1+N D
        return self._grid(features, images), features[:, 0]

    def last_input(self, images: Tensor) -> Tensor:
        """What enters the last block, projected: B 3 H W -> B D H/patch W/patch (eq. 6)."""
        return self._grid(self.project(self.block_inputs(images)[-1]), images)

    def _grid(self, features: Tensor, images: Tensor) -> Tensor:
        """Patches where they lie, without the class token: B 1+N D -> B D h w."""
        rows, columns = (side // self.patch_size for side in images.shape[-2:])
        return features[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))

    def embed(self, images: Tensor) -> Tensor:
        """Tokens before the first block, the class token first: B x 1+N x C."""
        visual = self.visual
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        patches = patch_features(visual.conv1, images)
        class_token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        tokens = torch.cat([class_token, patches], dim=1)
        position = resized_position_embedding(visual.positional_embedding, visual.grid_size, grid)
        return visual.ln_pre(tokens + position.to(tokens.dtype))

    def project(self, tokens: Tensor) -> Tensor:
        """``ln_post`` and the projection into the space shared with text: B x N x D."""
        return self.visual.ln_post(tokens) @ self.visual.proj

    def _modulated(self, inputs: list[Tensor]) -> Tensor:
        """Sum of the modulated outputs of the last blocks, each on its normal input."""
        heads = HEADS[self.attention]
        blocks = self.visual.transformer.resblocks
        outputs = [
            self._run(modulated_output, block, tokens, heads, self.residual)
            for block, tokens in list(zip(blocks, inputs, strict=True))[-self.modulated_blocks :]
        ]
        return sum(outputs[1:], outputs[0])

    def _run(self, step: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """One step of the walk, whose inside is kept for going backward, or not."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(step, *inputs, use_reentrant=False)
        return step(*inputs)

    def _gem(self, inputs: list[Tensor]) -> Tensor:
        """GEM's self-self path beside the normal one, over the last ``GEM_DEPTH - 1`` blocks."""
        blocks = self.visual.transformer.resblocks
        last = min(GEM_DEPTH, len(blocks)) - 1
        self_self = output = inputs[-last]
        for block, tokens in list(zip(blocks, inputs, strict=True))[len(blocks) - last :]:
            output = self_self_output(block, tokens)
            self_self = self_self + output
        return self_self if self.residual else output


def checked_tower(visual: nn.Module, modulated_blocks: int) -> VisionTransformer:
    """The vision tower, refused where the reference does not define its dense features."""
    if not isinstance(visual, VisionTransformer):
        raise ModelError(
            f"the vision tower is a {type(visual).__name__}; use a model whose tower is one of "
            "open_clip's own vision transformers (ViT-B-16, ViT-L-14, ...)"
        )
    blocks = visual.transformer.resblocks
    plain = all(isinstance(block, ResidualAttentionBlock) for block in blocks)
    if visual.attn_pool is not None or visual.final_ln_after_pool or not plain:
        raise ModelError(
            "the vision tower pools or attends in a way that has no class token per block; use a "
            "plain CLIP ViT (ViT-B-16, ViT-L-14, ...)"
        )
    if modulated_blocks > len(blocks):
        raise ModelError(
            f"modulated_blocks is {modulated_blocks}, but the vision tower has only {len(blocks)} "
            "blocks; give a smaller number"
        )
    return visual


def round_weights(visual: nn.Module, dtype: torch.dtype) -> None:
    """Round a tower's layers as autocast does, once and not again in every pass."""
    for module in visual.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
        elif isinstance(module, nn.MultiheadAttention):
            for parameter in (module.in_proj_weight, module.in_proj_bias):
                parameter.data = parameter.data.to(dtype)


def patch_features(convolution: nn.Conv2d, images: Tensor) -> Tensor:
    """A convolution whose patches do not overlap, B 3 H W -> B (h w) C.

    As one matrix product: on GPUs the convolution of three channels takes 15 times as long.
    """
    if not images.is_cuda:
        return convolution(images).flatten(2).transpose(1, 2)
    down, across = convolution.kernel_size
    weight = convolution.weight.flatten(1)
    patches = images.to(weight.dtype).unfold(2, down, down).unfold(3, across, across)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return F.linear(patches, weight, convolution.bias)


def layers_for(tokens: Tensor) -> Any:
    """The kernels of `fused_layers`, where they compute what torch would."""
    if tokens.dtype not in DTYPES.values() or torch.is_grad_enabled():
        return None
    return layers_on(tokens.device)


@cache
def layers_on(device: torch.device) -> Any:
    """The same for a device; ``None`` where triton does not run."""

    def first_use() -> Any:
        from segearth_cli.model import fused_layers

        fused_layers.activated(torch.zeros(1, device=device, dtype=torch.bfloat16), is_quick=True)
        return fused_layers

    return tried(first_use, "encoder") if has_triton(device) else None


def resized_position_embedding(
    embedding: Tensor, trained: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """Position embedding for another grid of patches, as DINO resizes it.

    Args:
        embedding: 1 + trained_rows * trained_columns x C, the class token's first.
        trained: rows and columns it was trained for.
        grid: rows and columns wanted.

    Returns:
        1 + rows * columns x C. The scale factors are (grid + 0.1) / trained: the 0.1 is part of
        the reference's numbers.
    """
    if grid == tuple(trained):
        return embedding
    patches = embedding[1:].float().T.unflatten(1, trained)[None]  # 1 C rows columns
    resized = F.interpolate(
        patches,
        scale_factor=tuple((g + 0.1) / t for g, t in zip(grid, trained, strict=True)),
        mode="bicubic",
        align_corners=False,
    )
    return torch.cat([embedding[:1], resized[0].flatten(1).T.to(embedding.dtype)])


def block_output(block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """What open_clip's block computes, B x N x C.

    Its ``MultiheadAttention`` puts tokens before images, so that a bf16 projection on a CPU copies
    its weights for every token: 40 times slower from the second image of a batch on.
    """
    return modulated_output(block, tokens, attend, residual=True)


def modulated_output(
    block: ResidualAttentionBlock, tokens: Tensor, heads: Heads, residual: bool
) -> Tensor:
    """``out_proj(A v)`` on ``ln_1(x)``, B x N x C; with residual and feed-forward if asked."""
    layers = layers_for(tokens)
    normed = block.ln_1(tokens) if layers is None else layers.normed(block.ln_1, tokens)
    output = block.ls_1(merge_heads(block.attn, heads(*project_heads(block.attn, normed))))
    if not residual:
        return output
    if layers is None:
        tokens = tokens + output
        normed = block.ln_2(tokens)
    else:
        tokens, normed = layers.added_and_normed(block.ln_2, tokens, output)
    return tokens + block.ls_2(feed_forward(block.mlp, normed))


def feed_forward(mlp: Any, tokens: Tensor) -> Tensor:
    """The two layers of a block, B x N x C.

    Without gradients what lies between them, four times as large as the tokens, is activated in
    place: on a CPU, fresh memory costs more than the activation.
    """
    hidden: Tensor = mlp.c_fc(tokens)
    activation = mlp.gelu
    in_place = not torch.is_grad_enabled()
    is_quick = isinstance(activation, QuickGELU)
    is_exact = isinstance(activation, nn.GELU) and activation.approximate == "none"
    layers = layers_for(hidden) if is_quick or is_exact else None
    if layers is not None:
        layers.activated(hidden, is_quick)
    elif in_place and is_quick:
        hidden *= (1.702 * hidden).sigmoid_()
    elif in_place and isinstance(activation, nn.GELU):
        torch.ops.aten.gelu_(hidden, approximate=activation.approximate)
    else:
        hidden = activation(hidden)
    output: Tensor = mlp.c_proj(hidden)
    return output


def self_self_output(block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """GEM's attention: q-q, k-k and v-v, each refined once, averaged: B x N x C."""
    normed = block.ln_1(tokens)
    q, k, v = project_heads(block.attn, normed)
    # Mean over an image's tokens, not over the batch: no image may depend on its neighbours.
    inverse_temperature = normed.float().norm(dim=-1).mean(dim=1) / math.sqrt(q.shape[-1])
    inverse_temperature = inverse_temperature[:, None, None, None]  # B 1 1 1

    def refined(x: Tensor) -> Tensor:
        x = F.normalize(x.float(), dim=-1)
        x = F.normalize(attend(inverse_temperature * x, x, x, scale=1.0), dim=-1)
        return attend(inverse_temperature * x, x, v.float(), scale=1.0)

    output = (refined(q) + refined(k) + refined(v)) / 3
    return block.ls_1(merge_heads(block.attn, output.to(tokens.dtype)))


def project_heads(attention: nn.MultiheadAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values per head: B N C -> three of B n N d."""
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


def merge_heads(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Heads joined and projected: B n N d -> B N C."""
    return attention.out_proj(x.transpose(1, 2).flatten(2))
