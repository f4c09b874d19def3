"""Models by name: folders, the cache they live in, and how they get there.

A model is a folder in open_clip's own layout plus two files: ``upsampler.safetensors`` (optional)
and ``segearth.json``, the card. Nothing is downloaded but by ``pull``.
"""

import difflib
import functools
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segearth_cli.errors import ModelError, UsageError
from segearth_cli.model.card import ModelCard
from segearth_cli.model.convert import encoder_parts, folder_of_file
from segearth_cli.model.download import RemoteFile, fetch, mismatch
from segearth_cli.model.folder import ModelFolder, open_model_folder, save_model_folder
from segearth_cli.options import SENSORS

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")

PACKAGE = Path(__file__).parents[1]
BUILTIN = PACKAGE / "builtin"
PAPER_MODELS = {"optical": "vit-b-16", "sar": "alignearth-sar"}
BUILTIN_MODELS = {"optical": ("mini",), "sar": ("mini-sar", "mini")}  # the best first
UPSAMPLERS = {
    "simfeatup": RemoteFile(
        url="https://raw.githubusercontent.com/likyoo/SegEarth-OV/main/simfeatup_dev/weights/"
        "xclip_jbu_one_million_aid.ckpt",
        git_blob="d40f00838331331faa04a926ea5991f5203f91a8",
    )
}


@dataclass(frozen=True)
class ModelRow:
    """A model as ``segearth models list`` shows it."""

    name: str
    sensor: str
    where: str  # built in, cached, damaged, not pulled, your file
    size: int | None  # bytes, where known
    licence: str
    description: str
    path: Path | None


@dataclass(frozen=True)
class KnownModel:
    """A model of ``models.json``, and what it is made of."""

    name: str
    description: str
    sensor: str
    architecture: str
    licence: str
    encoder: RemoteFile | None = None  # None: the user has the file
    upsampler: RemoteFile | None = None

    @property
    def sources(self) -> tuple[RemoteFile, ...]:
        """The files to download, the small one first."""
        return tuple(source for source in (self.upsampler, self.encoder) if source is not None)


@functools.cache
def known_models() -> Mapping[str, KnownModel]:
    """The models that can be pulled, by name."""
    table = json.loads((PACKAGE / "models.json").read_text(encoding="utf-8"))
    models = {}
    for name, entry in table.items():
        encoder = entry.pop("encoder", None)
        upsampler = entry.pop("upsampler", None)
        models[name] = KnownModel(
            name,
            **entry,
            encoder=RemoteFile(**encoder) if encoder else None,
            upsampler=UPSAMPLERS[upsampler] if upsampler else None,
        )
    return models


def cache_folder() -> Path:
    """Where pulled models and computed text features are kept: ``SEGEARTH_CACHE`` or the user's."""
    own = os.environ.get("SEGEARTH_CACHE")
    if own:
        return Path(own).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("segearth", appauthor=False)


def resolve_model(name_or_path: str, sensor: str = "optical") -> ModelFolder:
    """The model that a name, a folder, ``ARCH:FILE`` or ``auto`` stands for. Never downloads.

    Args:
        name_or_path: ``auto`` is the paper's model for the sensor when it is in the cache,
            otherwise the built-in one; ``ARCH:FILE`` a checkpoint of an open_clip architecture.
        sensor: ``optical`` or ``sar``, of the scene.

    Raises:
        UsageError: no such name or sensor.
        ModelError: the model is not in the cache, or a part of it is missing or damaged.
    """
    folder = found_model(name_or_path, sensor)
    if name_or_path == "auto" and folder.path.parent == BUILTIN:
        kind = "" if folder.card.sensor == sensor else f" (made for {folder.card.sensor} images)"
        logger.warning(
            "using the small built-in model %s%s; for the paper's run: segearth models pull %s",
            folder.path.name,
            kind,
            PAPER_MODELS[sensor],
        )
    return folder


def found_model(name_or_path: str, sensor: str) -> ModelFolder:
    """What `resolve_model` returns, without a word about which one it is."""
    if sensor not in SENSORS:
        raise UsageError(f"there is no sensor {sensor!r}; choose one of {', '.join(SENSORS)}")
    if name_or_path == "auto":
        return _auto(sensor)
    folder = _find(name_or_path)
    if folder is None:
        path = Path(name_or_path).expanduser()
        if path.is_dir():
            return open_model_folder(path)
        own = folder_of_file(name_or_path, sensor, cache_folder() / "files")
        if own is not None:
            return own
        if name_or_path in known_models():
            raise ModelError(
                f"the model {name_or_path} is not on this machine; run: "
                f"segearth models pull {name_or_path}"
            )
        raise UsageError(_unknown(name_or_path))
    return folder


def model_path(name: str) -> Path:
    """The folder of a built-in or pulled model.

    Raises:
        UsageError: no such name.
        ModelError: it is not in the cache, or a part of it is missing or damaged.
    """
    return resolve_model(name).path


def list_models() -> list[ModelRow]:
    """Every model with a name: built in, in the cache, and those that can be pulled."""
    rows = {}
    for where, root in (("built in", BUILTIN), ("cached", _models_folder())):
        for path in _folders(root):
            rows[path.name] = _row(path, where)
    for name, model in known_models().items():
        where = "not pulled" if model.encoder else "your file"
        size = model.encoder.size if model.encoder else None
        row = ModelRow(name, model.sensor, where, size, model.licence, model.description, None)
        rows.setdefault(name, row)
    return list(rows.values())


