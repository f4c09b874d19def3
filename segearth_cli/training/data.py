"""What trainings look at: random crops of images, or of optical and radar images of one place.

Crop ``i`` of a run is the same whenever and by whichever process it is read: a run that is resumed,
or shared by several processes, sees what it would have seen.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.pairs import open_pair
from segearth_cli.geo.raster import Scene, open_scene
from segearth_cli.geo.sensors import NEUTRAL_GREY
from segearth_cli.geo.values import Reading
from segearth_cli.options import SceneOptions
from segearth_cli.training.sources import Place, leaving_out

OPEN_AT_ONCE = 64  # images per process
TRIES = 10  # places in an image, before it counts as empty
LEAST_VALID = 0.5  # share of a crop that must hold data

Views = tuple[Scene, ...]

logger = logging.getLogger(__name__)


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
        return replace(self, images=tuple(x.to(device, non_blocking=True) for x in self.images))

    def pin_memory(self) -> Batch:
        """The same in memory that a GPU copies from while others compute; DataLoader calls it."""
        return replace(self, images=tuple(image.pin_memory() for image in self.images))


def collate(crops: Sequence[Crop]) -> Batch:
    """Crops as a batch."""
    return Batch(
        tuple(torch.stack(images) for images in zip(*(crop.images for crop in crops), strict=True)),
        tuple(crop.source for crop in crops),
        tuple(reason for crop in crops for reason in crop.skipped),
    )


class Opener:
    """Opens images, and keeps the last ones open.

    Every process needs its own: whoever reads in other processes must not have read before, since
    processes that are forked share open files.
    """

    def __init__(self, *options: SceneOptions) -> None:
        # GDAL's threads, once begun, do not survive in processes that are forked
        self._options = [replace(own, threads=1) for own in options]
        self._open: OrderedDict[tuple[str, ...], Views] = OrderedDict()
        self._readings: dict[tuple[str, ...], tuple[Reading, ...]] = {}  # of all that ever were

    def __call__(self, sources: tuple[str, ...]) -> Views:
        """An image's scene, or the scenes of a pair on one grid.

        Raises:
            SceneError: they cannot be opened, or do not match.
        """
        views = self._open.pop(sources, None)
        if views is None:
            views = self._opened(sources)
            self._readings[sources] = tuple(scene.reading for scene in views)
        self._open[sources] = views
        while len(self._open) > OPEN_AT_ONCE:
            for scene in self._open.popitem(last=False)[1]:
                scene.close()
        return views

    def _opened(self, sources: tuple[str, ...]) -> Views:
        known = self._readings.get(sources, ())
        with leaving_out(sources):
            if len(sources) == 2:
                own, others = self._options
                return open_pair(sources[0], sources[1], own, others, known)
            (own,) = self._options
            return (open_scene(sources[0], own, reading=known[0] if known else None),)


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
        sizes = [(place.rows(place.size[0])[1], place.size[1]) for place in places]
        height, width = max(sizes, key=min)
        if min(height, width) < crop:
            logger.warning(
                "--crop %d is more than any image has: the largest has %d x %d pixels to train on, "
                "and its reflection around them fills the crop",
                crop,
                width,
                height,
            )
        counts = [max(1, height * width // crop**2) for height, width in sizes]
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


def fixed_crops(
    places: Sequence[Place], opener: Opener, crop: int, most: int
) -> tuple[list[Crop], dict[Place, str]]:
    """Crops to measure on: side by side over each image, thinned out to at most ``most``.

    With them the places that cannot be used, and why: of which a crop cannot be read, or none holds
    data.

    Raises:
        UsageError: not one can be used.
    """
    corners: list[tuple[Place, int, int]] = []
    for place in thinned(places, most):
        first, rows = place.rows(place.size[0])
        corners += [
            (place, top, left)
            for top in range(first, first + max(1, rows - crop + 1), crop)
            for left in range(0, max(1, place.size[1] - crop + 1), crop)
        ]
    found: dict[Place, list[Crop]] = {}
    unusable: dict[Place, str] = {}
    for place, top, left in thinned(corners, most):
        if place in unusable:
            continue
        try:
            views = opener(place.sources)
            first, rows = place.rows(views[0].grid.height)
            if top >= first + rows or left >= views[0].grid.width:
                continue  # of control points the head tells the size roughly
            images, valid = cut(views, (top, first + rows), left, crop)
        except SceneError as error:
            unusable[place] = str(error)
            continue
        own = found.setdefault(place, [])
        if valid >= LEAST_VALID:
            own.append(Crop(images, f"{views[0].source} {left},{top}"))
    crops = [crop for place, own in found.items() if place not in unusable for crop in own]
    if not crops:
        empty = "their crops hold hardly any data; hold out others, or more of them"
        problem = next(iter(unusable.values()), empty)
        raise UsageError(f"no held-out image can be used: {problem}")
    for place, own in found.items():
        if not own:
            unusable.setdefault(place, f"{place.sources[0]} holds hardly any data")
    return crops, unusable


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
    for scene in views:
        image, valid = scene.read(top, height, left, width)
        images.append(image)
        everywhere &= valid
    beyond = ((0, 0), (0, crop - height), (0, crop - width))
    for image in images:
        image[:, ~everywhere] = NEUTRAL_GREY  # what one view lacks, no other may show
    padded = (np.pad(image, beyond, mode="reflect") for image in images)
    return tuple(map(torch.from_numpy, padded)), float(everywhere.mean())
