"""Text features: words set into prompts, encoded by CLIP's text tower, kept on disk."""

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.transformer import text_global_pool
from torch import Tensor

from segearth_cli.device import float32_products

BATCH = 256  # prompts

logger = logging.getLogger(__name__)


def text_features(
    model: Any,
    tokenizer: Any,
    queries: tuple[str, ...],
    cache: Path | None,
    model_digest: str,
) -> Tensor:
    """Text features of the queries: Q x D, each of unit length (paper 5.2).

    Each query is set into open_clip's 80 ImageNet templates, encoded, normalised, averaged and
    normalised again. The features of a query are kept in ``cache`` under a digest of everything
    they depend on; ``None`` keeps nothing.
    """
    rows = []
    for query in queries:
        prompts = [template(query) for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
        key = hashlib.sha256("\0".join([model_digest, *prompts]).encode()).hexdigest()
        path = cache / f"{key}.npy" if cache is not None else None
        row = kept(path) if path is not None else None
        if row is None:
            row = encode_prompts(model, tokenizer, prompts).numpy()
            if path is not None:
                keep(path, row)
        rows.append(torch.from_numpy(row))
    return torch.stack(rows)


def encode_prompts(model: Any, tokenizer: Any, prompts: list[str]) -> Tensor:
    """Mean of the prompts' normalised text features, normalised: D, float32 on the CPU."""
    device = next(model.parameters()).device
    with torch.inference_mode(), float32_products(device):
        batches = [
            F.normalize(encode_text(model, tokens.to(device)).float(), dim=-1)
            for tokens in tokenizer(prompts).split(BATCH)
        ]
        return F.normalize(torch.cat(batches).mean(dim=0), dim=-1).cpu()


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """What ``model.encode_text`` computes, without the padding: B x N tokens -> B x D.

    CLIP's text tower attends to earlier tokens alone and is read at the end token, which has the
    highest number: what comes after it changes nothing, and is most of the 77 tokens.
    """
    is_clip = isinstance(model, open_clip.CLIP) and model.text_pool_type == "argmax"
    if not is_clip or model.attn_mask is None:
        return model.encode_text(tokens)
    length = int(tokens.argmax(dim=-1).max()) + 1
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]  # B N C
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    x = text_global_pool(x, tokens, model.text_pool_type)  # B C
    projection = model.text_projection
    return projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection


def kept(path: Path) -> NDArray[np.float32] | None:
    """A cached array; ``None`` where there is none, or a damaged one."""
    try:
        array: NDArray[np.float32] = np.load(path)
        if not np.isfinite(array).all():
            raise ValueError("they are no numbers")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logger.info("the cached text features in %s are unusable: %s", path, error)
        return None
    return array


def keep(path: Path, array: NDArray[np.float32]) -> None:
    """Cache an array, whole or not at all; a cache that cannot be written is done without."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as stream:
            np.save(stream, array)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        logger.info("text features are not kept in %s: %s", path.parent, error.strerror)
