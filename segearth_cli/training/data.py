"""What trainings look at: random crops of images, or of optical and radar images of one place.

Crop ``i`` of a run is the same whenever and by whichever process it is read: a run that is resumed,
or shared by several processes, sees what it would have seen.
"""

from __future__ import annotations

import csv
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.pairs import open_pair, shared_grid
from segearth_cli.geo.raster import Scene, open_scene
from segearth_cli.geo.source import environment, gdal_settings, opened
from segearth_cli.options import SceneOptions

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".jp2", ".vrt")
OPEN_AT_ONCE = 64  # images per process
TRIES = 10  # places in an image, before it counts as empty
LEAST_VALID = 0.5  # share of a crop that must hold data
LONE_HELD_OUT = 0.25  # share of the rows of an image that is the only one, at least
WHOLE_FILE = 1 << 20  # bytes: of larger files the digest takes size, head and tail
HEAD = 1 << 16

Views = tuple[Scene, ...]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """An image, or an optical and a radar image of one place; and which of its rows."""

    sources: tuple[str, ...]
    first: float = 0.0  # share of the height
    last: float = 1.0

    def rows(self, height: int) -> tuple[int, int]:
        """The first row and the number of rows."""
        first = round(self.first * height)
        return first, max(1, round(self.last * height) - first)


@dataclass(frozen=True)
class Crop:
    """One crop: of each source an image in [0, 1], 3 x side x side."""

    images: tuple[Tensor, ...]
    source: str
    skipped: tuple[str, ...] = ()  # what was found unreadable on the way


@dataclass(frozen=True)
class Batch:
    """Crops of equal size: of each source B x 3 x side x side."""

    images: tuple[Tensor, ...]
    sources: tuple[str, ...]
    skipped: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        images = tuple(image.to(device, non_blocking=True) for image in self.images)
        return Batch(images, self.sources, self.skipped)


def collate(crops: Sequence[Crop]) -> Batch:
    """Crops as a batch."""
    return Batch(
        tuple(torch.stack(images) for images in zip(*(crop.images for crop in crops), strict=True)),
        tuple(crop.source for crop in crops),
        tuple(reason for crop in crops for reason in crop.skipped),
    )


@dataclass(frozen=True)
class Sources:
    """Places to train on and places to measure on, and how they are opened."""

    train: tuple[Place, ...]
    held_out: tuple[Place, ...]
    skipped: tuple[str, ...]  # what does not match, one line each

    @property
    def digest(self) -> str:
        """The sha256 over names, sizes and contents of all files."""
        total = hashlib.sha256()
        for part in (self.train, self.held_out):
            for source in (source for place in part for source in place.sources):
                total.update(f"{Path(source).name}\0{_content_digest(source)}\0".encode())
        return total.hexdigest()


def _content_digest(source: str) -> str:
    """Of a file's bytes, its head and tail if it is large; of the name, if it is no file."""
    path = Path(source)
    if not path.is_file():
        return source
    size = path.stat().st_size
    total = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        if size <= WHOLE_FILE:
            total.update(stream.read())
        else:
            total.update(stream.read(HEAD))
            stream.seek(-HEAD, 2)
            total.update(stream.read(HEAD))
    return total.hexdigest()


def find_images(paths: Sequence[str]) -> list[str]:
    """The images in folders, and those named one by one.

    Raises:
        UsageError: a folder without images.
    """
    found: list[str] = []
    for path in paths:
        if not Path(path).is_dir():
            found.append(path)
            continue
        inside = [p for p in sorted(Path(path).rglob("*")) if p.suffix.lower() in SUFFIXES]
        if not inside:
            raise UsageError(f"there is no image in {path}; they end with {' '.join(SUFFIXES)}")
        found.extend(map(str, inside))
    return list(dict.fromkeys(found))


def image_sources(paths: Sequence[str], held_out: float) -> Sources:
    """Images that can be opened, some of them held out.

    Raises:
        UsageError: fewer than two are left.
    """
    good: list[Place] = []
    skipped: list[str] = []
    for source in find_images(paths):
        problem = _problem(image_size, source)
        if problem is None:
            good.append(Place((source,)))
        else:
            skipped.append(problem)
    return _split(good, held_out, skipped, "images")


def pair_sources(
    optical: str | None, sar: str | None, table: str | None, held_out: float
) -> Sources:
    """Pairs of images by equal stems or by a table, those that match; some of them held out.

    Raises:
        UsageError: the table cannot be read, or fewer than two pairs are left.
    """
    if table is not None:
        places, parts, skipped = _pairs_of_table(Path(table))
    else:
        places, skipped = _pairs_by_stem(str(optical), str(sar))
        parts = [""] * len(places)
    good: list[tuple[Place, str]] = []
    for place, part in zip(places, parts, strict=True):
        problem = _problem(shared_grid, *place.sources)
        if problem is None:
            good.append((place, part))
        else:
            skipped.append(problem)
    if any(part == "val" for _, part in good):
        train = tuple(place for place, part in good if part != "val")
        return _checked(train, tuple(p for p, part in good if part == "val"), skipped, "pairs")
    return _split([place for place, _ in good], held_out, skipped, "pairs")


