"""Draw what lies flat: parcels, water, roads, gardens and yards."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import LineString, MultiPoint, Point, Polygon
from shapely.geometry.base import BaseGeometry
from shapely.ops import unary_union

from .canvas import Array, Canvas, Mask
from .layout import Car, House, Road, Tree, Zone, place, scattered, tree_row, wood
from .objects import draw_containers
from .styles import (
    BARE,
    CROP,
    CROPLAND,
    GRASS,
    MEADOW,
    OTHER,
    ROAD,
    TREE,
    WASTE,
    WATER,
    WOOD,
    Colour,
    Rng,
)


def draw_parcels(canvas: Canvas, parcels: list[Polygon], rng: Rng) -> list[Tree]:
    """Paint crops with their rows, meadows and bare ground; return the trees."""
    style, count = canvas.style, len(parcels) + 1
    weights = np.array(style.parcels) / sum(style.parcels)
    kinds = rng.choice(4, count, p=weights)
    kinds[0] = MEADOW  # what lies between the parcels
    crops = np.array(style.crops)[rng.integers(len(style.crops), size=count)]
    grounds = np.array([style.grass, style.grass, style.foliage, style.soil])[kinds]
    colours = np.where((kinds == CROP)[:, None], crops, grounds) * rng.uniform(0.9, 1.1, (count, 1))
    colours[kinds == WOOD] *= 0.8  # the undergrowth of a wood
    labels = np.array([CROPLAND, GRASS, TREE, BARE])[kinds]
    if style.garden == BARE:
        labels[0], colours[0] = BARE, style.soil

    angle = np.zeros(count)
    for k, parcel in enumerate(parcels, 1):
        corners = np.array(parcel.minimum_rotated_rectangle.exterior.coords)
        sides = np.diff(corners, axis=0)[:2]
        dx, dy = sides[np.argmax(np.hypot(*sides.T))]
        angle[k] = np.arctan2(dy, dx) + rng.normal(0, 0.02)
    ids = canvas.burn([(p.buffer(-rng.uniform(0.4, 1.6)), k) for k, p in enumerate(parcels, 1)])
    canvas.paint(ids >= 0, colours[ids].reshape(-1, 3).astype(np.float32))
    canvas.labels[:] = labels[ids]
    rows = crop_rows(canvas, ids, angle, kinds, rng)
    canvas.rgb *= rows[..., None]
    canvas.crop_db[:] = rng.normal(0, 1.8, count)[ids] + 8 * (rows - 1)

    trees = []
    for kind, parcel in zip(kinds[1:], parcels, strict=True):
        if kind == WOOD:
            trees += wood(parcel, rng)
        if rng.random() < 0.22 * style.tree_density:
            trees += tree_row(parcel.exterior, rng)
        if kind == WASTE:
            shrubs = rng.uniform(0, 0.004) * (style.garden == BARE) + 0.0006
            trees += scattered(parcel, shrubs, rng, radius=(0.5, 1.6))
        if kind == MEADOW and rng.random() < 0.5:
            trees += scattered(parcel, 0.0008 * style.tree_density, rng)
    return trees


def crop_rows(canvas: Canvas, ids: NDArray, angle: NDArray, kinds: NDArray, rng: Rng) -> Array:
    """Return the brightness factor of the rows, tramlines and headlands of each parcel."""
    count = len(kinds)
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    across = canvas.y * cosine[ids] - canvas.x * sine[ids] + 0.25 * canvas.patch
    period = rng.uniform(1.6, 5.0, count).astype(np.float32)
    strength = rng.choice([0.025, 0.04, 0.06, 0.1], count).astype(np.float32)
    even = np.array([0, 0.012, 0.008, 0.008], np.float32)[kinds]
    strength = np.where(kinds == CROP, strength, even)
    rows = 0.8 * strength[ids] * np.sin(2 * np.pi * across / period[ids])
    # the drill, the mower and the sprayer leave streaks that differ from pass to pass
    steps = np.cumsum(rng.normal(0, 1, 4096))
    drift = np.convolve(steps, np.full(25, 1 / 25), "valid")
    streaks = steps[12:-12] - drift + rng.normal(0, 0.6, len(drift))
    streaks = np.clip(streaks / streaks.std(), -2.5, 2.5).astype(np.float32)
    lane = (across / 0.7 + 97 * ids).astype(np.int32) % len(streaks)
    bands = 0.7 * strength[ids] * streaks[lane]
    every = rng.uniform(15, 27, count).astype(np.float32)
    tram = (kinds == CROP) & (rng.random(count) < 0.85)
    phase = np.mod(across, every[ids])
    wheel = (np.abs(phase - 1) < 0.35) | (np.abs(phase - 2.9) < 0.35)
    # a meadow is tufted, a crop even
    tufts = np.array([-0.015, 0.04, 0, 0.01], np.float32)[kinds][ids] * canvas.patch
    factor = 1 + (rows + bands) * (1 + 0.5 * canvas.patch) + tufts - 0.12 * (wheel & tram[ids])
    return factor.astype(np.float32)


def draw_zones(canvas: Canvas, zones: list[Zone]) -> None:
    """Paint the open ground of the built-up areas."""
    style = canvas.style
    for zone in zones:
        inside = canvas.mask(zone.outline)
        if style.garden == BARE:
            canvas.paint(inside, style.soil, BARE)
        elif zone.kind == "industry":
            canvas.paint(inside, 0.75 * np.array(style.grass) + 0.25 * np.array(style.soil), GRASS)
        else:
            canvas.paint(inside, style.grass, GRASS)


def draw_water(canvas: Canvas, water: BaseGeometry, rng: Rng) -> None:
    """Paint the water, smooth and darker towards the middle, and its banks."""
    if water.is_empty:
        return
    width_m = rng.uniform(*canvas.style.bank_m)
    near, far = canvas.mask(water.buffer(0.6 * width_m)), canvas.mask(water.buffer(1.7 * width_m))
    worn = canvas.patch + 0.7 * canvas.broad
    bank = (near & (worn > -1)) | (far & (worn > 0.5))
    canvas.paint(bank, 0.9 * np.array(canvas.style.soil), BARE)
    inside = canvas.mask(water)
    canvas.paint(inside, canvas.style.water_colour, WATER, texture=(0.03, 0.012, 0.012, 0.006))
    for shore_m, gain in ((1.5, 1.16), (4.0, 1.06), (9.0, 1.03)):
        shallow = inside & ~canvas.mask(water.buffer(-shore_m))
        canvas.rgb[shallow] *= gain
    canvas.height_m[inside] = 0
    canvas.taken |= canvas.mask(water.buffer(6))


def draw_roads(canvas: Canvas, roads: list[Road], water: BaseGeometry, rng: Rng) -> None:
    """Paint the roads from the least to the greatest, with pavements, markings and bridges."""
    asphalt = np.array([rng.uniform(104, 150)] * 3) + rng.normal(0, 3, 3)
    lines = {kind: [r for r in roads if r.kind == kind] for kind in ("track", "street", "main")}
    ruts = canvas.mask(r.line.buffer(r.width_m / 2) for r in lines["track"])
    canvas.paint(ruts, canvas.style.soil, BARE)
    middle = canvas.mask(r.line.buffer(0.5) for r in lines["track"])
    canvas.paint(middle & (canvas.patch > -0.5), canvas.style.grass, GRASS)
    kerb = canvas.mask(
        r.line.buffer(r.width_m / 2 + 1.6, cap_style="flat") for r in lines["street"]
    )
    canvas.paint(kerb, asphalt * 1.2 + 6, ROAD, texture=(0.02, 0.03, 0.03, 0.03))
    verge = canvas.mask(r.line.buffer(r.width_m / 2 + 1.2) for r in lines["main"])
    verge &= ~np.isin(canvas.labels, (ROAD, WATER))
    canvas.paint(verge, canvas.style.soil, BARE)
    for kind, tone in (("street", 1.03), ("main", 0.96)):
        full = canvas.mask(r.line.buffer(r.width_m / 2) for r in lines[kind])
        canvas.paint(full, asphalt * tone, ROAD, texture=(0.03, 0.035, 0.02, 0.03))
        worn = canvas.mask(
            r.line.offset_curve(s * r.width_m / 4).buffer(0.9) for r in lines[kind] for s in (-1, 1)
        )
        canvas.rgb[worn & full] *= 0.96
    for road in lines["main"]:
        draw_markings(canvas, road)
    wet = water.buffer(3)
    deck = canvas.mask(
        r.line.intersection(wet).buffer(r.width_m / 2 + 0.6, cap_style="flat")
        for r in lines["main"]
    )
    canvas.rgb[deck] = canvas.rgb[deck] * 0.7 + 55
    canvas.labels[deck] = ROAD
    canvas.height_m[deck] = 3.0
    canvas.taken |= canvas.mask(
        r.line.buffer(r.width_m / 2 + 2.2) for r in lines["street"] + lines["main"]
    )


def draw_markings(canvas: Canvas, road: Road) -> None:
    """Paint a dashed centre line and, on wide roads, the edge lines."""
    starts = np.arange(0, road.line.length, 9.0)
    points = shapely.get_coordinates(
        road.line.interpolate(np.stack([starts, starts + 4], 1).ravel())
    )
    dashes = [LineString(pair).buffer(0.28) for pair in points.reshape(-1, 2, 2)]
    canvas.rgb[canvas.mask(dashes)] += 62
    if road.width_m > 7:
        sides = [road.line.offset_curve(s * (road.width_m / 2 - 0.5)).buffer(0.26) for s in (-1, 1)]
        canvas.rgb[canvas.mask(sides)] += 36


def draw_lots(canvas: Canvas, zones: list[Zone], houses: list[House], rng: Rng) -> list[Car]:
    """Paint each house's garden, hedge, drive, terrace, yard and pool; return the parked cars."""
    if len(houses) < 4:
        return []
    style = canvas.style
    ground = np.isin(canvas.labels, (GRASS, BARE))
    cells = nearest_ground(houses)
    built = unary_union([z.outline for z in zones])
    lots = [Point(h.x, h.y).buffer(34) & cell for h, cell in zip(houses, cells, strict=True)]
    hedges, pairs = [], []
    for k, lot in enumerate(lots, 1):
        pairs.append((lot.intersection(built), k))
        if rng.random() < 0.45 and houses[k - 1].zone != "industry":
            hedges.append(lot.boundary.intersection(built.buffer(-2)).buffer(rng.uniform(0.4, 0.9)))
    ids = canvas.burn(pairs)
    tones = rng.uniform(0.86, 1.12, (len(lots) + 1, 1)) * rng.normal(1, 0.02, (len(lots) + 1, 3))
    tones[0] = 1
    canvas.rgb[ground] *= tones[ids[ground]].astype(np.float32)

    parked = []
    for house in houses:
        draw = draw_works if house.zone == "industry" else draw_garden
        parked += draw(canvas, house, ground, rng)
    if style.garden == GRASS:
        green = canvas.mask(hedges) & np.isin(canvas.labels, (GRASS, BARE))
        canvas.paint(green, style.foliage, TREE, texture=(0.05, 0.1, 0.12, 0.1))
        canvas.height_m[green] = (1.5 + 0.3 * canvas.fine + 0.2 * canvas.patch)[green].clip(0.8)
    return parked


