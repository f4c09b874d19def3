"""One seed, one scene: the story in one function."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from .canvas import GSD_M, Array, Canvas
from .ground import draw_lots, draw_parcels, draw_roads, draw_water, draw_zones
from .layout import (
    bank_trees,
    driving,
    lay_main_roads,
    lay_parcels,
    lay_streets,
    lay_tracks,
    lay_water,
    lay_zones,
    outside,
    place_houses,
    zone_trees,
)
from .objects import draw_cars, draw_house, draw_trees
from .sensors import expose, radar
from .styles import STYLES, varied

CRS = "EPSG:32632"
ORIGIN_M = (664_400.0, 5_334_900.0)  # UTM easting and northing of the upper-left corner, seed 0


@dataclass(frozen=True)
class Scene:
    """A rendered scene: optical H W 3 uint8, sar 2 H W float32 dB (VV, VH), labels H W uint8."""

    optical: NDArray[np.uint8]
    sar: Array
    labels: NDArray[np.uint8]
    transform: Affine
    crs: str = CRS


def render(seed: int, width: int = 1500, height: int = 1200) -> Scene:
    """Render the scene of a seed, width x height pixels of 0.5 m; the same seed, the same scene."""
    rng = np.random.default_rng(seed)
    style = varied(list(STYLES.values())[seed % len(STYLES)], rng)
    canvas = Canvas.blank(width, height, style, rng)
    water = lay_water(canvas, rng)
    mains = lay_main_roads(canvas, rng)
    zones = lay_zones(canvas, mains, water, rng)
    streets = lay_streets(zones, mains, water, rng)
    parcels = lay_parcels(canvas, mains, water, rng)

    trees = outside(zones, draw_parcels(canvas, parcels, rng))
    tracks = lay_tracks(parcels, zones, water, rng)
    draw_zones(canvas, zones)
    draw_water(canvas, water, rng)
    draw_roads(canvas, tracks + streets + mains, water, rng)
    houses = place_houses(canvas, zones, streets + mains, rng)
    parked = draw_lots(canvas, zones, houses, rng)
    for house in houses:
        draw_house(canvas, house, rng)
    trees += zone_trees(canvas, zones, streets, rng) + bank_trees(canvas, water, rng)
    draw_trees(canvas, trees, rng)
    draw_cars(canvas, parked + driving(streets + mains, rng), rng)

    # every scene has ground of its own on the map, kilometre by kilometre in rows of 48
    west, north = ORIGIN_M[0] + 1000 * (seed % 48), ORIGIN_M[1] + 1000 * (seed // 48)
    transform = Affine(GSD_M, 0, west, 0, -GSD_M, north)
    return Scene(expose(canvas, rng), radar(canvas, rng), canvas.labels, transform)
