"""A part of an open dataset: its pixels, which of them hold data, and a sample of them."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.features import geometry_mask
from rasterio.windows import Window

from segearth_cli.errors import SceneError
from segearth_cli.geo.failures import GDAL_ERRORS, damage
from segearth_cli.geo.speckle import LeeFilter

_LATTICE = 16  # windows along each side that a large scene's statistics come from
_SAMPLE_SIDE = 64  # pixels of such a window: it lies within one tile of most files
_SAMPLE_PIXELS = (_LATTICE * _SAMPLE_SIDE) ** 2  # a scene of as many is sampled whole
BEYOND_DATA = 1e30  # nothing measures this: undeclared nodata, such as -3.4e38
_TOO_FEW = 0.01  # valid share of the windows below which data may lie between them

Sample = tuple[NDArray[Any], NDArray[np.bool_]]  # raw and valid, both [B, H, W]


@dataclass(frozen=True)
class Region:
    """An open dataset's window, and the polygons (in pixels of that window) that count.

    What is read is all that lies in the window; `inside` tells what the polygons cover.
    """

    source: str
    dataset: Any
    window: Window
    channels: int
    alpha: int | None
    shapes: tuple[Any, ...] | None
    speckle: LeeFilter | None = None
    scales: tuple[tuple[float, float], ...] = ()  # and offsets, of what is measured; () as stored

    def measured(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Return stored values [B, h, w] as what they measure."""
        if not self.scales:
            return raw
        scale, offset = np.array(self.scales).T[:, :, None, None]
        measured: NDArray[np.float32] = (raw * scale + offset).astype(np.float32)
        return measured

    def read(self, window: Window, shape: tuple[int, int]) -> Sample:
        """Return raw and validity, both [B, h, w], of a window, decimated to a shape.

        Without speckle if so asked, unless decimated.
        """
        if self.speckle is None or shape != (window.height, window.width):
            return self._read(window, shape)
        margin = self.speckle.margin
        top, left = (max(0, int(off) - margin) for off in (window.row_off, window.col_off))
        bottom = min(int(self.window.height), int(window.row_off) + shape[0] + margin)
        right = min(int(self.window.width), int(window.col_off) + shape[1] + margin)
        raw, valid = self._read(
            Window(left, top, right - left, bottom - top), (bottom - top, right - left)
        )
        before = (margin - int(window.row_off) + top, margin - int(window.col_off) + left)
        whole = tuple(side + 2 * margin for side in shape)
        padding = [(0, 0)] + [
            (first, side - first - there)
            for first, side, there in zip(before, whole, raw.shape[1:], strict=True)
        ]
        raw, valid = np.pad(raw, padding), np.pad(valid, padding)
        return self.speckle(raw, valid), valid[:, margin:-margin, margin:-margin]

    def _read(self, window: Window, shape: tuple[int, int]) -> Sample:
        indexes = list(range(1, self.channels + 1))
        options = {"window": self._in_file(window), "resampling": Resampling.nearest}
        with self._reading():
            raw = self.dataset.read(indexes, out_shape=(self.channels, *shape), **options)
            masks = self.dataset.read_masks(indexes, out_shape=(self.channels, *shape), **options)
            valid: NDArray[np.bool_] = masks > 0
            if self.alpha:
                valid &= self.dataset.read(self.alpha, out_shape=shape, **options) > 0
        if raw.dtype.kind == "f":
            raw[(raw < -BEYOND_DATA) | (raw > BEYOND_DATA)] = np.nan
        return self.measured(raw), valid

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn GDAL's errors in the block into one of ours."""
        try:
            yield
        except GDAL_ERRORS as error:
            raise SceneError(f"cannot read {self.source}: {damage(error)}") from error

    def _in_file(self, window: Window) -> Window:
        """Return a window of the region as one of the dataset."""
        left, top = window.col_off + self.window.col_off, window.row_off + self.window.row_off
        return Window(left, top, window.width, window.height)

    def alpha_values(self) -> NDArray[Any]:
        """Return some of the alpha band's values, from all over the region."""
        windows = self._sampled()
        columns = len({window.col_off for window in windows})
        places = map(self._in_file, windows[:: columns + 1])  # along diagonals
        with self._reading():
            parts = [self.dataset.read(self.alpha, window=place).ravel() for place in places]
        return np.concatenate(parts)

    def inside(self, window: Window, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return which pixels of a window, decimated to a shape, have their centre in a polygon.

        All of them, where no polygons were asked for.
        """
        if not self.shapes:
            return np.full(shape, self.shapes is None)
        step_x, step_y = window.width / shape[1], window.height / shape[0]
        transform = Affine(step_x, 0.0, window.col_off, 0.0, step_y, window.row_off)
        inside: NDArray[np.bool_] = geometry_mask(self.shapes, shape, transform, invert=True)
        return inside

    def _counted(self, window: Window, shape: tuple[int, int]) -> Sample:
        """Return raw and valid of a window, valid only inside the polygons."""
        raw, valid = self.read(window, shape)
        return raw, valid & self.inside(window, shape)

    def sample(self) -> Sample:
        """Return raw and valid of pixels from all over the region, about a million at most.

        Whole windows at full resolution: what overviews a file has changes nothing, and little of
        it is read. Where too few of them hold data, single pixels of every part are looked at.
        """
        windows = self._sampled()
        raw, valid = _joined(self._counted(w, (w.height, w.width)) for w in windows)
        if len(windows) == 1 or valid.any(axis=0).mean() > _TOO_FEW:
            return raw, valid
        height, width = int(self.window.height), int(self.window.width)
        step = math.ceil(math.sqrt(height * width / _SAMPLE_PIXELS))
        lines = (Window(0, row, width, 1) for row in range(0, height, step))
        rows = (self._counted(line, (1, width)) for line in lines)
        return _joined((raw[..., ::step], valid[..., ::step]) for raw, valid in rows)

    def _sampled(self) -> list[Window]:
        """Return the whole region if it is small, else windows spread evenly over it, by rows."""
        height, width = int(self.window.height), int(self.window.width)
        if height * width <= _SAMPLE_PIXELS:
            return [Window(0, 0, width, height)]
        side_y, rows = _offsets(self.window.row_off, self.window.height)
        side_x, cols = _offsets(self.window.col_off, self.window.width)
        return [Window(col, row, side_x, side_y) for row in rows for col in cols]


def _offsets(start: int, length: int) -> tuple[int, list[int]]:
    """Return the side of windows along one axis and where they begin, relative to ``start``.

    Beginnings are multiples of the side in the file, so that a window lies within one tile.
    """
    side = min(_SAMPLE_SIDE, int(length))
    count = min(_LATTICE, int(length) // side)
    middles = (int((i + 0.5) * length / count) - side // 2 + int(start) for i in range(count))
    return side, [max(0, middle // side * side - int(start)) for middle in middles]


def _joined(parts: Iterable[Sample]) -> Sample:
    """Return parts of equal height side by side."""
    raws, valids = zip(*parts, strict=True)
    return np.concatenate(raws, axis=2), np.concatenate(valids, axis=2)
