"""Labelled datasets on disk: where images and labels lie, and what the labels' values mean."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePath
from typing import Any

from segearth_cli.errors import UsageError
from segearth_cli.geo.tiling import window_offsets
from segearth_cli.names import plain_name
from segearth_cli.options import ATTENTIONS, BACKGROUND_NAMES, SENSORS
from segearth_cli.plain import is_finite, is_whole
from segearth_cli.presets import read_presets
from segearth_cli.scores import IGNORED
from segearth_cli.words import Words

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

METRICS = ("mIoU", "foreground IoU")


@dataclass(frozen=True)
class Layout:
    """One way in which a dataset lies on disk; folders are relative to its root.

    Attributes:
        images, labels: folders, absolute ones too; a ``*`` in both stands for the same name.
        image_suffix, label_suffix: what follows the stem that an image and its label share.
        list: a text file that names the images to be used; a preset's need not be there.
        stems: those to be used.
        grey: labels are masks whose values from this on are class 1.
        patch: width and height of the pieces that the authors cut large images into.
        overlap: of neighbouring pieces, in pixels.
    """

    images: str
    labels: str
    image_suffix: str
    label_suffix: str
    list: str | None = None
    stems: tuple[str, ...] = ()
    grey: int | None = None
    patch: tuple[int, int] | None = None
    overlap: int = 0


@dataclass(frozen=True)
class Dataset(Words):
    """A labelled dataset and the protocol it is measured by (``None``: the model's own setting).

    Attributes:
        classes: synonyms per class, in the order of the labels' indices.
        background_index: the class of pixels below the threshold; none where no class is one.
        long_side: pixels that images are resized to; 0 leaves them as they are.
        palette: colours of the classes, where labels are RGB pictures.
        colours: red, green, blue and class index of further colours.
        reduce_zero_label: label 0 says nothing, and the others start at 1.
    """

    name: str
    classes: tuple[tuple[str, ...], ...]
    layouts: tuple[Layout, ...]
    sensor: str = "optical"
    background_index: int | None = None
    threshold: float = 0.0
    long_side: int = 0
    window: int | None = None
    stride: int | None = None
    attention: str | None = None
    modulated_blocks: int | None = None
    global_bias: float | None = None
    metric: str = "mIoU"
    paper_score: float | None = None
    palette: tuple[tuple[int, int, int], ...] = ()
    colours: tuple[tuple[int, int, int, int], ...] = ()
    reduce_zero_label: bool = False
    ignore: tuple[int, ...] = field(default=(IGNORED,))


@dataclass(frozen=True)
class Sample:
    """An image and its label."""

    image: Path
    label: Path
    layout: Layout


def read_dataset(name: str) -> Dataset:
    """A preset by name, or a dataset of one's own by a TOML or JSON file in the same form.

    Raises:
        UsageError: there is none, or the file says something that no dataset has.
    """
    if not name.lower().endswith((".toml", ".json")):
        known = read_presets()
        if name not in known:
            raise UsageError(
                f"no dataset is named {name!r}; give a .toml or .json file, or one of "
                f"{', '.join(known)}"
            )
        return _dataset(known[name], name)
    try:
        text = Path(name).read_text(encoding="utf-8")
        content = tomllib.loads(text) if name.lower().endswith(".toml") else json.loads(text)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{name} does not describe a dataset; start with name and classes")
    return _dataset({"name": Path(name).stem, **content}, name)


def _dataset(content: dict[str, Any], origin: str) -> Dataset:
    """The description of a file or a preset, checked."""
    content = dict(content)
    suffixes = {
        key: content.pop(key, ".png" if key == "label_suffix" else ".tif")
        for key in ("image_suffix", "label_suffix")
    }
    layouts = content.pop("layouts", None)
    if not layouts:  # then there is one, described here
        layouts = [{key: content.pop(key) for key in _OF_LAYOUTS if key in content}]
    content.pop("model", None)  # the paper's; the user says which one runs
    known = {f.name for f in fields(Dataset)}
    unknown = sorted(set(content) - known)
    if unknown:
        where = "" if unknown[0] not in _OF_LAYOUTS else " beside [[layouts]]; put it into each"
        raise UsageError(
            f"{origin}: nothing is called {unknown[0]!r}{where}; known are {sorted(known)}"
        )
    try:
        dataset = Dataset(
            **{
                **{key: _frozen(value) for key, value in content.items() if value is not None},
                "classes": _frozen(content["classes"]),
                "layouts": tuple(
                    Layout(**{**suffixes, **{k: _frozen(v) for k, v in layout.items()}})
                    for layout in layouts
                ),
            }
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{origin} does not describe a dataset ({error}); give classes, images and labels"
        ) from error
    _check_types(dataset, _OF_DATASETS, origin)
    for layout in dataset.layouts:
        _check_types(layout, _OF_LAYOUTS, origin)
    dataset = replace(dataset, classes=tuple(map(_words, dataset.classes)))
    if dataset.background_index is None:
        dataset = replace(dataset, background_index=_background(dataset.names))
    _check(dataset, origin)
    return dataset


def _background(names: tuple[str, ...]) -> int | None:
    """The class that is called background, or as good as."""
    return next((i for i, name in enumerate(names) if name.casefold() in BACKGROUND_NAMES), None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_folder(value: Any) -> bool:
    return _is_text(value) and value.count("*") <= 1


def _are_whole(numbers: Any, count: int, most: float = math.inf) -> bool:
    """Whether these are so many whole numbers from 0 to ``most``."""
    return _is_tuple(numbers, lambda number: is_whole(number, 0, most)) and len(numbers) == count


def _is_tuple(values: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(values, tuple) and all(map(of, values))


def _is_class(words: Any) -> bool:
    return _is_text(words) or (_is_tuple(words, _is_text) and len(words) > 0)


# what each key holds, in words, and whether a value is that; where it may be left out None is too
_Kinds = dict[str, tuple[str, Callable[[Any], bool]]]
_OF_DATASETS: _Kinds = {
    "name": ("a name", _is_text),
    "classes": (
        "a list of two to 254 names, or lists of synonyms",
        lambda value: _is_tuple(value, _is_class) and 2 <= len(value) < IGNORED,
    ),
    "sensor": (f"one of {', '.join(SENSORS)}", lambda value: value in SENSORS),
    "background_index": ("the number of a class, from 0 on", is_whole),
    "threshold": (
        "a number from 0 to 1",
        lambda value: is_finite(value) and 0 <= value <= 1,
    ),
    "long_side": ("a whole number of pixels, or 0", is_whole),
    "window": ("a whole number of pixels, or 0", is_whole),
    "stride": ("a whole number of pixels from 1 on", lambda value: is_whole(value, 1)),
    "attention": (f"one of {', '.join(ATTENTIONS)}", lambda value: value in ATTENTIONS),
    "modulated_blocks": ("a whole number from 1 on", lambda value: is_whole(value, 1)),
    "global_bias": ("a number", is_finite),
    "metric": (f"one of {', '.join(METRICS)}", lambda value: value in METRICS),
    "paper_score": ("a number", is_finite),
    "palette": (
        "a list of red,green,blue from 0 to 255",
        lambda value: _is_tuple(value, lambda colour: _are_whole(colour, 3, 255)),
    ),
    "colours": (
        "a list of red,green,blue,class",
        lambda value: _is_tuple(value, lambda colour: _are_whole(colour, 4, 255)),
    ),
    "reduce_zero_label": ("true or false", lambda value: isinstance(value, bool)),
    "ignore": (
        "a list of whole numbers",
        lambda value: _is_tuple(value, lambda number: type(number) is int),
    ),
}
_OF_LAYOUTS: _Kinds = {
    "images": ("a folder, with one * at most", _is_folder),
    "labels": ("a folder, with one * at most", _is_folder),
    "image_suffix": ("a text such as .tif", _is_text),
    "label_suffix": ("a text such as .png", _is_text),
    "list": ("the name of a file", _is_text),
    "stems": ("a list of names", lambda value: _is_tuple(value, _is_text)),
    "grey": ("a whole number", is_whole),
    "patch": (
        "two whole numbers of pixels",
        lambda value: _are_whole(value, 2) and min(value) >= 1,
    ),
    "overlap": ("a whole number of pixels, or 0", is_whole),
}


def _check_types(described: Dataset | Layout, kinds: _Kinds, origin: str) -> None:
    """Refuse a value that a key cannot have.

    Raises:
        UsageError: there is one.
    """
    optional = {f.name for f in fields(described) if f.default is None}
    for key, (wanted, holds) in kinds.items():
        value = getattr(described, key)
        if not (holds(value) or (value is None and key in optional)):
            shown = json.dumps(value, default=str)
            raise UsageError(f"{origin}: {key} is {shown}; it must be {wanted}")


def _check(dataset: Dataset, origin: str) -> None:
    """Refuse what does not go together.

    Raises:
        UsageError: something does not.
    """
    classes = len(dataset.classes)
    checks = {
        "background_index is no class": (dataset.background_index or 0) < classes,
        "a threshold needs a class called background": dataset.threshold == 0
        or dataset.background_index is not None,
        "foreground IoU is of two classes": dataset.metric == "mIoU" or classes == 2,
        "a class is named twice": len({plain_name(name) for name in dataset.names}) == classes,
        "palette is at most one red,green,blue a class": len(dataset.palette) <= classes,
        "palette has one colour for two classes": len({*dataset.palette}) == len(dataset.palette),
        "colours are red,green,blue,class each": all(
            index < classes or index == IGNORED for *_, index in dataset.colours
        ),
        "stride exceeds window": not (dataset.window and dataset.stride)
        or dataset.stride <= dataset.window,
        "overlap is smaller than patch": all(
            layout.patch is None or layout.overlap < min(layout.patch) for layout in dataset.layouts
        ),
        "a * in labels stands for the one in images": all(
            "*" not in layout.labels or "*" in layout.images for layout in dataset.layouts
        ),
    }
    for message, holds in checks.items():
        if not holds:
            raise UsageError(f"{origin}: {message}")


def _words(words: Any) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else tuple(words)


def _frozen(value: Any) -> Any:
    """Lists as tuples, at any depth."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def find_samples(dataset: Dataset, root: Path, names: Path | None = None) -> list[Sample]:
    """The images under a root that have a label, in the first layout that has any.

    Args:
        dataset: whose layouts are tried.
        root: the dataset's folder.
        names: a text file with the stems, or file names, to be used.

    Raises:
        UsageError: nothing lies there as the dataset's layouts say, or an image has no label.
    """
    if not root.is_dir():
        raise UsageError(f"--root {root} is no folder; name the folder of the dataset")
    wanted = _listed(names) if names is not None else None
    if wanted == set():
        raise UsageError(f"--list {names} names nothing; write a stem a line")
    is_preset = dataset.name in read_presets()  # whose authors' lists need not be there, nor fit
    for layout in dataset.layouts:
        samples = _samples(layout, root)
        if not any(sample.label.is_file() for sample in samples):
            continue
        own = root / layout.list if layout.list else None
        chosen, origin = set(layout.stems), f"stems of {dataset.name}"
        if wanted is not None:
            chosen, origin = wanted, f"--list {names}"
        elif own is not None and (own.is_file() or not is_preset):
            chosen, origin = _listed(own), str(own)
        if chosen:
            if wanted is not None or not is_preset:
                _check_list(chosen, samples, layout, root, origin)
            samples = [s for s in samples if chosen & _calls(s, layout, root)]
        if not samples:
            raise UsageError(f"no image under {root / layout.images} is one of those to be used")
        missing = next((s for s in samples if not s.label.is_file()), None)
        if missing is not None:
            raise UsageError(f"{missing.image} has no label at {missing.label}")
        return samples
    tried = ", ".join(
        f"{layout.images}/*{layout.image_suffix} with {layout.labels}/*{layout.label_suffix}"
        for layout in dataset.layouts
    )
    raise UsageError(f"no image of {dataset.name} with its label under {root}; looked for {tried}")


def _listed(path: Path) -> set[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read the list {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read the list {path}: it is no text in UTF-8") from error
    return {line.strip() for line in text.splitlines() if line.strip()}


def _check_list(
    chosen: set[str], samples: Sequence[Sample], layout: Layout, root: Path, origin: str
) -> None:
    """Refuse a name of a list that no image has, or several in different folders."""
    times = Counter(name for sample in samples for name in _calls(sample, layout, root))
    for name in sorted(chosen):
        if not times[name]:
            raise UsageError(f"{origin} names {name}, and no image is called so")
        if times[name] > 1:
            raise UsageError(
                f"{origin} names {name}, and {times[name]} images are called so; name them from "
                "the dataset's folder on"
            )


def _calls(sample: Sample, layout: Layout, root: Path) -> set[str]:
    """What a list may call a sample: its stem, or either file's name with or without suffix, or
    its image's from the dataset's folder on.
    """
    stem = sample.image.name.removesuffix(layout.image_suffix)
    names = {stem, sample.image.name, sample.image.stem, sample.label.name}
    if sample.image.is_relative_to(root):
        inside = sample.image.relative_to(root)
        names |= {inside.as_posix(), inside.with_name(stem).as_posix()}
    return names


def _samples(layout: Layout, root: Path) -> list[Sample]:
    """All images of a layout, in the order of their names, with where their labels should be."""
    samples = []
    images = PurePath(layout.images)  # without ./ and a slash at the end
    base, inside = (
        (Path(images.anchor), images.relative_to(images.anchor))
        if images.is_absolute()
        else (root, images)
    )
    before, star, after = inside.as_posix().partition("*")
    for folder in sorted(base.glob(str(inside))) if star else [base / inside]:
        place = folder.relative_to(base).as_posix()
        part = place.removeprefix(before).removesuffix(after) if star else ""
        labels = root / layout.labels.replace("*", part)
        for image in sorted(folder.glob(f"*{layout.image_suffix}")):
            stem = image.name.removesuffix(layout.image_suffix)
            label = labels / f"{stem}{layout.label_suffix}"
            is_label = labels == folder and image.name.endswith(layout.label_suffix)
            if not is_label or len(layout.label_suffix) <= len(layout.image_suffix):
                samples.append(Sample(image, label, layout))
    return samples


def pieces(height: int, width: int, layout: Layout) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the pieces that an image is measured in: all of it, or patches."""
    across, down = layout.patch or (width, height)
    for row in window_offsets(height, down, max(down - layout.overlap, 1)):
        for column in window_offsets(width, across, max(across - layout.overlap, 1)):
            yield slice(row, min(height, row + down)), slice(column, min(width, column + across))