def pull(name: str, *, force: bool = False, files: Sequence[Path] = ()) -> ModelFolder:
    """Get a model into the cache: download, check, convert, and put the folder into place.

    Args:
        name: of ``known_models``; a built-in model needs nothing and is returned as it is.
        force: even when it is there.
        files: what the user has got already; a file named as one of the model's sources takes
            its place, and a model without a source is made of the only file.

    Raises:
        UsageError: no such name, or files that do not belong to it.
        ModelError: no network, other bytes than expected, or not a checkpoint of the model.
        OutputError: the cache cannot be written.
    """
    if name not in known_models():
        if any(path.name == name for path in _folders(BUILTIN)):
            if files:
                raise UsageError(f"{name} is built in, and takes no --file")
            return open_model_folder(BUILTIN / name)
        raise UsageError(_unknown(name))
    model, destination = known_models()[name], _models_folder() / name
    if destination.is_dir() and not force:
        if files:
            logger.warning("%s is there already; --force makes it anew of --file", name)
        return open_model_folder(destination)
    downloads = cache_folder() / "downloads" / name
    encoder, upsampler, sources = _gather(model, [Path(file) for file in files], downloads)
    state, config = encoder_parts(encoder, model.architecture)
    card = ModelCard.for_sensor(
        name,
        model.sensor,
        description=model.description,
        licence=model.licence,
        made_by="converted by segearth models pull",
        extra={"architecture": model.architecture, "sources": sources},
    )
    folder = save_model_folder(
        destination,
        state,
        config,
        card,
        _upsampler_state(upsampler) if upsampler else None,
        overwrite=True,
    )
    shutil.rmtree(downloads, ignore_errors=True)
    return folder


def _auto(sensor: str) -> ModelFolder:
    """The paper's model for the sensor, or the built-in one."""
    paper = PAPER_MODELS[sensor]
    if (_models_folder() / paper).is_dir():
        return open_model_folder(_models_folder() / paper)
    for name in BUILTIN_MODELS[sensor]:
        if (BUILTIN / name).is_dir():
            return open_model_folder(BUILTIN / name)
    raise ModelError(f"there is no built-in model; run: segearth models pull {paper}")


def _row(path: Path, where: str) -> ModelRow:
    """A folder's row; a damaged one is listed with what is wrong."""
    try:
        folder = open_model_folder(path)
    except ModelError as error:
        return ModelRow(path.name, "?", "damaged", None, "?", str(error), path)
    card = folder.card
    return ModelRow(
        path.name, card.sensor, where, folder.size, card.licence, card.description, path
    )


def _models_folder() -> Path:
    return cache_folder() / "models"


def _folders(root: Path) -> list[Path]:
    """The model folders in ``root``, by name; those being written begin with a dot."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] not in "._")


def _find(name: str) -> ModelFolder | None:
    """The built-in or cached model of that name."""
    for root in (BUILTIN, _models_folder()):
        if any(path.name == name for path in _folders(root)):
            return open_model_folder(root / name)
    return None


def _unknown(name: str) -> str:
    """What to say of a name that stands for nothing."""
    _, colon, file = name.partition(":")
    if Path(name).is_file():
        return f"{name} is a file: name its architecture too, as ViT-B-16-quickgelu:{name}"
    if colon and Path(file).suffix in _CHECKPOINTS:
        return f"there is no file {file}; check --model"
    names = sorted({row.name for row in list_models()})
    longer = [own for own in names if name and own.startswith(name)]
    close = longer or difflib.get_close_matches(name, names, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"no model or folder {name!r}; {guess}known names: auto, {', '.join(names)}"


def _gather(
    model: KnownModel, files: list[Path], downloads: Path
) -> tuple[Path, Path | None, list[dict[str, str]]]:
    """Encoder and upsampler files, the user's own or fetched, and where each comes from."""
    own = {file.name: file for file in files}
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise UsageError(f"there is no file {', '.join(missing)}; check --file")
    extra = [name for name in own if name not in {source.name for source in model.sources}]
    if model.encoder is None and len(extra) != 1:
        raise UsageError(
            f"{model.name} cannot be downloaded ({model.licence}); get its weights, then run: "
            f"segearth models pull {model.name} --file FILE"
        )
    if model.encoder is not None and extra:
        wanted = ", ".join(source.name for source in model.sources)
        raise UsageError(f"{extra[0]} is no file of {model.name}; its files are {wanted}")
    origins = []
    paths: dict[RemoteFile, Path] = {}
    for source in model.sources:
        paths[source], origin = _source(model, source, own.get(source.name), downloads)
        origins.append(origin)
    encoder = own[extra[0]] if model.encoder is None else paths[model.encoder]
    if model.encoder is None:
        origins.append({"file": encoder.name, "digest": "unknown: the user's own file"})
    return encoder, paths[model.upsampler] if model.upsampler else None, origins


def _source(
    model: KnownModel, source: RemoteFile, own: Path | None, downloads: Path
) -> tuple[Path, dict[str, str]]:
    """One file of the model, checked, and a note of where it comes from."""
    if own is not None:
        problem = mismatch(own, source) if source.is_checkable else ""
        if problem:
            raise ModelError(f"{own} {problem}; get it again from {source.address}")
        return own, {"file": own.name, "digest": source.sha256 or source.git_blob or "unknown"}
    try:
        path, expected = fetch(source, downloads)
    except ModelError as error:
        raise ModelError(
            f"{error}. Without network, get the file elsewhere and run: segearth models pull "
            f"{model.name} --file {source.name}; or copy a pulled folder to "
            f"{_models_folder() / model.name}"
        ) from error
    by = "the project" if source.is_checkable else "the server"
    digest = expected.sha256 or expected.git_blob
    return path, {"url": source.address, "digest": digest, "digest_known_by": by}


def _upsampler_state(path: Path) -> dict[str, "Tensor"]:
    from segearth_cli.model.upsampler import read_upsampler_state

    return read_upsampler_state(path)
