"""Checkpoints of open_clip architectures made into model folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from segearth_cli.errors import ModelError, OutputError, UsageError
from segearth_cli.model.card import CARD, ModelCard
from segearth_cli.model.files import file_digest, read_checkpoint
from segearth_cli.model.folder import ModelFolder, open_model_folder, save_model_folder

if TYPE_CHECKING:
    from torch import Tensor


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
    place = cache / f"{file.stem}-{architecture}-{sensor}-{file_digest(file)[:16]}"
    if (place / CARD).is_file():
        return open_model_folder(place)
    state, config = encoder_parts(file, architecture)
    card = ModelCard.for_sensor(
        file.stem,
        sensor,
        description=f"{architecture} of {file.name}",
        licence="unknown: the user's own file",
        made_by="converted from ARCH:FILE",
        extra={"architecture": architecture},
    )
    try:
        return save_model_folder(place, state, config, card, overwrite=place.exists())
    except OutputError:
        if (place / CARD).is_file():  # another process was faster
            return open_model_folder(place)
        raise


def plain_config(architecture: str) -> dict[str, Any]:
    """open_clip's configuration of a plain CLIP architecture, of a ViT or ResNet.

    Raises:
        UsageError: open_clip has none of that name, or it is of another kind.
    """
    import open_clip

    config: dict[str, Any] | None = open_clip.get_model_config(architecture)
    keys = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
    is_plain = config is not None and {"vision_cfg", "text_cfg"} <= set(config) <= keys
    if config is None or not is_plain or _is_foreign(config):
        raise UsageError(
            f"{architecture!r} is no plain CLIP architecture of open_clip's; give one such as "
            "ViT-B-16-quickgelu, ViT-B-32 or ViT-L-14"
        )
    return config


def _is_foreign(config: dict[str, Any]) -> bool:
    """Whether a tower is another library's."""
    names = (*config["vision_cfg"], *config["text_cfg"])
    return any(name.startswith(("hf_", "timm_")) for name in names)


def encoder_parts(path: Path, architecture: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of a checkpoint and the open_clip configuration that they belong to.

    Raises:
        ModelError: not a checkpoint, or of another architecture.
    """
    import open_clip
    import torch

    state = read_checkpoint(path)
    model_cfg = plain_config(architecture)
    with torch.device("meta"):  # names and shapes alone
        expected = open_clip.CLIP(**model_cfg).state_dict()
    wrong = [
        name
        for name in expected.keys() | state.keys()
        if name not in expected
        or name not in state
        or _shape(expected[name]) != _shape(state[name])
    ]
    if wrong:
        raise ModelError(
            f"{path} is not a checkpoint of {architecture}: {sorted(wrong)[0]} and "
            f"{len(wrong) - 1} other weights are missing, unknown or of another shape"
        )
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    weights = {name: state[name].reshape(expected[name].shape) for name in expected}
    return weights, {"model_cfg": model_cfg, "preprocess_cfg": preprocess}


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape; a single number has none, however it was saved."""
    return tuple(tensor.shape) if tensor.numel() > 1 else ()
