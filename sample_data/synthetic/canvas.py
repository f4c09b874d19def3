"""The rasters a scene is drawn on: ground colour, class, height above ground."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry

from .styles import BARE, Colour, Rng, Style

GSD_M = 0.5
Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Window = tuple[slice, slice]  # rows, columns


@dataclass
class Canvas:
    """The rasters a scene is drawn on, all H x W at GSD_M."""

    style: Style
    extent: Polygon
    x: Array
    y: Array
    rgb: Array  # H W 3, reflectance as display value, 0 to 255
    labels: NDArray[np.uint8]
    height_m: Array
    slope: Array  # 2 H W, rise per metre along y and x
    taken: Mask  # no building may stand here
    broad: Array  # noise fields of zero mean and unit deviation
    patch: Array
    fine: Array
    grain: Array
    crop_db: Array  # what a field's crop adds to the radar backscatter

    @classmethod
    def blank(cls, width: int, height: int, style: Style, rng: Rng) -> Canvas:
        """Return bare grass (or soil) of width x height pixels."""
        shape = (height, width)
        y, x = (np.mgrid[:height, :width].astype(np.float32) + 0.5) * np.float32(GSD_M)
        canvas = cls(
            style=style,
            extent=box(0, 0, width * GSD_M, height * GSD_M),
            x=x,
            y=y,
            rgb=np.zeros((*shape, 3), np.float32),
            labels=np.zeros(shape, np.uint8),
            height_m=np.zeros(shape, np.float32),
            slope=np.zeros((2, *shape), np.float32),
            taken=np.zeros(shape, bool),
            crop_db=np.zeros(shape, np.float32),
            broad=noise(rng, shape, 400, 40),
            patch=noise(rng, shape, 90, 3, power=1.0),
            fine=noise(rng, shape, 8, 1.0, power=0.8),
            grain=noise(rng, shape, 2, 1, power=0.3),
        )
        bare = style.garden == BARE
        ground = style.soil if bare else style.grass
        canvas.paint(canvas.labels == 0, ground, style.garden)
        return canvas

    def mask(self, shapes: BaseGeometry | Iterable[BaseGeometry]) -> Mask:
        """Return the pixels whose centres lie in the geometries (metres)."""
        shapes = [shapes] if isinstance(shapes, BaseGeometry) else list(shapes)
        return self.burn([(shape, 1) for shape in shapes]) > 0

    def burn(self, pairs: list[tuple[BaseGeometry, int]]) -> NDArray[np.int32]:
        """Return a raster of the values paired with geometries (metres), 0 elsewhere."""
        pairs = [(shape, value) for shape, value in pairs if not shape.is_empty]
        if not pairs:
            return np.zeros(self.labels.shape, np.int32)
        grid = Affine.scale(GSD_M)
        return rasterize(pairs, self.labels.shape, transform=grid, dtype="int32")

    def paint(
        self,
        mask: Mask,
        colour: Colour | Array,
        label: int | None = None,
        window: Window = (slice(None), slice(None)),
        texture: tuple[float, float, float, float] = (0.045, 0.035, 0.06, 0.06),
    ) -> None:
        """Colour a window's masked ground, textured by the broad, patch, fine and grain noise."""
        fields = [field[window][mask] for field in (self.broad, self.patch, self.fine, self.grain)]
        tone = 1 + sum(amount * field for amount, field in zip(texture, fields, strict=True))
        # drier places are yellower: red follows the patches, blue goes against them
        dry = 0.25 * texture[1] * fields[1]
        tint = np.stack([1 + dry, np.ones_like(dry), 1 - dry], axis=-1)
        self.rgb[window][mask] = np.asarray(colour, np.float32) * tone[:, None] * tint
        if label is not None:
            self.labels[window][mask] = label

    def window(self, x: float, y: float, reach_m: float) -> Window | None:
        """Return the rows and columns within reach_m of a point, None when outside."""
        rows, cols = self.labels.shape
        top, bottom = int((y - reach_m) / GSD_M), int((y + reach_m) / GSD_M) + 2
        left, right = int((x - reach_m) / GSD_M), int((x + reach_m) / GSD_M) + 2
        window = slice(max(top, 0), min(bottom, rows)), slice(max(left, 0), min(right, cols))
        small = window[0].stop - window[0].start < 2 or window[1].stop - window[1].start < 2
        return None if small else window

    def local(self, window: Window, x: float, y: float, angle: float) -> list[Array]:
        """Return a window's coordinates along and across a heading from a point, in metres."""
        dx, dy = self.x[window] - np.float32(x), self.y[window] - np.float32(y)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return [dx * c + dy * s, dy * c - dx * s]

    def stamp(
        self,
        window: Window,
        inside: Mask,
        top_m: Array,
        rgb: Array,
        label: int,
    ) -> None:
        """Put a thing of surface top_m on the canvas where it stands above what is there."""
        above = inside & (top_m > self.height_m[window])
        self.height_m[window][above] = top_m[above]
        for axis, slope in enumerate(np.gradient(top_m, GSD_M)):
            self.slope[axis][window][above] = slope[above]
        self.rgb[window][above] = rgb[above]
        self.labels[window][above] = label


def noise(
    rng: Rng, shape: tuple[int, int], coarse_m: float, fine_m: float, power: float = 1.2
) -> Array:
    """Return noise with f^-power amplitudes between two wavelengths, zero mean, unit deviation."""
    white = rng.standard_normal(shape, dtype=np.float32)
    fy = np.fft.fftfreq(shape[0], GSD_M)[:, None]
    fx = np.fft.rfftfreq(shape[1], GSD_M)[None]
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = 1e-6
    band = 1 / (1 + (1 / (coarse_m * frequency)) ** 4) / (1 + (fine_m * frequency) ** 4)
    spectrum = np.fft.rfft2(white) * (band * frequency**-power)
    result = np.fft.irfft2(spectrum, shape)
    return (result / result.std()).astype(np.float32)
