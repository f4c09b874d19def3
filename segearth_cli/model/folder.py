"""A model folder: open_clip's own layout, plus ``segearth.json`` and ``upsampler.safetensors``."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segearth_cli.errors import ModelError, OutputError
from segearth_cli.model.card import CARD, ModelCard
from segearth_cli.model.claim import fewest_parameters
from segearth_cli.model.files import (
    UNLOADABLE,
    check_length,
    check_numbers,
    file_digest,
    first_line,
    raise_lack_of_memory,
    read_json,
)
from segearth_cli.plain import is_finite
from segearth_cli.signals import signals_wait

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # the first is preferred
POSITIONS = "visual.positional_embedding"
UPSAMPLER = "upsampler.safetensors"
CHECKPOINT, REPORT = "checkpoint.pt", "training.json"  # of a training in that folder
_COUNTS = frozenset(
    "context_length head_width heads image_size layers patch_size vocab_size width".split()
)
REMEDIES = {
    CARD: 'write one, for instance {"name": "my-model", "sensor": "optical"}',
    CONFIG: "copy the open_clip_config.json of the model's architecture there",
}


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that was found to be complete."""

    path: Path
    card: ModelCard

    @property
    def config(self) -> Path:
        """The architecture, as open_clip writes it."""
        return self.path / CONFIG

    @property
    def weights(self) -> Path:
        """The weights of both encoders."""
        return next(file for name in WEIGHTS if (file := self.path / name).is_file())

    def read_config(self) -> dict[str, Any]:
        """What ``config`` holds."""
        return read_json(self.config)

    @property
    def embed_dim(self) -> int:
        """Channels of the features that image and text share."""
        return int(self.read_config()["model_cfg"]["embed_dim"])

    @property
    def upsampler(self) -> Path | None:
        """The folder's own upsampler; ``None`` means bilinear."""
        file = self.path / UPSAMPLER
        return file if file.is_file() else None

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that a result depends on."""
        own = (self.config, self.weights, self.upsampler, self.path / CARD)
        return tuple(file for file in own if file is not None)

    @property
    def size(self) -> int:
        """Bytes of all the files."""
        return sum(file.stat().st_size for file in self.files)

    def digest(self) -> str:
        """The sha256 over names and contents of the files."""
        total = hashlib.sha256()
        for file in self.files:
            total.update(f"{file.name}\0{file_digest(file)}\0".encode())
        return total.hexdigest()


def open_model_folder(path: Path) -> ModelFolder:
    """The model in the folder, all its parts being there.

    Raises:
        ModelError: a file is missing or damaged.
    """
    if not path.is_dir():
        raise ModelError(f"there is no model folder {path}; see segearth models list")
    if not (path / CARD).is_file() and any((path / own).is_file() for own in (CHECKPOINT, REPORT)):
        way = (
            "go on with it (the same command and --resume)"
            if (path / CHECKPOINT).is_file()
            else "begin anew (the same command and --overwrite)"
        )
        raise ModelError(
            f"the training in {path} has not written its model yet, which it does when it "
            f"measures; {way}"
        )
    for name in (CARD, CONFIG):
        if not (path / name).is_file():
            raise ModelError(f"the model folder {path} has no {name}; {REMEDIES[name]}")
    if not any((path / name).is_file() for name in WEIGHTS):
        raise ModelError(
            f"the model folder {path} has no {WEIGHTS[0]}; copy the weights there, or pull the "
            "model again with --force"
        )
    config = read_json(path / CONFIG)
    towers = config.get("model_cfg")
    if not isinstance(towers, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(towers):
        raise ModelError(
            f"{path / CONFIG} does not describe a CLIP model: model_cfg needs embed_dim, "
            "vision_cfg and text_cfg, as open_clip writes it"
        )
    for name in ("vision_cfg", "text_cfg"):
        tower = towers[name]
        if not isinstance(tower, dict) or any(key.startswith(("hf_", "timm_")) for key in tower):
            raise ModelError(
                f"{path / CONFIG} describes a {name} that is not one of open_clip's own "
                "transformers; use a plain CLIP ViT"
            )
        for key, value in tower.items():
            if key in _COUNTS and isinstance(value, float):  # it would be built, and not run
                raise ModelError(
                    f"{path / CONFIG} gives {name} {key} {value!r}; it must be a whole number"
                )
    folder = ModelFolder(path, ModelCard.read(path / CARD))
    for file in folder.files:
        if file.suffix == ".safetensors":
            check_length(file)
    return folder


def save_model_folder(
    destination: Path,
    clip_state: Mapping[str, "Tensor"],
    config: Mapping[str, Any],
    card: ModelCard,
    upsampler_state: Mapping[str, "Tensor"] | None = None,
    *,
    overwrite: bool = False,
    into: bool = False,
) -> ModelFolder:
    """Write a model folder beside ``destination``, check it, and rename it into place.

    Args:
        destination: the folder to make; its parents are made too.
        clip_state: weights of both encoders, named as in open_clip's ``CLIP``.
        config: what ``open_clip_config.json`` holds: ``model_cfg`` and ``preprocess_cfg``.
        card: settings and origin.
        upsampler_state: weights of the upsampler; ``None`` for bilinear.
        overwrite: replace a folder that is there.
        into: put the files into a folder that is there, the card last; what else it holds stays.

    Raises:
        OutputError: the folder exists already, or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if destination.exists() and not (overwrite or into):
        raise OutputError(f"the model folder {destination} exists already; remove it first")
    # Folders that are there may be file systems of their own.
    beside = destination / "model" if into else destination
    staging = beside.with_name(f".{beside.name}.{os.getpid()}.tmp")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (staging / CARD).write_text(card.to_json(), encoding="utf-8")
        for name, state in ((WEIGHTS[0], clip_state), (UPSAMPLER, upsampler_state)):
            if state is not None:
                owned = {key: _owned(value) for key, value in state.items()}
                save_file(owned, staging / name, {"format": "pt"})
                # safetensors lets the owner alone read: what others may read is the umask's to say
                (staging / name).chmod((staging / CARD).stat().st_mode)
        open_model_folder(staging)
        if into:
            # without a card it is no model: one that is there is whole
            (destination / CARD).unlink(missing_ok=True)
            if upsampler_state is None:
                (destination / UPSAMPLER).unlink(missing_ok=True)
            for file in sorted(staging.iterdir(), key=lambda file: file.name == CARD):
                file.replace(destination / file.name)
        else:
            _rename_over(staging, destination)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise OutputError(
            f"cannot write the model folder {destination}: {reason}; free some "
            "space or choose another place"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return open_model_folder(destination)


def load_clip(folder: ModelFolder) -> tuple[Any, Any]:
    """The folder's CLIP model, in evaluation mode on the CPU, and its tokenizer.

    Raises:
        ModelError: weights and architecture do not fit together, the file is damaged, or mean and
            standard deviation are those of no images in [0, 1].
    """
    import open_clip
    import torch
    from safetensors import SafetensorError

    _check_claim(folder)
    source = f"local-dir:{folder.path}"
    handlers = list(logging.root.handlers)
    try:
        _check_patches(folder)
        with torch.random.fork_rng(devices=()):  # weights are random before they are read
            model = open_clip.create_model(source, require_pretrained=True, weights_only=True)
        tokenizer = open_clip.get_tokenizer(source)
    except (*UNLOADABLE, SafetensorError) as error:
        raise_lack_of_memory(error)
        raise ModelError(
            f"the model folder {folder.path} cannot be loaded: {first_line(error)}; its weights "
            f"and {CONFIG} must belong together"
        ) from error
    finally:
        # open_clip logs through the root logger, whose first call installs a handler on stderr:
        # every later warning of ours would be printed twice.
        logging.root.handlers[:] = handlers
    check_numbers(model.state_dict(), folder.weights)
    for name in ("mean", "std"):
        _check_scale(name, model.visual.preprocess_cfg.get(name), folder)
    return model.eval(), tokenizer


def _check_claim(folder: ModelFolder) -> None:
    """Refuse a description of a model that these weights cannot be, before it is built."""
    try:
        parameters = fewest_parameters(folder.read_config()["model_cfg"])
    except UNLOADABLE:
        return  # open_clip will say what is missing
    size = folder.weights.stat().st_size
    if parameters > size:
        raise ModelError(
            f"{folder.config} describes a model of {parameters:,} parameters or more, and "
            f"{folder.weights.name} has {size:,} bytes; they must belong together"
        )


def _check_patches(folder: ModelFolder) -> None:
    """Refuse another grid of patches than the weights have positions for.

    open_clip would resize these, which fails in half precision; windows resize their own anyway.

    Raises:
        ValueError: it is another one.
    """
    from safetensors import safe_open

    if folder.weights.suffix != ".safetensors":
        return
    with safe_open(folder.weights, framework="pt") as weights:
        if POSITIONS not in weights.keys():
            return
        known = weights.get_slice(POSITIONS).get_shape()[0] - 1
    vision = folder.read_config()["model_cfg"]["vision_cfg"]
    image, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    (down, across), (height, width) = (
        side if isinstance(side, list) else (side, side) for side in (image, patch)
    )
    described = (down // height) * (across // width)
    if described != known:
        raise ValueError(
            f"image_size {image} and patch_size {patch} make {described} patches, and the weights "
            f"have positions for {known}"
        )


def _check_scale(name: str, values: Any, folder: ModelFolder) -> None:
    """Refuse a mean or standard deviation that images in [0, 1] cannot have."""
    are_three = isinstance(values, list | tuple) and len(values) == 3
    in_range = are_three and all(is_finite(value) and 0 <= value <= 1 for value in values)
    if not in_range or (name == "std" and 0 in values):
        raise ModelError(
            f"{folder.config} gives {name} as {values!r}; preprocess_cfg needs three numbers, of "
            f"red, green and blue, {'above 0 and up to 1' if name == 'std' else 'from 0 to 1'}"
        )


def _rename_over(staging: Path, destination: Path) -> None:
    """Rename one folder to another, which may exist, and which stays where that fails."""
    old = destination.with_name(f".{destination.name}.{os.getpid()}.old")
    with signals_wait():
        if destination.exists():
            os.rename(destination, old)
        try:
            os.rename(staging, destination)
        except OSError:
            if old.exists():
                os.rename(old, destination)
            raise
    shutil.rmtree(old, ignore_errors=True)


def _owned(tensor: "Tensor") -> "Tensor":
    """The tensor with memory of its own, as safetensors wants it."""
    tensor = tensor.detach().cpu().contiguous()
    shared = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if shared else tensor
