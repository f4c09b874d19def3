"""The imagery that trains the built-in model: read once into memory, cut into augmented batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from segearth_cli.training.mini_augment import (
    WINDOW,
    Look,
    Pixels,
    augmented,
    chip_part,
    crop,
    dimmed,
    looks_of,
    pasted,
    random_shape,
    relit,
    repeated,
    resized,
)

IGNORE = 255
CHIPS = 0.5  # for each window of a batch
SMALL_CHIPS = 0.6  # share of the steps whose chips are half as large
SMALL_WINDOWS = 0.7  # the same of the windows, for patches so small that half a window is enough
RELIT = 0.4  # share of the windows that take on another image's colours
PLANTED = 0.35  # share of the windows of photographs that show plants of elsewhere
BUILT_UP = 0.2  # share of them that show buildings of elsewhere
TOKENS = 196  # of an image that counts as one: of larger windows there are fewer in a batch

BUILDING = "building"
DUBAI_HELD_OUT = ("tile5", "tile6")
BUILDINGS_HELD_OUT = ("kampala",)
SCENE_CLASSES = ("rest", "building", "road", "water", "tree", "grass", "cropland", "bare ground")


@dataclass(frozen=True)
class Source:
    """One collection: images in memory with a label raster each, or a single class each."""

    name: str
    classes: tuple[str, ...]
    images: Sequence[Pixels]  # H W 3 each
    labels: Sequence[Pixels] | npt.NDArray[np.uint8]  # H W each (IGNORE = unknown), or one number
    share: float  # of the batch
    loss_weight: float = 1.0
    # coarser words for several classes together, used now and then
    groups: tuple[tuple[str, tuple[int, ...]], ...] = ()
    negatives: tuple[str, ...] = ()  # surely absent
    plants: tuple[int, ...] = ()  # classes that show plants well enough to copy them elsewhere
    rest: int | None = None  # the class that has no word of its own
    planted: int | None = None  # the class that plants copied from elsewhere are of

    @property
    def is_chips(self) -> bool:
        """Whether an image has one class as a whole."""
        return isinstance(self.labels, np.ndarray)


@dataclass
class Batch:
    """Augmented windows with their labels, and chips that show one class each."""

    images: torch.Tensor  # B 3 S S uint8; S is 224, or half of it with four times as many images
    labels: torch.Tensor  # B L L uint8, some four by four in a patch; classes of the source
    source: torch.Tensor  # B
    chips: torch.Tensor  # C 3 S S uint8; S is 224, or half of it
    chip_source: torch.Tensor  # C
    chip_class: torch.Tensor  # C


def held_out(path: Path) -> bool:
    """Whether a EuroSAT or UC Merced chip is kept for measuring: one file number in ten."""
    digits = "".join(c for c in path.stem if c.isdigit())
    return int(digits) % 10 == 0


def read_rgb(path: Path) -> Pixels:
    """H W 3 from an ordinary picture or a GeoTIFF."""
    if path.suffix == ".tif":
        import rasterio

        with rasterio.open(path) as scene:
            return np.ascontiguousarray(np.moveaxis(scene.read([1, 2, 3]), 0, -1).astype(np.uint8))
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def read_labels(path: Path) -> Pixels:
    """H W class indices."""
    if path.suffix == ".tif":
        import rasterio

        with rasterio.open(path) as scene:
            return np.asarray(scene.read(1), dtype=np.uint8)
    with Image.open(path) as picture:
        return np.asarray(picture).astype(np.uint8)


def read_chips(folder: Path, measuring: bool) -> tuple[list[Pixels], npt.NDArray[np.uint8]]:
    """Images and class numbers of a folder-per-class collection, one of its two parts."""
    images, labels = [], []
    for number, name in enumerate(chip_classes(folder)):
        for path in sorted((folder / name).glob("*.jpg")):
            if held_out(path) == measuring:
                images.append(read_rgb(path))
                labels.append(number)
    return images, np.asarray(labels, dtype=np.uint8)


def chip_classes(folder: Path) -> tuple[str, ...]:
    """Class folders in alphabetical order."""
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir()))


def read_dubai(folder: Path) -> tuple[list[Pixels], list[Pixels]]:
    """Images of the training tiles, and labels 0..4: building, land, road, vegetation, water."""
    paths = [
        path
        for path in sorted((folder / "images").glob("*.jpg"))
        if not path.stem.startswith(DUBAI_HELD_OUT)
    ]
    labels = [read_labels(folder / "labels" / f"{path.stem}.png") for path in paths]
    return [read_rgb(p) for p in paths], [shifted(label) for label in labels]


def shifted(label: Pixels) -> Pixels:
    """0 (unlabelled) becomes IGNORE, 1..K become 0..K-1."""
    return np.where(label == 0, np.uint8(IGNORE), label - np.uint8(1)).astype(np.uint8)


def read_buildings(folder: Path) -> tuple[list[Pixels], list[Pixels]]:
    """Images of the training places, and labels 0 (anything else), 1 (building)."""
    paths = [
        path
        for path in sorted((folder / "images").glob("*.jpg"))
        if not path.stem.startswith(BUILDINGS_HELD_OUT)
    ]
    return [read_rgb(p) for p in paths], [
        read_labels(folder / "labels" / f"{p.stem}.png") for p in paths
    ]


def read_scenes(folder: Path) -> tuple[list[Pixels], list[Pixels]]:
    """Rendered scenes: NAME.tif beside NAME_labels.tif."""
    labels = sorted(folder.glob("*_labels.tif"))
    images = [path.with_name(path.name.replace("_labels", "")) for path in labels]
    return [read_rgb(p) for p in images], [read_labels(p) for p in labels]


def read_sources(data: Path, scenes: Path | None) -> list[Source]:
    """Everything that trains the model, in memory."""
    absent = ("airplane", "baseballdiamond", "tenniscourt", "storagetanks", "golfcourse")
    sources = [
        Source(
            "dubai",
            ("building", "land", "road", "vegetation", "water"),
            *read_dubai(data / "dubai"),
            share=0.36,
            negatives=("baseballdiamond", "airplane"),
            planted=3,
        ),
        Source(
            "buildings",
            ("rest", "building"),
            *read_buildings(data / "buildings"),
            share=0.12,
            loss_weight=0.7,
            negatives=absent,
            rest=0,
            planted=0,
        ),
    ]
    green = {
        "eurosat": ("Forest", "HerbaceousVegetation", "Pasture"),
        "ucmerced": ("forest", "chaparral"),
    }
    for name, share in (("eurosat", 0.08), ("ucmerced", 0.10)):
        images, labels = read_chips(data / name, measuring=False)
        classes = chip_classes(data / name)
        plants = tuple(n for n, c in enumerate(classes) if c in green[name])
        sources.append(
            Source(
                name,
                classes,
                images,
                labels,
                share=share,
                groups=(("vegetation", plants),),
                plants=plants if name == "ucmerced" else (),  # at 10 m they have no texture
            )
        )
    if scenes is not None:
        sources.append(
            Source(
                "scenes",
                SCENE_CLASSES,
                *read_scenes(scenes),
                share=0.34,
                groups=(("vegetation", (4, 5)), ("land", (7,))),
                negatives=absent,
                rest=0,
            )
        )
    return sources


class Batches(torch.utils.data.IterableDataset[Batch]):
    """Endless augmented batches; made in one background process that shares the images."""

    def __init__(self, sources: Sequence[Source], batch_size: int, patch: int, seed: int) -> None:
        """`batch_size` counts images of 196 patches of ``patch`` pixels a side.

        `seed` makes the sequence repeatable; a resumed run takes another one.
        """
        self.sources = sources
        self.batch_size = batch_size
        self.patch = patch
        self.seed = seed
        self.looks = {i: looks_of(s.images) for i, s in enumerate(sources) if not s.is_chips}
        self.plants = [
            [image for image, label in zip(s.images, s.labels, strict=True) if label in s.plants]
            for s in sources
            if s.plants
        ]

    def __iter__(self) -> Iterator[Batch]:
        """Draw windows from the sources in proportion to their shares."""
        torch.set_num_threads(1)
        rng = np.random.default_rng(self.seed)
        shares = np.asarray([s.share for s in self.sources])
        shares = shares / shares.sum()
        of_chips = [i for i, source in enumerate(self.sources) if source.is_chips]
        sizes = np.sqrt([len(self.sources[i].images) for i in of_chips])
        small_windows = SMALL_WINDOWS if (WINDOW // 2 // self.patch) ** 2 >= TOKENS else 0.0
        while True:
            side, number = self._size(small_windows, rng)
            counts = rng.multinomial(number, shares)
            picks = np.repeat(np.arange(len(self.sources)), counts).tolist()
            points = side // round(self.patch / 4)
            windows = [augmented(*self._window(i, side, points, rng), rng) for i in picks]
            images, labels = zip(*windows, strict=True)
            side, number = self._size(SMALL_CHIPS, rng, TOKENS)
            number = math.ceil(CHIPS * number)
            chip_source = rng.choice(of_chips, number, p=sizes / sizes.sum()).tolist()
            chips, classes = zip(
                *(chip(self.sources[i], side, rng) for i in chip_source), strict=True
            )
            yield Batch(
                stacked(images),
                torch.from_numpy(np.stack(labels)),
                torch.tensor(picks),
                stacked(chips),
                torch.tensor(chip_source),
                torch.tensor(classes),
            )

    def _window(
        self, number: int, side: int, points: int, rng: np.random.Generator
    ) -> tuple[Pixels, Pixels]:
        """One random window of a source: image side side 3, and labels points points."""
        source = self.sources[number]
        if source.is_chips:
            image, label = mosaic(source, side, points, rng)
            (look,) = looks_of([image])
        else:
            image, label, look = self._cut(number, side, points, rng)
        if source.planted is not None:
            if rng.random() < BUILT_UP:
                image, label = self._built_up(number, image, label, rng)
            if self.plants and rng.random() < PLANTED:
                plants = self._plants(side, rng)
                image, label = pasted(image, label, plants, random_shape(side, rng), source.planted)
        if rng.random() < RELIT:
            image = relit(image, look, self._look(rng), rng.uniform(0, 1))
        return image, label

    def _cut(
        self, number: int, side: int, points: int, rng: np.random.Generator
    ) -> tuple[Pixels, Pixels, Look]:
        """A window of a source with label rasters, and how its image looks as a whole."""
        source = self.sources[number]
        pick = int(rng.integers(len(source.images)))
        image, label = crop(source.images[pick], source.labels[pick], side, points, rng)
        return image, label, self.looks[number][pick]

    def _look(self, rng: np.random.Generator) -> Look:
        """That of any image with a label raster."""
        looks = self.looks[int(rng.choice(list(self.looks)))]
        return looks[int(rng.integers(len(looks)))]

    def _plants(self, side: int, rng: np.random.Generator) -> Pixels:
        """Plants all over a window, of chips that show nothing else."""
        chips = self.plants[int(rng.integers(len(self.plants)))]
        part = chip_part(chips[int(rng.integers(len(chips)))], rng)
        return dimmed(repeated(part, side, int(rng.integers(1, 4))), rng)

    def _built_up(
        self, number: int, image: Pixels, label: Pixels, rng: np.random.Generator
    ) -> tuple[Pixels, Pixels]:
        """A window with the buildings of another source's window."""
        donors = [n for n in self.looks if n != number and BUILDING in self.sources[n].classes]
        if not donors:
            return image, label
        donor = int(rng.choice(donors))
        other, places, look = self._cut(donor, len(image), len(label), rng)
        other = relit(other, look, self._look(rng), rng.uniform(0, 1))
        cover = places == self.sources[donor].classes.index(BUILDING)
        cover = np.kron(cover, np.ones([len(image) // len(label)] * 2)).astype(np.float32)
        return pasted(image, label, other, cover, self.sources[number].classes.index(BUILDING))

    def _size(
        self, small: float, rng: np.random.Generator, most: int | None = None
    ) -> tuple[int, int]:
        """Side of a batch's images and their number; half as large with probability ``small``.

        At most ``most`` tokens of an image are used.
        """
        side = WINDOW // 2 if rng.random() < small else WINDOW
        tokens = (side // self.patch) ** 2
        tokens = tokens if most is None else min(tokens, most)
        return side, max(self.batch_size * TOKENS // tokens, 1)


def stacked(images: Sequence[Pixels]) -> torch.Tensor:
    """H W 3 each -> B 3 H W."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def chip(source: Source, side: int, rng: np.random.Generator) -> tuple[Pixels, int]:
    """One augmented chip, side side 3, and its class."""
    number = int(rng.integers(len(source.images)))
    image = resized(chip_part(source.images[number], rng), side, side)
    label = source.labels[number]
    return augmented(image, np.zeros((1, 1), np.uint8), rng)[0], int(label)


def mosaic(
    source: Source, window: int, points: int, rng: np.random.Generator
) -> tuple[Pixels, Pixels]:
    """Chips side by side, 1 x 1 to 4 x 4, with uneven cuts."""
    cells = int(rng.choice([1, 2, 3, 4], p=[0.2, 0.3, 0.3, 0.2]))
    cuts = np.linspace(0, window, cells + 1)
    cuts[1:-1] += rng.uniform(-0.25, 0.25, (cells - 1,)) * window / cells
    edges = cuts.round().astype(int)
    image = np.empty((window, window, 3), np.uint8)
    label = np.empty((window, window), np.uint8)
    for top, bottom in pairwise(edges):
        for left, right in pairwise(edges):
            number = int(rng.integers(len(source.images)))
            size = max(bottom - top, right - left)
            chip = resized(chip_part(source.images[number], rng), size, size)
            image[top:bottom, left:right] = chip[: bottom - top, : right - left]
            label[top:bottom, left:right] = source.labels[number]
    step = window // points
    return image, label[step // 2 :: step, step // 2 :: step]
