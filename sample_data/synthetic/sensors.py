"""See a drawn scene: a camera in sunlight and a side-looking radar."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .canvas import GSD_M, Array, Canvas
from .styles import BUILDING, CROPLAND, TREE, WATER, Rng


def expose(canvas: Canvas, rng: Rng) -> NDArray[np.uint8]:
    """Light the canvas with one sun and photograph it: haze, blur, noise, 8 bits."""
    azimuth, elevation = rng.uniform(np.radians(100), np.radians(260)), rng.uniform(0.6, 1.0)
    sun_y, sun_x = -np.cos(azimuth), np.sin(azimuth)
    tangent = np.tan(elevation)
    depth = shadow_depth(canvas.height_m, (sun_y, sun_x), tangent)
    shadow = np.clip(depth / 0.5 + 0.3, 0, 1)
    slope_y, slope_x = np.clip(canvas.slope, -2.5, 2.5)
    facing = 1 - (slope_x * sun_x + slope_y * sun_y) / tangent
    facing /= np.sqrt(1 + slope_x**2 + slope_y**2)
    sky = np.array([0.36, 0.40, 0.46], np.float32) * rng.uniform(0.85, 1.2)
    direct = np.clip(facing, 0, 1.7) * (1 - shadow)
    light = sky + (1 - sky) * direct[..., None]

    gain, haze = rng.uniform(0.86, 1.12), rng.uniform(0, 0.16)
    airlight = np.array([172, 184, 200], np.float32)
    tint = rng.normal(1, 0.02, 3).astype(np.float32)
    image = canvas.rgb * light * gain * tint * (1 - haze) + airlight * haze
    image = 128 + (image - 128) * rng.uniform(0.9, 1.15)
    image = blurred(image, rng.uniform(0.5, 0.75))
    image += rng.normal(0, rng.uniform(0.8, 1.8), image.shape)
    return np.clip(np.rint(image), 1, 255).astype(np.uint8)


def shadow_depth(height_m: Array, towards: tuple[float, float], tangent: float) -> Array:
    """Return how far, in metres, each pixel lies below the shadow edge of what stands around it.

    towards is the (y, x) direction of the source, tangent that of its elevation.
    """
    rows, cols = height_m.shape
    reach = int(min(height_m.max() / tangent / GSD_M + 2, 150))
    padded = np.pad(height_m, reach)
    ray = np.full_like(height_m, -1e3)
    for step in range(1, reach):
        dy, dx = reach + round(towards[0] * step), reach + round(towards[1] * step)
        seen = padded[dy : dy + rows, dx : dx + cols] - np.float32(step * GSD_M * tangent)
        np.maximum(ray, seen, out=ray)
    return ray - height_m


def blurred(image: Array, sigma_px: float) -> Array:
    """Return the H W C image seen through a Gaussian point spread of sigma_px pixels."""
    reach = np.arange(-2, 3)
    kernel = np.exp(-0.5 * (reach / sigma_px) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        widths = [(2, 2) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(image, widths, mode="edge")
        length = image.shape[axis]
        image = sum(
            np.float32(w) * np.take(padded, range(k, k + length), axis)
            for k, w in enumerate(kernel)
        )
    return image


# mean backscatter of each class in dB, VV and VH
BACKSCATTER_DB = np.array(
    [(-9, -17), (0, -8), (-16, -24), (-20, -28), (-8, -13), (-12, -18), (-10, -16), (-14, -21)],
    np.float32,
)


def radar(canvas: Canvas, rng: Rng) -> Array:
    """Return the backscatter in dB, 2 H W (VV, VH), of a radar that looks east from the west.

    Each surface element returns at the ground range of its slant distance, so that what
    stands high falls towards the sensor (layover); what it hides returns nothing.
    """
    incidence = np.radians(38.0)
    rows, cols = canvas.labels.shape
    # crowns let part of the wave through: their scattering centre lies below the top
    height_m = canvas.height_m * np.where(canvas.labels == TREE, np.float32(0.6), 1)
    hidden = shadow_depth(height_m, (0, -1), 1 / np.tan(incidence)) > 0.3
    level_db = BACKSCATTER_DB[canvas.labels].transpose(2, 0, 1)  # H W 2 -> 2 H W
    variation = 0.5 * canvas.broad + 0.6 * canvas.patch + 0.4 * canvas.fine
    calm = np.where(canvas.labels == WATER, 0.3, 1)
    crops = (canvas.labels == CROPLAND) * canvas.crop_db
    tilt = 3 * np.clip(canvas.slope[1], -1, 1)  # slopes that face the radar are brighter
    power = 10 ** ((level_db + variation * calm + crops + tilt) / 10) * np.where(hidden, 0.02, 1)

    wall_m = np.diff(height_m, axis=1, append=height_m[:, -1:])
    built = np.roll(canvas.labels, -1, axis=1) == BUILDING
    corner = np.where(built & (wall_m > 2) & ~hidden, wall_m, 0)
    square = 1 / (1 + (np.gradient(height_m, axis=0) / np.maximum(corner, 1)) ** 2)
    bounce = (corner * square)[None] * np.array([2.2, 0.22], np.float32)[:, None, None]

    shift = np.rint(height_m / np.tan(incidence) / GSD_M).astype(int)
    target = np.clip(np.arange(cols) - shift, 0, cols - 1) + np.arange(rows)[:, None] * cols
    image = np.stack([np.bincount(target.ravel(), p.ravel(), rows * cols) for p in power])
    image = image.reshape(2, rows, cols) + bounce
    floor = 10 ** (np.array([-28, -34]) / 10)[:, None, None]  # thermal noise
    image = blurred(image.transpose(1, 2, 0), 0.8).transpose(2, 0, 1) + floor
    looks = 4
    image *= rng.gamma(looks, 1 / looks, image.shape)
    # the resolution is a little coarser than the grid, so that neighbours' speckle is alike
    image = blurred(image.transpose(1, 2, 0), 0.5).transpose(2, 0, 1)
    return (10 * np.log10(image)).astype(np.float32)
