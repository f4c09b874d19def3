"""Maps of a dataset's images as class rasters, in a folder that mirrors theirs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine

from segearth_cli.errors import OutputError
from segearth_cli.geo.cog import write_class_raster
from segearth_cli.geo.datasets import Sample
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.legend import Legend
from segearth_cli.geo.pairs import read_head
from segearth_cli.geo.writer import RowWriter
from segearth_cli.staging import Staging, publish


class DatasetMaps:
    """A folder that the map of each image is written into, where nothing is in the way.

    Args:
        folder: where maps lie as the images do below the folder that all of these share.
        samples: the images.
        legend: what the maps' values mean.

    Raises:
        OutputError: there is a map already, or a file in the folder's place.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample], legend: Legend) -> None:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file; name a folder for the maps")
        self._legend = legend
        common = os.path.commonpath([sample.image.parent for sample in samples])
        self._places: dict[Path, Path] = {}
        for sample in samples:
            stem = sample.image.name.removesuffix(sample.layout.image_suffix)
            inside = sample.image.parent.relative_to(common)
            self._places[sample.image] = folder / inside / f"{stem}.tif"
        for place in self._places.values():
            if os.path.lexists(place):
                raise OutputError(f"{place} exists; name another folder for the maps")

    def write(self, sample: Sample, classes: NDArray[np.uint8], tags: Mapping[str, str]) -> None:
        """Write the map of an image, H x W, which lies where the image does, and how it was made.

        Raises:
            OutputError: it cannot be written.
        """
        destination = self._places[sample.image]
        with ExitStack() as stack:
            folder = Staging(stack).beside(destination)
            working = folder / "classes.tif"
            with RowWriter(working, map_grid(sample, classes), nodata=self._legend.nodata) as rows:
                rows.write(classes)
            made = folder / destination.name
            files = write_class_raster(working, made, self._legend, tags)
            publish({file: destination.with_name(file.name) for file in files})


def map_grid(sample: Sample, classes: NDArray[np.uint8]) -> Grid:
    """The image's grid in pixels of its label's size."""
    grid, _ = read_head(str(sample.image))
    height, width = classes.shape
    if (height, width) == (grid.height, grid.width):
        return grid
    if grid.is_in_pixels or grid.gcps:
        return Grid(width, height, Affine.identity())
    across, down = grid.width / width, grid.height / height
    a, b, c, d, e, f = grid.transform[:6]
    return Grid(width, height, Affine(a * across, b * down, c, d * across, e * down, f), grid.crs)