def nearest_ground(houses: list[House]) -> list[Polygon]:
    """Return each house's Voronoi cell, in the order of the houses."""
    points = [Point(house.x, house.y) for house in houses]
    cells = shapely.get_parts(shapely.voronoi_polygons(MultiPoint(points)))
    hits = shapely.STRtree(cells).query(points, predicate="within")
    order = dict(zip(hits[0].tolist(), hits[1].tolist(), strict=True))
    return [cells[order[k]] for k in range(len(houses))]


def draw_works(canvas: Canvas, house: House, ground: Mask, rng: Rng) -> list[Car]:
    """Paint the yard round an industrial hall, put containers on it, return its parked cars."""
    window = canvas.window(house.x, house.y, max(house.length, house.depth) + 26)
    if window is None:
        return []
    u, v = canvas.local(window, house.x, house.y, house.angle)
    grey = np.full(3, rng.uniform(120, 175)) + rng.normal(0, 4, 3)
    yard = (abs(u) < house.length / 2 + 16) & (abs(v) < house.depth / 2 + 14) & ground[window]
    paved = rng.random() < 0.7
    colour, label = (grey, ROAD) if paved else (canvas.style.soil, BARE)
    canvas.paint(yard, colour, label, window, (0.02, 0.03, 0.03, 0.03))
    draw_containers(canvas, house, rng)
    row = -house.street_side * (house.depth / 2 + rng.uniform(5, 9))
    return [
        (*place(house, at, row), house.angle + np.pi / 2)
        for at in np.arange(-house.length / 2, house.length / 2, 2.7)
        if paved and rng.random() < 0.5
    ]


