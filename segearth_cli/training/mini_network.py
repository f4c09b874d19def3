"""The built-in model's image tower as training runs it, and its losses.

Attention of few tokens is written out as products and a softmax: on a CPU their backward in bf16 is
twice as fast as that of `scaled_dot_product_attention`, and the numbers are the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.pos_embed import get_2d_sincos_pos_embed
from torch import Tensor

from segearth_cli.model.clip import DenseEncoder, modulated_output, resized_position_embedding
from segearth_cli.training.mini_augment import WINDOW
from segearth_cli.training.mini_data import IGNORE, TOKENS, Batch, Source
from segearth_cli.training.mini_words import (
    CONTEXT_LENGTH,
    StepVocabulary,
    attend,
    sampled_texts,
    sampled_vocabulary,
)

PREPROCESS = {"mean": [0.45, 0.45, 0.45], "std": [0.25, 0.25, 0.25]}
LOGIT_SCALE = 50.0
OVERLAP_WEIGHT = 0.5
START_IMAGES = 256  # whose patches the first layer starts from
GLOBAL_BIASES = (0.0, 0.3)  # trained with either, so that both work


def architecture(patch: int) -> dict[str, Any]:
    """The model in open_clip's words, with patches of so many pixels a side."""
    vision = {"layers": 6, "width": 256, "head_width": 64, "patch_size": patch}
    text = {"vocab_size": 49408, "width": 128, "heads": 4, "layers": 3}
    return {
        "embed_dim": 192,
        "vision_cfg": {"image_size": WINDOW, **vision},
        "text_cfg": {"context_length": CONTEXT_LENGTH, **text},
    }


def batch_losses(
    model: CLIP,
    batch: Batch,
    sources: list[Source],
    weights: list[Tensor],
    rng: np.random.Generator,
) -> dict[str, tuple[Tensor, float]]:
    """Loss and weight by name: one dense loss per source, one caption loss per chip source."""
    vocabularies = [sampled_vocabulary(source, rng) for source in sources]
    captions = [source.classes if source.is_chips else () for source in sources]
    texts = sampled_texts(model, [*(v.words for v in vocabularies), *captions], rng)
    trunk = run_trunk(model.visual, normalised(batch.images))  # B 197 C
    features, dense_token = dense_features(model.visual, trunk)
    bias = float(rng.choice(GLOBAL_BIASES))
    losses = {}
    for number, (source, vocabulary) in enumerate(zip(sources, vocabularies, strict=True)):
        mine = (batch.source == number).nonzero()[:, 0]
        if not len(mine):
            continue
        share = source.loss_weight * len(mine) / len(batch.images)
        text = texts[number]  # Q D
        logits = torch.einsum("bdhw,qd->bqhw", features[mine], text)
        logits = logits - bias * (dense_token[mine] @ text.T)[:, :, None, None]
        loss = dense_loss(logits.float(), batch.labels[mine], vocabulary, weights[number])
        losses[source.name] = (loss, share)
    trunk = run_trunk(model.visual, normalised(batch.chips), kept_tokens(batch.chips, model, rng))
    tokens = class_token(model.visual, trunk)
    for number, source in enumerate(sources):
        mine = (batch.chip_source == number).nonzero()[:, 0]
        if len(mine):
            text = texts[len(sources) + number]
            loss = caption_loss(model, tokens[mine], text, batch.chip_class[mine])
            losses[f"caption-{source.name}"] = (loss, len(mine) / len(batch.chips))
    return losses


def normalised(images: Tensor) -> Tensor:
    """uint8 to what the image tower takes."""
    mean = torch.tensor(PREPROCESS["mean"])[:, None, None]
    std = torch.tensor(PREPROCESS["std"])[:, None, None]
    return (images / 255 - mean) / std


