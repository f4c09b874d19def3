"""Checkpoints of open_clip architectures made into model folders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segearth_cli.errors import ModelError, OutputError, UsageError
from segearth_cli.model.card import CARD, ModelCard
from segearth_cli.model.files import file_digest, read_checkpoint
from segearth_cli.model.folder import ModelFolder, open_model_folder, save_model_folder
from segearth_cli.names import counted

if TYPE_CHECKING:
    from torch import Tensor

NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # beside the weights, OpenAI's


def folder_of_file(text: str, sensor: str, cache: Path) -> ModelFolder | None:
    """The model of ``ARCH:FILE``, converted once and kept; ``None`` where this is no such text.

    It runs with the paper's settings for the sensor, and bilinear.

    Raises:
        UsageError: open_clip has no such architecture.
        ModelError: the file is no checkpoint of it.
        OutputError: the cache cannot be written.
    """
    architecture, colon, name = text.partition(":")
    file = Path(name).expanduser()
    if not colon or not file.is_file():
        return None
    plain_config(architecture)
    place = cache / f"{file.stem}-{architecture}-{file_digest(file)[:16]}"
    own = {
        "description": f"{architecture} of {file.name}",
        "licence": "unknown: the user's own file",
        "made_by": "converted from ARCH:FILE",
        "extra": {"architecture": architecture},
    }
    if not (place / CARD).is_file():
        state, config = encoder_parts(file, architecture)
        card = ModelCard.for_sensor(file.stem, "optical", **own)  # whatever it is wanted for first
        try:
            save_model_folder(place, state, config, card, overwrite=place.exists())
        except OutputError:
            if not (place / CARD).is_file():  # no other process was faster
                raise
    return replace(open_model_folder(place), card=ModelCard.for_sensor(file.stem, sensor, **own))


def plain_config(architecture: str) -> dict[str, Any]:
    """open_clip's configuration of a plain CLIP architecture, whose images a transformer reads.

    Raises:
        UsageError: open_clip has none of that name, or it is of another kind.
    """
    import open_clip

    config: dict[str, Any] | None = open_clip.get_model_config(architecture)
    keys = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
    is_plain = config is not None and {"vision_cfg", "text_cfg"} <= set(config) <= keys
    if config is None or not is_plain or _is_foreign(config) or _is_resnet(config):
        raise UsageError(
            f"{architecture!r} is no plain CLIP vision transformer of open_clip's; give one such "
            "as ViT-B-16-quickgelu, ViT-B-32 or ViT-L-14"
        )
    return config


def _is_foreign(config: dict[str, Any]) -> bool:
    """Whether a tower is another library's."""
    names = (*config["vision_cfg"], *config["text_cfg"])
    return any(name.startswith(("hf_", "timm_")) for name in names)


def _is_resnet(config: dict[str, Any]) -> bool:
    """Whether the vision tower has stages, of so many layers each."""
    return isinstance(config["vision_cfg"].get("layers"), list)


def encoder_parts(path: Path, architecture: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of a checkpoint and the open_clip configuration that they belong to.

    A checkpoint may do without ``logit_scale``: the model's card has its own.

    Raises:
        ModelError: not a checkpoint, or of another architecture.
    """
    import open_clip
    import torch

    state = read_checkpoint(path)
    model_cfg = plain_config(architecture)
    with torch.device("meta"):  # names and shapes alone
        expected = open_clip.CLIP(**model_cfg).state_dict()
    state = _without_prefix(state, expected)
    state = {name: value for name, value in state.items() if name not in NOT_WEIGHTS}
    state.setdefault("logit_scale", torch.tensor(math.log(1 / 0.07)))  # open_clip's first value
    if wrong := _misfit(state, expected):
        raise ModelError(
            f"{path} is not a checkpoint of {architecture}: {wrong}; give its own architecture, "
            "or another file"
        )
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    weights = {name: state[name].reshape(expected[name].shape) for name in expected}
    return weights, {"model_cfg": model_cfg, "preprocess_cfg": preprocess}


def _without_prefix(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without what wrappers put before all their names, as ``clip_model.``.

    Those of which no name comes to be an expected one stay as they are.
    """
    bare = state
    while not bare.keys() & expected.keys():
        firsts = {name.partition(".")[0] for name in bare}
        bare = {name.partition(".")[2]: value for name, value in bare.items()}
        if len(firsts) > 1 or "" in bare:
            return state
    return bare


def _misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Which weights are not as expected, in words; none where all are."""
    both = sorted(state.keys() & expected.keys())
    reshaped = [name for name in both if _shape(state[name]) != _shape(expected[name])]
    kinds = {
        "missing": sorted(expected.keys() - state.keys()),
        "unknown": sorted(state.keys() - expected.keys()),
        "of another shape": reshaped,
    }
    said = []
    for kind, names in kinds.items():
        if names:
            others = f" and {counted(len(names) - 1, 'other')} are" if names[1:] else " is"
            said.append(f"{names[0]}{others} {kind}")
    if reshaped:
        own, wanted = (weights[reshaped[0]].shape for weights in (state, expected))
        said[-1] += f" ({'x'.join(map(str, own))}, not {'x'.join(map(str, wanted))})"
    return ", ".join(said)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape; a single number has none, however it was saved."""
    return tuple(tensor.shape) if tensor.numel() > 1 else ()
