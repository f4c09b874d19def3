"""How a map was made, as each of its files carries it: enough to tell, compare and make it again.

Which files carry it where is in `geo.recorded`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from segearth_cli import __version__
from segearth_cli.errors import SegEarthError
from segearth_cli.geo.recorded import Record, is_of_segment
from segearth_cli.model.files import file_digest
from segearth_cli.model.folder import ModelFolder
from segearth_cli.model.prompts import (
    ClassChoice,
    class_text,
    parse_classes,
    preset_names,
    read_preset,
)
from segearth_cli.names import file_and_layer
from segearth_cli.options import DEFAULT_BACKGROUND, ModelOptions, SegmentOptions
from segearth_cli.parse import colour_text
from segearth_cli.plain import plain

PROMPTS = "each word in open_clip's 80 ImageNet templates"
# the rest of the options changes speed, places or names, and no map
_OF_NO_MATTER = (
    "max_memory",
    "outputs",
    "probabilities",
    "stac",
    "acquired",
    "source_item",
    "overwrite",
    "replace_maps",
    "progress",
    "radar_db",
    "polarisation",
    "threads",
)
_OF_NO_MATTER_TO_MODELS = ("device", "batch_size")
# what makes two maps of one source the same
_COMPARED = ("version", "source_digest", "model_digest", "also_read")


def settings_record(
    options: SegmentOptions, folder: ModelFolder, precision: str, digest: Mapping[str, Any]
) -> Record:
    """What a map depends on, known before it is made: see `same_settings`.

    ``precision`` is what the network runs in, ``digest`` the source's.
    """
    name = folder.card.name if options.model.model == "auto" else options.model.model
    as_run = replace(options, model=replace(options.model, model=name, precision=precision))
    aoi = None if options.aoi is None else file_and_layer(options.aoi)[0]
    return {
        "version": __version__,
        "source_digest": dict(digest),
        "model_digest": folder.digest(),
        "options": as_json(as_run),
        "also_read": {
            name: file_digest(Path(path))
            for name, path in (("aoi", aoi), ("upsampler", options.model.upsampler))
            if path is not None and Path(path).is_file()
        },
    }


def same_settings(recorded: Record, settings: Record) -> bool:
    """Whether a map was made with these settings, of the same source, by the same model."""
    return is_of_segment(recorded) and _identity(recorded) == _identity(plain(settings))


def _identity(record: Record) -> Record:
    """What a map depends on; how its source and its model were called is no part of it."""
    options = dict(record["options"])
    model = options.get("model")
    options["model"] = {**model, "model": None} if isinstance(model, dict) else model
    return {"options": options, **{name: record.get(name) for name in _COMPARED}}


def as_json(options: SegmentOptions) -> Record:
    """The options that a map depends on, as JSON has them."""
    values = {k: v for k, v in asdict(options).items() if k not in _OF_NO_MATTER}
    values["model"] = {k: v for k, v in values["model"].items() if k not in _OF_NO_MATTER_TO_MODELS}
    return dict(plain(values))


def command_again(record: Record, output: str, place: Sequence[str]) -> str | None:
    """The command line that makes the output once more, quoted for a shell.

    ``place`` are the words that say what is to be written.

    ``None`` where no command line says such classes: names with bars come from Python.

    Raises:
        SegEarthError: the record was written by another version, and cannot be read; or a preset
            cannot.
    """
    presets = {name: read_preset(name) for name in preset_names()}
    try:
        class_words = _class_words(record["options"], presets)
        options = option_words(record["options"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SegEarthError(
            f"the record in {output} was written by segearth {record['version']}, and this is "
            f"{__version__}: no command can be made of it"
        ) from error
    if class_words is None:
        return None
    source = no_option(record["source"])
    return shlex.join(["segearth", "segment", source, *class_words, *options, *place])


def no_option(source: str) -> str:
    """A scene's name as a command line takes it: one that begins with a dash is no option."""
    return f"./{source}" if source.startswith("-") else source


def _class_words(options: Record, presets: Mapping[str, ClassChoice]) -> list[str] | None:
    """How the classes, their background and the threshold are said; some are those of presets."""
    classes = tuple(map(tuple, options["classes"]))
    colours = tuple(colour and tuple(colour) for colour in options["colours"])
    background = options["background"] and tuple(options["background"])
    usual = 0.0
    own_choice = (classes, colours, background)
    known = [
        name
        for name, own in presets.items()
        for way in (own, own.without_background())
        if (way.classes, way.colours, way.background) == own_choice
    ]
    if known and colours:
        words, usual = ["--preset", known[0]], presets[known[0]].threshold
        if presets[known[0]].background != background:
            words.append("--no-background")
    else:
        if any("\0" in word for synonyms in classes for word in synonyms):
            return None  # no shell passes it on
        text = class_text(classes)
        if parse_classes(text) != classes:
            return None
        words = [f"--classes={text}"]
        if background is None:
            words.append("--no-background")
        elif background != DEFAULT_BACKGROUND:
            words.append(f"--background={'|'.join(background)}")
        if any(colours):
            said = zip(classes, colours, strict=True)
            pairs = [(own[0], colour) for own, colour in said if colour is not None]
            words.append(f"--colours={colour_text(pairs)}")
    if options["threshold"] != usual:
        words.append(f"--threshold={options['threshold']}")
    return words


def option_words(options: Record) -> list[str]:
    """All options but of the classes that are not what they are by default (see `as_json`)."""
    model = options["model"]
    said = {k: v for k, v in options.items() if k not in _SAID_OTHERWISE}
    defaults = {field.name: plain(field.default) for field in fields(SegmentOptions)}
    words = [_word(name, value) for name, value in said.items() if value != defaults[name]]
    words += [f"--co={name}={value}" for name, value in options["creation_options"]]
    usual = {field.name: field.default for field in fields(ModelOptions)}
    return words + [_word(name, value) for name, value in model.items() if value != usual[name]]


_SAID_OTHERWISE = ("classes", "background", "colours", "threshold", "creation_options", "model")


def _word(name: str, value: Any) -> str:
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return flag
    if name == "nodata" and float(value) == math.inf:
        value = "none"
    return f"{flag}={','.join(map(str, value)) if isinstance(value, list) else value}"
