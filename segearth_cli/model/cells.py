"""Cells: parts of a scene that several overlapping windows see, doubled with the same kernels.

A cell is half a window wide and high; up to four windows see it, each of which has it in another
of its quarters. Its kernels are computed once, with the pixels around it. Along a window's border,
where the window sees its own reflection instead, they differ: there they are computed again, for
the two windows that have that border (or the one that has both). The results are those of each
window alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from segearth_cli.model.tiles import TILE, Block, Chunk, Run, TileKernels, inner_maps, runs

Quarter = tuple[int, int]  # of a window: 0 or 1 down, 0 or 1 across


@dataclass(frozen=True)
class Side:
    """How a part of a cell lies along one direction: inside, or along the border of windows.

    Attributes:
        run: its tiles.
        pixels: the cell's pixels under it and ``radius`` around it, reflected at the border.
        halves: of windows, those that the part is like this for.
    """

    run: Run
    pixels: tuple[int, ...]
    halves: tuple[int, ...]


@lru_cache(maxsize=8)
def sides(size: int, radius: int) -> tuple[Side, Side, Side]:
    """Inside, a window's first border and its last, along a cell of ``size`` pixels."""
    tiles = size // TILE
    along = runs(8 * TILE, radius)
    low, high = along[0].maps[:radius], along[-1].maps[TILE - radius :]
    first = tuple(abs(pixel) for pixel in range(-radius, 2 * radius))
    last = tuple(size - 1 - pixel for pixel in reversed(first))
    inner = Run(0, tiles, 0, TILE, inner_maps(radius))
    return (
        Side(inner, tuple(range(-radius, size + radius)), (0, 1)),
        Side(Run(0, 1, 0, radius, low), first, (0,)),
        Side(Run(tiles - 1, tiles, TILE - radius, radius, high), last, (1,)),
    )


def cell_sums(
    kernels: TileKernels, image: Tensor, quarters: dict[Quarter, Tensor]
) -> Iterator[tuple[Chunk, tuple[Quarter, ...], Tensor]]:
    """The features of cells' pixels after a doubling, for each window that sees them.

    Args:
        kernels: of the module that doubles.
        image: cells with ``radius`` pixels around them, B x H x W x 3.
        quarters: the windows' coarse features of the cells, with a margin of ``reach``, by the
            quarter of the window that the cell is: B x h x w x C.

    Yields:
        Chunks of pixels, the quarters that they are for, and pixels x quarters x C. What comes
        later replaces what came before.
    """
    radius = kernels.radius
    along = sides(image.shape[1] - 2 * radius, radius)
    parts = sorted(
        product(along, along), key=lambda pair: len(pair[0].halves) + len(pair[1].halves)
    )
    for rows, columns in reversed(parts):  # the inside, then borders, then corners
        own = tuple(q for q in product(rows.halves, columns.halves) if q in quarters)
        if not own:
            continue
        part = image
        for dim, side in ((1, rows), (2, columns)):
            if not side.run.is_inner:
                index = torch.tensor(side.pixels, device=image.device) + radius
                part = part.index_select(dim, index)
        block = Block(rows.run, columns.run)
        for chunk, sums in kernels.sums(part, [quarters[q] for q in own], block):
            yield chunk, own, sums
