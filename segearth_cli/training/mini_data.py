"""The imagery that trains the built-in model: read once into memory, cut into augmented batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

Pixels = npt.NDArray[np.uint8]

WINDOW = 224
IGNORE = 255
SMALL_CHIPS = 0.6  # share of the steps whose chips are half as large
SMALL_WINDOWS = 0.7  # the same of the windows, for patches so small that half a window is enough
RELIT = 0.4  # share of the windows that take on another image's colours
TOKENS = 196  # of an image that counts as one: of larger windows there are fewer in a batch

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
    rest: int | None = None  # the class that has no word of its own

    @property
    def is_chips(self) -> bool:
        """Whether an image has one class as a whole."""
        return isinstance(self.labels, np.ndarray)


@dataclass
class Batch:
    """Augmented windows with their labels, and chips that show one class each."""

    images: torch.Tensor  # B 3 S S uint8; S is 224, or half of it with four times as many images
    labels: torch.Tensor  # B L L uint8, four by four in a patch; classes of the source by number
    source: torch.Tensor  # B
    chips: torch.Tensor  # C 3 S S uint8; S is 224, or half of it
    chip_source: torch.Tensor  # C
    chip_class: torch.Tensor  # C


def held_out(path: Path) -> bool:
    """Whether a EuroSAT or UC Merced chip is kept for measuring: one file number in ten."""
    digits = "".join(c for c in path.stem if c.isdigit())
    return int(digits) % 10 == 0


def looks_of(images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
    """N 2 3: mean and standard deviation of each image's channels, in [0, 1]."""
    thinned = [image[::4, ::4].reshape(-1, 3) / np.float32(255) for image in images]
    return np.stack([np.stack([part.mean(0), part.std(0)]) for part in thinned])


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
        ),
        Source(
            "buildings",
            ("rest", "building"),
            *read_buildings(data / "buildings"),
            share=0.14,
            loss_weight=0.7,
            negatives=absent,
            rest=0,
        ),
    ]
    plants = {
        "eurosat": ("Forest", "HerbaceousVegetation", "Pasture"),
        "ucmerced": ("forest", "chaparral"),
    }
    for name, share in (("eurosat", 0.10), ("ucmerced", 0.12)):
        images, labels = read_chips(data / name, measuring=False)
        classes = chip_classes(data / name)
        groups = (("vegetation", tuple(n for n, c in enumerate(classes) if c in plants[name])),)
        sources.append(Source(name, classes, images, labels, share=share, groups=groups))
    if scenes is not None:
        sources.append(
            Source(
                "scenes",
                SCENE_CLASSES,
                *read_scenes(scenes),
                share=0.28,
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
            points = 4 * side // self.patch
            windows = [augmented(*self._window(i, side, points, rng), rng) for i in picks]
            images, labels = zip(*windows, strict=True)
            side, number = self._size(SMALL_CHIPS, rng, TOKENS)
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
            return mosaic(source, side, points, rng)
        pick = int(rng.integers(len(source.images)))
        image, label = crop(source.images[pick], source.labels[pick], side, points, rng)
        if rng.random() < RELIT:
            other = self.looks[int(rng.choice(list(self.looks)))]
            look = other[int(rng.integers(len(other)))]
            image = relit(image, self.looks[number][pick], look, rng.uniform(0, 1))
        return image, label

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


def augmented(image: Pixels, label: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """A window with a random symmetry and random colours."""
    turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
    image, label = np.rot90(image, turns), np.rot90(label, turns)
    if mirrored:
        image, label = image[:, ::-1], label[:, ::-1]
    return recoloured(image, rng), np.ascontiguousarray(label)


def chip(source: Source, side: int, rng: np.random.Generator) -> tuple[Pixels, int]:
    """One augmented chip, side side 3, and its class."""
    number = int(rng.integers(len(source.images)))
    image = resized(chip_part(source.images[number], rng), side, side)
    label = source.labels[number]
    return augmented(image, np.zeros((1, 1), np.uint8), rng)[0], int(label)


def crop(
    image: Pixels, label: Pixels, window: int, points: int, rng: np.random.Generator
) -> tuple[Pixels, Pixels]:
    """A square of 0.4 to 2.5 times the window's size, at any angle half of the time."""
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.5 else 0.0
    reach = abs(np.cos(angle)) + abs(np.sin(angle))  # box that holds the turned square
    limit = (min(image.shape[:2]) - 1) / reach
    side = min(window * float(np.exp(rng.uniform(np.log(0.4), np.log(2.5)))), limit)
    box = int(side * reach)
    row, col = (int(rng.integers(0, n - box)) for n in image.shape[:2])
    size = round(window * reach)
    patch = resized(image[row : row + box, col : col + box], size, size)
    ticks = (np.arange(points) + 0.5) / points - 0.5  # centred, in sides
    dy, dx = np.meshgrid(ticks, ticks, indexing="ij")
    cos, sin = np.cos(angle), np.sin(angle)
    ys = (box / 2 + side * (cos * dy + sin * dx)).astype(np.int64).clip(0, box - 1)
    xs = (box / 2 + side * (cos * dx - sin * dy)).astype(np.int64).clip(0, box - 1)
    return turned(patch, window, angle, reach), label[row + ys, col + xs]


def resized(image: Pixels, height: int, width: int) -> Pixels:
    """height width 3, smoothed where it shrinks."""
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    tensor = F.interpolate(tensor, (height, width), mode="bilinear", antialias=True)
    return np.asarray(tensor[0].permute(1, 2, 0).contiguous().numpy())


def turned(image: Pixels, window: int, angle: float, reach: float) -> Pixels:
    """The window at `angle` about the centre of a box `reach` times as wide."""
    if angle == 0.0:
        return image
    cos, sin = np.cos(angle) / reach, np.sin(angle) / reach
    theta = torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]], dtype=torch.float32)
    grid = F.affine_grid(theta, [1, 3, window, window], align_corners=False)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    tensor = F.grid_sample(tensor, grid, padding_mode="border", align_corners=False)
    return np.asarray(tensor[0].permute(1, 2, 0).round().to(torch.uint8).numpy())


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


