"""A model folder: open_clip's own layout, plus ``segearth.json`` and ``upsampler.safetensors``."""

import functools
import hashlib
import json
import logging
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from segearth_cli.errors import ModelError, OutputError
from segearth_cli.model.claim import fewest_parameters
from segearth_cli.options import ATTENTIONS, SceneOptions

if TYPE_CHECKING:
    from torch import Tensor

CARD = "segearth.json"
CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # the first is preferred
UPSAMPLER = "upsampler.safetensors"
CHECKPOINT, REPORT = "checkpoint.pt", "training.json"  # of a training in that folder
SENSORS = ("optical", "sar")
Scenes = TypeVar("Scenes", bound=SceneOptions)
REMEDIES = {
    CARD: 'write one, for instance {"name": "my-model", "sensor": "optical"}',
    CONFIG: "copy the open_clip_config.json of the model's architecture there",
}
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # beside the weights, OpenAI's


@dataclass(frozen=True)
class ModelCard:
    """What ``segearth.json`` says: how a model is meant to run and where it comes from.

    The defaults are the paper's optical settings; ``for_sensor`` gives those of the sensor.
    """

    name: str
    sensor: str = "optical"
    attention: str = "segearth"
    modulated_blocks: int = 1
    global_bias: float = 0.3
    logit_scale: float = 50.0
    window: int = 224  # pixels; 0 = the whole scene at once
    stride: int = 112  # pixels
    gsd_m: tuple[float, float] | None = None  # finest and coarsest pixels it was made for
    speckle: int = 0  # side of the Lee filter that its radar images went through; 0 = none
    radar_db: tuple[float, float] | None = None  # decibels it saw as black and white, calibrated
    polarisation: str = ""  # that its radar images had, such as VH
    description: str = ""
    licence: str = ""
    made_by: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)  # all other keys

    def __post_init__(self) -> None:
        """Refuse a card that no model can run by."""
        wrong = [
            f"{name} is {value!r}"
            for name, value, right in (
                ("name", self.name, isinstance(self.name, str) and bool(self.name)),
                ("sensor", self.sensor, self.sensor in SENSORS),
                ("attention", self.attention, self.attention in ATTENTIONS),
                ("modulated_blocks", self.modulated_blocks, _is_whole(self.modulated_blocks, 1)),
                ("global_bias", self.global_bias, _is_number(self.global_bias)),
                (
                    "logit_scale",
                    self.logit_scale,
                    _is_number(self.logit_scale) and self.logit_scale > 0,
                ),
                ("window", self.window, _is_whole(self.window, 0)),
                ("stride", self.stride, _is_whole(self.stride, 1)),
                (
                    "speckle",
                    self.speckle,
                    self.speckle == 0 or (_is_whole(self.speckle, 3) and self.speckle % 2 == 1),
                ),
                ("gsd_m", self.gsd_m, self.gsd_m is None or _is_range(self.gsd_m)),
                ("polarisation", self.polarisation, isinstance(self.polarisation, str)),
                ("radar_db", self.radar_db, self.radar_db is None or _is_span(self.radar_db)),
            )
            if not right
        ]
        if wrong:
            raise ModelError(f"the model card is wrong: {', '.join(wrong)}; correct {CARD}")

    @classmethod
    def for_sensor(cls, name: str, sensor: str, **known: Any) -> "ModelCard":
        """A card with the paper's settings for the sensor, but for what is ``known``."""
        settings: dict[str, Any] = {"attention": "sclip", "modulated_blocks": 2}
        return cls(name, sensor, **({**settings, **known} if sensor == "sar" else known))

    @classmethod
    def read(cls, path: Path) -> "ModelCard":
        """The card in the file; keys that it does not know are kept in ``extra``."""
        content = _read_json(path)
        known = {f.name for f in fields(cls)} - {"extra"}
        card: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in content.items()
            if key in known
        }
        card.setdefault("name", path.parent.name)
        try:
            return cls(**card, extra={k: v for k, v in content.items() if k not in known})
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error

    def radar_read(self, options: Scenes) -> Scenes:
        """The options of a scene, where they are silent as the model's radar images were read."""
        speckle = self.speckle if options.speckle is None else options.speckle
        return replace(
            options, speckle=speckle, radar_db=self.radar_db, polarisation=self.polarisation
        )

    def to_json(self) -> str:
        """The file's content."""
        content = asdict(self)
        extra = content.pop("extra")
        return json.dumps({**content, **extra}, indent=2, ensure_ascii=False) + "\n"


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
        return _read_json(self.config)

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
    config = _read_json(path / CONFIG)
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
    folder = ModelFolder(path, ModelCard.read(path / CARD))
    for file in folder.files:
        if file.suffix == ".safetensors":
            _check_whole(file)
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
    except OSError as error:
        raise OutputError(
            f"cannot write the model folder {destination}: {error.strerror or error}; free some "
            "space or choose another place"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return open_model_folder(destination)


# What open_clip raises over a description or weights that make no sense.
UNLOADABLE = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    OSError,
    LookupError,
    pickle.PickleError,
)


