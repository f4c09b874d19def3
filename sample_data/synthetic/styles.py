"""What landscapes are made of: the classes, and the styles with their colours."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

CLASSES = ("other", "building", "road", "water", "tree", "grass", "cropland", "bare ground")
OTHER, BUILDING, ROAD, WATER, TREE, GRASS, CROPLAND, BARE = range(8)
LABEL_COLOURS = (
    *((0, 0, 0), (214, 62, 48), (150, 150, 156), (52, 120, 200)),
    *((24, 92, 44), (132, 196, 92), (236, 196, 84), (172, 126, 88)),
)
Colour = tuple[int, int, int]
Rng = np.random.Generator


@dataclass(frozen=True)
class Style:
    """What a kind of landscape is made of; colours are display values, 0 to 255."""

    zones: tuple[tuple[str, float, float], ...]  # kind, least and greatest radius in metres
    water: tuple[str, ...] = ("river", "lake", "none")
    parcels: tuple[float, ...] = (0.62, 0.2, 0.13, 0.05)  # weights of crop, meadow, wood, waste
    parcel_area_m2: float = 16_000.0
    tree_density: float = 1.0
    garden: int = GRASS
    bank_m: tuple[float, float] = (0.8, 3.5)
    grass: Colour = (112, 124, 78)
    soil: Colour = (160, 138, 110)
    water_colour: Colour = (62, 80, 76)
    foliage: Colour = (74, 94, 56)
    crops: tuple[Colour, ...] = (
        *((186, 168, 116), (100, 126, 70), (84, 110, 62), (146, 120, 94), (128, 138, 84)),
        *((168, 150, 104), (120, 100, 80), (196, 184, 92), (112, 132, 88)),
    )
    roofs: tuple[Colour, ...] = (
        *((158, 96, 76), (140, 84, 68), (170, 112, 88), (126, 78, 66), (150, 90, 66)),
        *((112, 110, 112), (78, 78, 84), (134, 104, 88)),
    )
    flat_share: float = 0.06


CROP, MEADOW, WOOD, WASTE = range(4)  # kinds of parcel
DRY_CROPS = ((172, 152, 112), (190, 168, 124), (104, 122, 70), (150, 126, 92), (88, 112, 62))
STYLES = {
    "dense": Style(zones=(("dense", 230, 420), ("suburb", 120, 200)), flat_share=0.2),
    "suburb": Style(zones=(("suburb", 220, 330), ("industry", 70, 120)), water=("river",)),
    "rural": Style(
        zones=(("village", 60, 130), ("village", 50, 90)),
        parcels=(0.7, 0.14, 0.13, 0.03),
    ),
    "industrial": Style(
        zones=(("industry", 180, 300), ("suburb", 90, 160)),
        parcels=(0.45, 0.25, 0.15, 0.15),
        soil=(156, 142, 112),
    ),
    "coastal": Style(
        zones=(("suburb", 140, 260), ("dense", 70, 110)),
        water=("coast", "lake"),
        bank_m=(3, 16),
        parcels=(0.35, 0.35, 0.2, 0.1),
        soil=(204, 188, 156),
        water_colour=(58, 96, 112),
        roofs=((176, 112, 86), (190, 128, 100), (206, 200, 192), (160, 100, 78), (120, 116, 116)),
    ),
    "desert": Style(
        zones=(("dense", 170, 310), ("village", 90, 160)),
        water=("none", "river", "none", "lake"),
        parcels=(0.3, 0.05, 0.05, 0.6),
        tree_density=0.35,
        garden=BARE,
        grass=(156, 148, 104),
        soil=(200, 176, 140),
        water_colour=(92, 104, 88),
        foliage=(88, 98, 66),
        crops=DRY_CROPS,
        roofs=((222, 214, 200), (206, 194, 174), (190, 176, 154), (228, 224, 216), (170, 160, 148)),
        flat_share=0.85,
    ),
    "lush": Style(
        zones=(("suburb", 110, 220), ("village", 70, 120)),
        water=("river", "lake"),
        parcels=(0.3, 0.35, 0.33, 0.02),
        tree_density=1.7,
        grass=(92, 126, 62),
        foliage=(56, 88, 44),
        crops=((84, 124, 58), (108, 140, 70), (96, 118, 62), (140, 110, 84), (122, 146, 80)),
        water_colour=(70, 82, 62),
    ),
    "harvest": Style(
        zones=(("village", 90, 170), ("industry", 50, 90)),
        parcels=(0.75, 0.08, 0.12, 0.05),
        grass=(146, 142, 92),
        foliage=(86, 92, 54),
        soil=(176, 150, 114),
        crops=((204, 184, 128), (188, 166, 112), (154, 126, 94), (216, 196, 140), (132, 106, 82)),
    ),
}


def varied(style: Style, rng: Rng) -> Style:
    """Return the style with its colours shifted at random, alike in kind, brightness and hue."""

    def shift(colour: Colour, amount: float) -> Colour:
        moved = np.array(colour) * rng.uniform(1 - amount, 1 + amount) + rng.normal(0, 2.5, 3)
        return tuple(int(v) for v in np.clip(moved, 8, 245))

    return replace(
        style,
        grass=shift(style.grass, 0.15),
        soil=shift(style.soil, 0.12),
        water_colour=shift(style.water_colour, 0.35),
        foliage=shift(style.foliage, 0.15),
        crops=tuple(shift(c, 0.12) for c in style.crops),
        roofs=tuple(shift(c, 0.12) for c in style.roofs),
        parcel_area_m2=style.parcel_area_m2 * float(rng.uniform(0.5, 1.8)),
        tree_density=style.tree_density * float(rng.uniform(0.6, 1.4)),
        flat_share=min(1.0, style.flat_share * float(rng.uniform(0.3, 2.0))),
    )