def _pairs_by_stem(optical: str, sar: str) -> tuple[list[Place], list[str]]:
    if not Path(optical).is_dir() and not Path(sar).is_dir():  # two files: one pair
        return [Place((optical, sar))], []
    first, second = (_by_name(folder) for folder in (optical, sar))
    skipped = [
        f"{path} has no partner of that name"
        for own, other in ((first, second), (second, first))
        for name in own.keys() - other.keys()
        for path in own[name]
    ]
    places = []
    for name in first:
        paths = [*first[name], *second.get(name, ())]
        if len(paths) > 2 and name in second:
            skipped.append(f"{' and '.join(paths)} have one name but for the suffix")
        elif name in second:
            places.append(Place(tuple(paths)))
    return places, sorted(skipped)


def _by_name(folder: str) -> dict[str, list[str]]:
    """A folder's images by their path in it, without suffix."""
    found: dict[str, list[str]] = {}
    for path in find_images([folder]):
        name = Path(path).relative_to(folder) if Path(folder).is_dir() else Path(Path(path).name)
        found.setdefault(str(name.with_suffix("")), []).append(path)
    return found


def _pairs_of_table(path: Path) -> tuple[list[Place], list[str], list[str]]:
    """Places, the part that each is for (train, val or nothing), and what is skipped."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is no CSV in UTF-8"
        raise UsageError(f"cannot read the pairs of {path}: {reason}") from error
    if not rows or not {"optical", "sar"} <= set(rows[0]):
        raise UsageError(
            f"{path} must have columns optical and sar (and split, if you like, with train or val)"
        )
    places: list[Place] = []
    parts, skipped = [], []
    for number, row in enumerate(rows, 2):
        names = [(row[column] or "").strip() for column in ("optical", "sar")]
        if not all(names):
            skipped.append(f"line {number} of {path} names no pair")
            continue
        part = (row.get("split") or "").strip().lower()
        if part not in ("", "train", "val"):
            raise UsageError(
                f"line {number} of {path} has the split {part!r}; write train, val or nothing, and "
                "leave out the pairs that are for neither"
            )
        places.append(Place(tuple(str(path.parent / name) for name in names)))
        parts.append(part)
    return places, parts, skipped


def _problem(check: Callable[..., object], *sources: str) -> str | None:
    """What is wrong with an image or a pair, in one line."""
    try:
        check(*sources)
    except SceneError as error:
        return str(error)
    return None


def _split(good: list[Place], share: float, skipped: list[str], kind: str) -> Sources:
    """Hold out a share, evenly spread over the names; of a lone image some of its rows."""
    if len(good) == 1:
        last = 1 - max(share, LONE_HELD_OUT)
        above, below = replace(good[0], last=last), replace(good[0], first=last)
        return _checked((above,), (below,), skipped, kind)
    count = min(max(1, round(share * len(good))), len(good) - 1)
    middles = {int((i + 0.5) * len(good) / count) for i in range(count)} if count > 0 else set()
    train = tuple(place for i, place in enumerate(good) if i not in middles)
    return _checked(train, tuple(good[i] for i in sorted(middles)), skipped, kind)


def _checked(
    train: tuple[Place, ...], held_out: tuple[Place, ...], skipped: list[str], kind: str
) -> Sources:
    for reason in skipped:
        logger.warning("skipped: %s", reason)
    if not train or not held_out:
        raise UsageError(
            f"only {len(train) + len(held_out)} of the {kind} can be used"
            + (f" ({len(skipped)} were skipped)" if skipped else "")
            + ": there must be at least one to train on and one to measure on"
        )
    return Sources(train, held_out, tuple(skipped))


def image_size(source: str) -> tuple[int, int]:
    """Height and width, from the file's head.

    Raises:
        SceneError: it is no raster.
    """
    with environment(gdal_settings(source)), opened(source) as src:
        return src.height, src.width


class Opener:
    """Opens images, and keeps the last ones open.

    Every process needs its own: whoever reads in other processes must not have read before, since
    processes that are forked share open files.
    """

    def __init__(self, *options: SceneOptions) -> None:
        # GDAL's threads, once begun, do not survive in processes that are forked
        self._options = [replace(own, threads=1) for own in options]
        self._open: OrderedDict[tuple[str, ...], Views] = OrderedDict()

    def __call__(self, sources: tuple[str, ...]) -> Views:
        """An image's scene, or the scenes of a pair on one grid.

        Raises:
            SceneError: they cannot be opened, or do not match.
        """
        views = self._open.pop(sources, None)
        if views is None:
            try:
                if len(sources) == 1:
                    views = (open_scene(sources[0], self._options[0]),)
                else:
                    views = open_pair(sources[0], sources[1], self._options[0], self._options[1])
            except UsageError as error:  # options that this image cannot follow
                raise SceneError(f"{' and '.join(sources)}: {error}") from error
        self._open[sources] = views
        while len(self._open) > OPEN_AT_ONCE:
            for scene in self._open.popitem(last=False)[1]:
                scene.close()
        return views


class RandomCrops(Dataset[Crop]):
    """Endless random crops; an image has a share in them by its size.

    Args:
        places: what to crop.
        opener: how it is opened.
        crop: pixels a side.
        seed: of the order and the places.
        turns: turn and mirror each crop at random.
    """

    def __init__(
        self, places: Sequence[Place], opener: Opener, crop: int, seed: int, turns: bool = False
    ) -> None:
        self._places = places
        self._open = opener
        self._crop = crop
        self._seed = seed
        self._turns = turns
        counts = []
        for place in places:
            height, width = image_size(place.sources[0])
            counts.append(max(1, place.rows(height)[1] * width // crop**2))
        self._owners = np.repeat(np.arange(len(places)), counts)
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        """Crops of an epoch."""
        return len(self._owners)

    def __getitem__(self, index: int) -> Crop:
        """Crop ``index`` of the run; of another image where one cannot be used.

        Raises:
            SceneError: no image can be used.
        """
        epoch, place = divmod(index, len(self))
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self._seed, 0, epoch)).permutation(len(self))
            self._order = epoch, order
        rng = np.random.default_rng((self._seed, 1, index))
        skipped: dict[str, None] = {}
        for attempt in range(len(self)):
            owner = self._owners[self._order[1][(place + attempt) % len(self)]]
            try:
                views = self._open(self._places[owner].sources)
                images = self._cut(views, self._places[owner], rng)
            except SceneError as error:
                skipped[str(error)] = None
                continue
            return Crop(images, views[0].source, tuple(skipped))
        raise SceneError(f"not one image can be used: {next(iter(skipped), 'there is none')}")

    def _cut(self, views: Views, place: Place, rng: np.random.Generator) -> tuple[Tensor, ...]:
        first, rows = place.rows(views[0].grid.height)
        for _ in range(TRIES):
            top, left = (
                int(rng.integers(0, max(0, side - self._crop) + 1))
                for side in (rows, views[0].grid.width)
            )
            images, valid = cut(views, (first + top, first + rows), left, self._crop)
            if valid >= LEAST_VALID:
                return self._turned(images, rng) if self._turns else images
        raise SceneError(f"{views[0].source} holds hardly any data")

    def _turned(self, images: tuple[Tensor, ...], rng: np.random.Generator) -> tuple[Tensor, ...]:
        """All images with the same one of the eight symmetries of a square."""
        quarters, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        turned = (torch.rot90(image, quarters, (1, 2)) for image in images)
        return tuple((x.flip(2) if mirrored else x).contiguous() for x in turned)


def fixed_crops(places: Sequence[Place], opener: Opener, crop: int, most: int) -> list[Crop]:
    """Crops to measure on: side by side over each image, thinned out to at most ``most``.

    Raises:
        UsageError: not one can be used.
    """
    corners: list[tuple[Place, int, int]] = []
    for place in thinned(places, most):
        with suppress(SceneError):  # named when the images were found, or not in the way
            grid = opener(place.sources)[0].grid
            first, rows = place.rows(grid.height)
            corners += [
                (place, top, left)
                for top in range(first, first + max(1, rows - crop + 1), crop)
                for left in range(0, max(1, grid.width - crop + 1), crop)
            ]
    found = []
    for place, top, left in thinned(corners, most):
        with suppress(SceneError):
            views = opener(place.sources)
            first, rows = place.rows(views[0].grid.height)
            images, valid = cut(views, (top, first + rows), left, crop)
            if valid >= LEAST_VALID:
                found.append(Crop(images, f"{views[0].source} {left},{top}"))
    if not found:
        raise UsageError("no held-out image can be used; hold out others, or more of them")
    return found


def thinned(things: Sequence[Any], most: int) -> Sequence[Any]:
    """At most so many, evenly spread."""
    return things[:: max(1, -(-len(things) // most))]


def cut(
    views: Views, rows: tuple[int, int], left: int, crop: int
) -> tuple[tuple[Tensor, ...], float]:
    """A crop of every view, and the share of it that all views have data in.

    Args:
        views: of one grid.
        rows: where the crop begins, and where it must end; its reflection goes on from there, as
            it does where the image is too narrow.
        left: first column.
        crop: pixels a side.
    """
    top = rows[0]
    height, width = min(crop, rows[1] - top), min(crop, views[0].grid.width - left)
    images, everywhere = [], np.ones((height, width), bool)
    beyond = ((0, 0), (0, crop - height), (0, crop - width))
    for scene in views:
        image, valid = scene.read(top, height, left, width)
        everywhere &= valid
        images.append(np.pad(image, beyond, mode="reflect"))
    return tuple(torch.from_numpy(image) for image in images), float(everywhere.mean())