def segearth_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(softmax(q q^T s) + softmax(k k^T s) + softmax(v v^T s)) v, per head."""
    return attend(q, q, v) + attend(k, k, v) + attend(v, v, v)


def kept_tokens(images: Tensor, model: CLIP, rng: np.random.Generator) -> Tensor | None:
    """Class token and random patches of images that have more than a step has time for.

    A part of a large chip teaches the class token nearly as much (FLIP, Li et al. 2023).
    """
    patches = (images.shape[-1] // model.visual.patch_size[0]) ** 2
    if patches <= TOKENS:
        return None
    return torch.tensor([0, *(1 + rng.permutation(patches)[:TOKENS])])


def run_trunk(visual: Any, images: Tensor, kept: Tensor | None = None) -> Tensor:
    """All blocks but the last: B 3 H W -> B 1+N C; of the `kept` tokens alone, if given."""
    tokens = DenseEncoder(visual).embed(images)
    tokens = tokens if kept is None else tokens[:, kept]
    for block in visual.transformer.resblocks[:-1]:
        tokens = modulated_output(block, tokens, attend, residual=True)
    return tokens


def dense_features(visual: Any, trunk: Tensor) -> tuple[Tensor, Tensor]:
    """What segmentation uses, of unit length: B D h w and the class token B D."""
    output = modulated_output(
        visual.transformer.resblocks[-1], trunk, segearth_heads, residual=False
    )
    features = F.normalize(DenseEncoder(visual).project(output).float(), dim=-1)
    patches = features[:, 1:].transpose(1, 2)  # B D N
    side = math.isqrt(patches.shape[-1])
    return patches.reshape(*patches.shape[:2], side, side), features[:, 0]


def class_token(visual: Any, trunk: Tensor) -> Tensor:
    """What `encode_image` returns, of unit length: B D."""
    tokens = modulated_output(visual.transformer.resblocks[-1], trunk, attend, residual=True)
    return F.normalize((visual.ln_post(tokens[:, 0]) @ visual.proj).float(), dim=-1)


@torch.no_grad()
def start_locally(model: CLIP, images: Tensor) -> None:
    """Weights from which a patch's features are about that patch from the first step on.

    From the usual random weights the last block, which has no residual here, averages over the
    whole window, and thousands of steps pass before patches differ. So: patches are embedded by
    their whitened principal components, positions by sines, keys start as queries (similar tokens
    attend to each other), and the last block attends sharply.
    """
    visual = model.visual
    width, side = visual.conv1.weight.shape[0], visual.patch_size[0]
    patches = F.unfold(normalised(images), side, stride=side).transpose(1, 2).flatten(0, 1)
    patches = patches - patches.mean(0)
    variance, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    variance, directions = variance.flip(0)[:width], directions.flip(1)[:, :width]
    whitened = directions / (variance + 0.01 * variance.mean()).sqrt()
    first = visual.conv1.weight[: whitened.shape[1]]  # small patches have fewer components
    first.copy_(whitened.T.reshape(first.shape))
    rows = get_2d_sincos_pos_embed(width, visual.grid_size[0], cls_token=True)
    visual.positional_embedding.copy_(0.5 * torch.from_numpy(rows))
    for block in visual.transformer.resblocks:
        weight = block.attn.in_proj_weight
        weight[width : 2 * width] = weight[:width]
    visual.transformer.resblocks[-1].attn.in_proj_weight.mul_(2.0)


@torch.no_grad()
def start_from(model: CLIP, trained: CLIP) -> None:
    """Weights of a model with larger patches, as they see an image that is enlarged as much.

    A patch's weights are summed where enlarging repeats its pixels (bilinearly); there are more
    positions in a window, between the old ones.
    """
    state = trained.state_dict()
    own = model.visual.patch_size[0]
    eye = torch.eye(own * own).unflatten(1, (own, own))[:, None]  # pixels 1 own own
    side = trained.visual.patch_size[0]
    enlarged = F.interpolate(eye, (side, side), mode="bilinear")[:, 0]  # pixels side side
    weight = torch.einsum("ocij,pij->ocp", state["visual.conv1.weight"], enlarged)
    state["visual.conv1.weight"] = weight.unflatten(2, (own, own))
    state["visual.positional_embedding"] = resized_position_embedding(
        state["visual.positional_embedding"], trained.visual.grid_size, model.visual.grid_size
    )
    model.load_state_dict(state)


def pixel_weights(source: Source) -> Tensor:
    """A weight per class, mildly higher for the rare: 1 / sqrt(share), with a mean of 1.

    The class without a word of its own gets 1 at most: borders of classes pass for it too often.
    """
    if source.is_chips:
        return torch.ones(len(source.classes))
    counts = np.zeros(256)
    for label in source.labels:
        counts += np.bincount(label.ravel(), minlength=256)
    shares = counts[: len(source.classes)] / counts[: len(source.classes)].sum()
    weights = 1 / np.sqrt(np.maximum(shares, 0.01))
    weights /= (weights * shares).sum()
    if source.rest is not None:
        weights[source.rest] = min(weights[source.rest], 1.0)
    return torch.tensor(weights, dtype=torch.float32)


def dense_loss(
    logits: Tensor, labels: Tensor, vocabulary: StepVocabulary, weights: Tensor
) -> Tensor:
    """Cross-entropy of upsampled logits B Q h w against labels B H W of the source's classes."""
    logits = LOGIT_SCALE * F.interpolate(logits, labels.shape[-2:], mode="bilinear")
    target_of_label = torch.full((256,), -1)
    target_of_label[: len(vocabulary.word_of_class)] = torch.tensor(vocabulary.word_of_class)
    weight_of_label = torch.zeros(256)
    weight_of_label[: len(weights)] = weights
    assert weight_of_label[IGNORE] == 0
    target = target_of_label[labels.long()]
    weight = weight_of_label[labels.long()] * (target >= 0)
    loss = F.cross_entropy(logits, target, ignore_index=-1, label_smoothing=0.03, reduction="none")
    loss = (loss * weight).sum() / weight.sum().clamp(min=1.0)
    return loss + OVERLAP_WEIGHT * overlap_loss(logits, target)


def overlap_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice of each word that is there, their mean: small things count as much as large ones.

    Logits B Q H W; target B H W, -1 where it is unknown.
    """
    known = (target >= 0)[:, None]
    right = F.one_hot(target.clamp(min=0), logits.shape[1]).permute(0, 3, 1, 2) * known  # B Q H W
    share = logits.softmax(dim=1) * known
    both, either = ((share * right).sum((0, 2, 3)), (share + right).sum((0, 2, 3)))
    present = right.sum((0, 2, 3)) > 0
    dice = 2 * both[present] / either[present].clamp(min=1.0)
    return 1 - dice.mean() if present.any() else logits.sum() * 0


def caption_loss(model: CLIP, images: Tensor, texts: Tensor, classes: Tensor) -> Tensor:
    """Contrast of class tokens B D with the captions Q D; a caption has several right images."""
    logits = model.logit_scale.exp() * images @ texts.T  # B Q
    by_image = F.cross_entropy(logits, classes)
    present = torch.tensor(sorted(set(classes.tolist())))
    right = (classes[None] == present[:, None]).float()  # P B
    log_share = logits.T[present].log_softmax(dim=-1)
    by_text = -(log_share * right).sum(-1) / right.sum(-1)
    loss: Tensor = (by_image + by_text.mean()) / 2
    return loss
