"""How an image is cut into tiles, and which coarse features the pixels of each map to."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 8  # pixels a side
COARSE = TILE // 2  # features a side before the doubling


def reach(radius: int) -> int:
    """Coarse features on each side of a pixel that its neighbourhood takes a share of."""
    return radius // 2 + 2


@dataclass(frozen=True, eq=False)
class Run:
    """Tiles ``first`` to ``end`` along one side whose pixels map alike to coarse features.

    Pixel ``offset`` is the first that counts in each, ``count`` the number of them. Away from
    borders they differ by being even or odd alone; at borders each has a map of its own.

    Attributes:
        maps: ways x fine neighbours x coarse neighbours: the share of each coarse feature in each
            fine one. Coarse neighbours are counted from the pixel's first one where there are two
            ways, else from the tile's.
    """

    first: int
    end: int
    offset: int
    count: int
    maps: Tensor

    @property
    def is_inner(self) -> bool:
        """Whether no border is near."""
        return len(self.maps) == 2

    @property
    def ways(self) -> tuple[int, int]:
        """Pixels of a tile as kinds of pixel times pixels of a kind."""
        return len(self.maps), self.count // len(self.maps)

    @property
    def start(self) -> int:
        """The first pixel that counts."""
        return self.first * TILE + self.offset

    def by_tile(self, line: Tensor) -> Tensor:
        """Of numbers along the side those of the run's pixels: tiles x count, a view."""
        return line[self.start :].unfold(0, self.count, TILE)[: self.end - self.first]

    def span(self, radius: int) -> int:
        """Pixels from the first tile's first neighbour to the last tile's last."""
        return (self.end - self.first - 1) * TILE + self.count + 2 * radius

    def coarse(self, radius: int) -> slice:
        """The coarse features, of those with a margin of ``reach``, that the tiles take from."""
        return slice(self.first * COARSE, self.end * COARSE + 2 * reach(radius))


@dataclass(frozen=True)
class Block:
    """A rectangle of tiles: a run down and a run across."""

    rows: Run
    columns: Run

    @property
    def shape(self) -> tuple[int, int]:
        """Tiles down and across."""
        return self.rows.end - self.rows.first, self.columns.end - self.columns.first


@dataclass(frozen=True)
class Chunk:
    """Some of a block's tiles: of these images, these rows of them."""

    block: Block
    images: slice
    rows: slice

    @property
    def grid(self) -> tuple[int, int, int, int, int]:
        """Images, tiles down, tiles across, pixels of a tile down, across."""
        block = self.block
        images, down = (part.stop - part.start for part in (self.images, self.rows))
        return images, down, block.shape[1], block.rows.count, block.columns.count

    def places(self, image: Tensor) -> Tensor:
        """The chunk's pixels in B x H x W x C, as a view: images x down x across x h x w x C."""
        _, down, across, height, width = self.grid
        top = self.block.rows.start + self.rows.start * TILE
        part = image[self.images, top:, self.block.columns.start :]
        view = part.unfold(1, height, TILE).unfold(2, width, TILE)[:, :down, :across]
        return view.movedim(3, -1)

    def write(self, image: Tensor, values: Tensor) -> None:
        """Put values, a row per pixel, into their places in B x H x W x C."""
        self.places(image).copy_(values.view(*self.grid, -1))

    def add(self, image: Tensor, values: Tensor) -> None:
        """Add values, images x pixels x C, to what is in their places in B x H x W x C."""
        self.places(image).add_(values.unflatten(1, self.grid[1:]))


@lru_cache(maxsize=64)
def runs(size: int, radius: int) -> tuple[Run, ...]:
    """The tiles along a side of ``size`` pixels, by how they map to ``size // 2`` features."""
    coarse, edge = size // 2, reach(radius)
    eye = torch.eye(coarse, dtype=torch.float64)[None, None]
    resized = F.interpolate(eye, (size, coarse), mode="bicubic", align_corners=False)[0, 0]
    tiles = -(-size // TILE)
    resized = F.pad(resized, (edge, edge + tiles * COARSE - coarse))  # size x coarse + margins
    pixels = torch.arange(tiles * TILE)[:, None] + torch.arange(-radius, radius + 1)
    pixels = pixels.abs()
    pixels = torch.where(pixels < size, pixels, 2 * (size - 1) - pixels).clamp(min=0)
    inner = inner_maps(radius)
    found: list[Run] = []
    for tile in range(tiles):
        first, end = tile * COARSE, (tile + 1) * COARSE + 2 * edge
        maps = resized[pixels[tile * TILE : (tile + 1) * TILE], first:end]  # TILE n coarse
        if torch.equal(maps, tile_maps(inner)):
            if found and found[-1].is_inner:
                found[-1] = Run(found[-1].first, tile + 1, 0, TILE, inner)
                continue
            maps = inner
        found.append(Run(tile, tile + 1, 0, TILE, maps))
    return tuple(found)


@lru_cache(maxsize=8)
def inner_maps(radius: int) -> Tensor:
    """Maps of an even and an odd pixel away from borders: 2 x n x coarse neighbours."""
    edge, middle = reach(radius), 4 * radius + 8
    eye = torch.eye(2 * middle, dtype=torch.float64)[None, None]
    size = (4 * middle, 2 * middle)
    resized = F.interpolate(eye, size, mode="bicubic", align_corners=False)[0, 0]
    rows = [resized[2 * middle + odd - radius : 2 * middle + odd + radius + 1] for odd in (0, 1)]
    return torch.stack(rows)[..., middle - edge : middle + edge + 1]


def tile_maps(maps: Tensor) -> Tensor:
    """Maps of an even and an odd pixel, as those of a whole tile's pixels."""
    ways, fine, span = maps.shape
    whole = maps.new_zeros(TILE, fine, span + COARSE - 1)
    for pixel in range(TILE):
        whole[pixel, :, pixel // ways : pixel // ways + span] = maps[pixel % ways]
    return whole


def blocks(height: int, width: int, radius: int) -> list[Block]:
    """The blocks of tiles that cover an image."""
    return [
        Block(rows, columns) for rows in runs(height, radius) for columns in runs(width, radius)
    ]


def chunks(images: int, block: Block, most: int) -> Iterator[tuple[slice, list[slice]]]:
    """Some images at a time, and rows of a block's tiles, about ``most`` pixels."""
    down, across = block.shape
    row = across * block.rows.count * block.columns.count
    rows = min(down, max(1, most // row))
    depth = max(1, most // (rows * row))
    parts = [slice(first, min(down, first + rows)) for first in range(0, down, rows)]
    for image in range(0, images, depth):
        yield slice(image, min(images, image + depth)), parts