def chip_part(chip: Pixels, rng: np.random.Generator) -> Pixels:
    """A square of at least three fifths of the chip's side."""
    side = int(min(chip.shape[:2]) * rng.uniform(0.6, 1.0))
    row, col = (int(rng.integers(0, n - side + 1)) for n in chip.shape[:2])
    return chip[row : row + side, col : col + side]


def relit(
    image: Pixels, look: npt.NDArray[np.float32], other: npt.NDArray[np.float32], strength: float
) -> Pixels:
    """A window of an image that looks so (2 3), moved towards the look of another."""
    (mean, spread), (new_mean, new_spread) = look, look + strength * (other - look)
    gain = (new_spread / np.maximum(spread, 0.02)).clip(0.5, 2.0)
    return through(image, (np.linspace(0, 1, 256)[:, None] - mean) * gain + new_mean)


def through(image: Pixels, ramp: npt.NDArray[np.floating]) -> Pixels:
    """Every channel by its table: 256 levels x 3 channels, in [0, 1]."""
    table = (ramp * 255).clip(0, 255).astype(np.uint8)
    return np.stack([table[:, c][image[..., c]] for c in range(3)], axis=-1)


_NOISE = np.random.default_rng(0).normal(0, 1, 2 * 3 * WINDOW * WINDOW).astype(np.float32)


def recoloured(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Brightness, contrast, gamma, tint and haze as one table per channel; blur, noise, grey."""
    image = np.ascontiguousarray(image)
    if rng.random() < 0.15:
        side = int(len(image) * rng.uniform(0.4, 0.8))
        image = resized(resized(image, side, side), len(image), len(image))
    if rng.random() < 0.25:  # towards grey, or more colourful
        grey = image.mean(-1, keepdims=True)
        image = (grey + (image - grey) * rng.uniform(0.3, 1.6)).clip(0, 255).astype(np.uint8)
    ramp = np.linspace(0, 1, 256)[:, None]  # 256 levels x 3 channels
    ramp = ramp ** np.exp(rng.normal(0, 0.25))
    middle = image.mean() / 255
    ramp = (ramp - middle) * np.exp(rng.normal(0, 0.2)) + middle
    ramp = ramp * np.exp(rng.normal(0, 0.2)) * np.exp(rng.normal(0, 0.06, 3))
    if rng.random() < 0.15:
        ramp = ramp + rng.uniform(0, 0.4) * (rng.uniform(0.7, 1.0, 3) - ramp)
    image = through(image, ramp)
    if rng.random() < 0.25:
        start = int(rng.integers(_NOISE.size - image.size))
        noise = _NOISE[start : start + image.size].reshape(image.shape)
        image = (image + noise * rng.uniform(1, 8)).clip(0, 255).astype(np.uint8)
    return image
