"""What becomes of the built-in model's imagery before it is seen: cuts, light, colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Pixels = npt.NDArray[np.uint8]
Look = npt.NDArray[np.float32]  # of an image: mean and standard deviation of 3 channels, 2 3

WINDOW = 224


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


def chip_part(chip: Pixels, rng: np.random.Generator) -> Pixels:
    """A square of at least three fifths of the chip's side."""
    side = int(min(chip.shape[:2]) * rng.uniform(0.6, 1.0))
    row, col = (int(rng.integers(0, n - side + 1)) for n in chip.shape[:2])
    return chip[row : row + side, col : col + side]


def augmented(image: Pixels, label: Pixels, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """A window with a random symmetry and random colours."""
    turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
    image, label = np.rot90(image, turns), np.rot90(label, turns)
    if mirrored:
        image, label = image[:, ::-1], label[:, ::-1]
    return recoloured(image, rng), np.ascontiguousarray(label)


def looks_of(images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
    """N 2 3: mean and standard deviation of each image's channels, in [0, 1]."""
    thinned = [image[::4, ::4].reshape(-1, 3) / np.float32(255) for image in images]
    return np.stack([np.stack([part.mean(0), part.std(0)]) for part in thinned])


def relit(image: Pixels, look: Look, other: Look, strength: float) -> Pixels:
    """A window of an image that looks so, moved towards the look of another."""
    (mean, spread), (new_mean, new_spread) = look, look + strength * (other - look)
    gain = (new_spread / np.maximum(spread, 0.02)).clip(0.5, 2.0)
    return through(image, (np.linspace(0, 1, 256)[:, None] - mean) * gain + new_mean)


def through(image: Pixels, ramp: npt.NDArray[np.floating]) -> Pixels:
    """Every channel by its table: 256 levels x 3 channels, in [0, 1]."""
    table = (ramp * 255).clip(0, 255).astype(np.uint8)
    return np.stack([table[:, c][image[..., c]] for c in range(3)], axis=-1)


def pasted(
    image: Pixels, label: Pixels, other: Pixels, cover: npt.NDArray[np.float32], number: int
) -> tuple[Pixels, Pixels]:
    """A window with parts of another one, labelled with a number (copy-paste, Ghiasi et al. 2021).

    ``cover`` is the other's share of each pixel, H W.
    """
    mixed = image + cover[..., None] * (other.astype(np.float32) - image)
    step = len(image) // len(label)
    inside = cover[step // 2 :: step, step // 2 :: step] > 0.5
    return mixed.astype(np.uint8), np.where(inside, np.uint8(number), label)


def random_shape(side: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A cover of blobs with soft edges, side side."""
    noise = torch.from_numpy(rng.normal(size=(1, 1, *rng.integers(2, 7, 2)))).float()
    height = F.interpolate(noise, (side, side), mode="bicubic")[0, 0]
    above = height - torch.quantile(height, rng.uniform(0.3, 0.95))
    return np.asarray((above / rng.uniform(0.01, 0.1)).sigmoid().numpy())


def dimmed(plants: Pixels, rng: np.random.Generator) -> Pixels:
    """Plants as dark and grey as they get."""
    (look,) = looks_of([plants])
    grey = look + rng.uniform(0, 1) * (look.mean(1, keepdims=True) - look)
    return relit(plants, look, grey * np.exp(rng.uniform(np.log(0.4), 0.1)), 1.0)


def repeated(image: Pixels, side: int, times: int) -> Pixels:
    """side side 3: an image so many times in a row and in a column, mirrored at the seams."""
    small = resized(image, -(-side // times), -(-side // times))
    rows = [small if n % 2 == 0 else small[::-1] for n in range(times)]
    tall = np.concatenate(rows)
    wide = np.concatenate([tall if n % 2 == 0 else tall[:, ::-1] for n in range(times)], axis=1)
    return wide[:side, :side]


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