def draw_garden(canvas: Canvas, house: House, ground: Mask, rng: Rng) -> list[Car]:
    """Paint a house's drive, terrace and vegetable patch or pool, return its parked car."""
    window = canvas.window(house.x, house.y, max(house.length, house.depth) + 26)
    if window is None:
        return []
    u, v = canvas.local(window, house.x, house.y, house.angle)

    def fill(inside: Mask, colour: Colour | Array, label: int, rough: float) -> None:
        texture = (0.02, rough, rough, rough)
        canvas.paint(inside & ground[window], colour, label, window, texture)

    grey = np.full(3, rng.uniform(120, 175)) + rng.normal(0, 4, 3)
    side = rng.choice([-1, 1]) * (house.length / 2 - 1.6)
    fill((abs(u - side) < 1.5) & (v * -house.street_side > 0) & (abs(v) < 22), grey, ROAD, 0.03)
    parked = []
    if rng.random() < 0.4:
        row = -house.street_side * (house.depth / 2 + rng.uniform(3, 5))
        parked = [(*place(house, side, row), house.angle + np.pi / 2)]
    back = v * house.street_side - house.depth / 2
    terrace = (abs(u) < rng.uniform(2, 5)) & (back > -1) & (back < rng.uniform(2, 4.5))
    fill(terrace, grey * 1.1, OTHER, 0.04)
    if rng.random() < 0.18:
        patch = (abs(u - rng.uniform(-6, 6)) < 3.5) & (back > 7) & (back < 12)
        fill(patch, canvas.style.soil, BARE, 0.08)
    elif rng.random() < 0.12:
        outward = np.maximum(abs(u - rng.uniform(-3, 3)) - 2.6, abs(back - 8.5) - 1.3)
        fill(outward < 1.2, (196, 190, 180), OTHER, 0.02)
        fill(outward < 0.2, (92, 176, 196), WATER, 0.015)
    return parked