def load_clip(folder: ModelFolder) -> tuple[Any, Any]:
    """The folder's CLIP model, in evaluation mode on the CPU, and its tokenizer.

    Raises:
        ModelError: weights and architecture do not fit together, or the file is damaged.
    """
    import open_clip
    from safetensors import SafetensorError

    _check_claim(folder)
    source = f"local-dir:{folder.path}"
    handlers = list(logging.root.handlers)
    try:
        model = open_clip.create_model(source, require_pretrained=True, weights_only=True)
        tokenizer = open_clip.get_tokenizer(source)
    except (*UNLOADABLE, SafetensorError) as error:
        raise ModelError(
            f"the model folder {folder.path} cannot be loaded: {first_line(error)}; its weights "
            f"and {CONFIG} must belong together"
        ) from error
    finally:
        # open_clip logs through the root logger, whose first call installs a handler on stderr:
        # every later warning of ours would be printed twice.
        logging.root.handlers[:] = handlers
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


def read_checkpoint(path: Path) -> dict[str, "Tensor"]:
    """The weights of a ``.safetensors`` file or of a torch checkpoint, which may not run code.

    Raises:
        ModelError: damaged, or holds other things than weights.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than weights, which could run code, and is refused; save its "
            "state_dict alone, best as safetensors"
        ) from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise ModelError(f"{path} is not a checkpoint: {first_line(error)}") from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not content:
        raise ModelError(f"{path} holds no weights by name; give a state_dict")
    state = {
        name.removeprefix("module."): value
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }
    return {name: value for name, value in state.items() if name not in NOT_WEIGHTS}


def first_line(error: Exception) -> str:
    """The error's message, short enough for a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _rename_over(staging: Path, destination: Path) -> None:
    """Rename one folder to another, which may exist."""
    old = destination.with_name(f".{destination.name}.{os.getpid()}.old")
    if destination.exists():
        os.rename(destination, old)
    os.rename(staging, destination)
    shutil.rmtree(old, ignore_errors=True)


def _owned(tensor: "Tensor") -> "Tensor":
    """The tensor with memory of its own, as safetensors wants it."""
    tensor = tensor.detach().cpu().contiguous()
    shared = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if shared else tensor


def _check_whole(path: Path) -> None:
    """Refuse a safetensors file whose length is not what its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length) if length < size else b"")
            ends = [t["data_offsets"][1] for k, t in header.items() if k != "__metadata__"]
            whole = size == 8 + length + max(ends)
        except (ValueError, TypeError, AttributeError, LookupError):
            whole = False
    if not whole:
        raise ModelError(
            f"{path} is not a whole safetensors file ({size} bytes); copy it again, or pull the "
            "model again with --force"
        )


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(
            f"{path} cannot be read as JSON: {error}; correct or replace it"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object; correct or replace it")
    return content


def file_digest(path: Path) -> str:
    """The sha256 of a file's content."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Of the file's content; size and time of change make the cache notice a new one."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_range(value: object) -> bool:
    return _is_pair(value) and 0 < value[0] <= value[1]


def _is_span(value: object) -> bool:
    return _is_pair(value) and value[0] < value[1]


def _is_pair(value: object) -> TypeGuard[tuple[float, float]]:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
