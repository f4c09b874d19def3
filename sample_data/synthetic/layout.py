"""Where things stand: water, roads, built-up areas, parcels, houses and trees, as geometry.

Coordinates are metres from the scene's upper-left corner, x to the east and y to the south.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import affinity
from shapely.geometry import LineString, MultiPoint, Polygon
from shapely.geometry.base import BaseGeometry
from shapely.ops import polygonize, unary_union

from .canvas import Canvas, Mask
from .styles import Rng

Tree = tuple[float, float, float]  # x, y and crown radius, in metres
Car = tuple[float, float, float]  # x and y in metres, heading in radians


@dataclass(frozen=True)
class Zone:
    """A built-up area: its kind (a key of LOTS), outline and street direction in radians."""

    kind: str
    outline: BaseGeometry
    angle: float


@dataclass(frozen=True)
class Lots:
    """How houses stand along a street; lengths in metres, ranges as (least, greatest)."""

    block: tuple[float, float]  # distance between streets, between cross streets
    length: tuple[float, float]
    depth: tuple[float, float]
    eaves: tuple[float, float]
    setback: tuple[float, float]
    gap: tuple[float, float]


LOTS = {
    "dense": Lots((54, 92), (10, 22), (10, 13), (7, 14), (0.2, 2.5), (-9, 6)),
    "suburb": Lots((66, 130), (10, 15), (8, 11), (3.5, 6.5), (4, 8), (4, 11)),
    "village": Lots((80, 120), (10, 20), (8, 12), (3.5, 6.5), (2, 10), (6, 26)),
    "industry": Lots((112, 170), (24, 80), (20, 38), (6, 12), (6, 14), (8, 22)),
}
STREET_M = {"dense": 7.5, "suburb": 5.5, "village": 5.0, "industry": 8.0}


@dataclass(frozen=True)
class Road:
    """A centre line with its full width in metres; kind is main, street or track."""

    line: LineString
    width_m: float
    kind: str


@dataclass(frozen=True)
class House:
    """A building's centre and main body in metres, with its street's heading in radians."""

    x: float
    y: float
    length: float
    depth: float
    angle: float
    eaves_m: float
    zone: str
    street_side: float


def lay_water(canvas: Canvas, rng: Rng) -> BaseGeometry:
    """Return the outline of the river, lake or sea, and of a few ponds."""
    size = np.array(canvas.extent.bounds[2:])
    middle = size * rng.uniform(0.25, 0.75, 2)
    angle = rng.uniform(0, np.pi)
    kind = str(rng.choice(canvas.style.water))
    ponds = [
        blob(*(size * rng.uniform(0.03, 0.97, 2)), rng.uniform(6, 20), rng, 0.15)
        for _ in range(rng.integers(0, 4))
    ]
    if kind == "river":
        line = wavy_line(
            *chord(canvas.extent, middle, angle), rng.uniform(12, 45), rng.uniform(220, 420), rng
        )
        width = rng.uniform(14, 42)
        # an island-free river whose width changes: discs of changing radius along the line
        steps = np.arange(0, line.length, 4)
        swing = np.sin(steps / rng.uniform(40, 90)) + np.sin(steps / 23 + 1)
        radii = width / 2 * (1 + 0.1 * swing)
        river = unary_union(shapely.buffer(line.interpolate(steps), radii))
        return unary_union([river, *(p for p in ponds if p.distance(river) > 25)])
    if kind == "lake":
        return unary_union([blob(*middle, rng.uniform(70, 170), rng, 0.35), *ponds])
    if kind == "coast":
        edge = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.2, 0.32) * size.min()
        middle = size / 2 + np.array([-edge[1], edge[0]])
        shore = wavy_line(*chord(canvas.extent, middle, angle), 18, rng.uniform(200, 500), rng)
        far = np.array([-edge[1], edge[0]]) * 20
        points = np.array(shore.coords)
        return Polygon([*points, *(points[::-1] + far)]).buffer(0)
    return unary_union(ponds) if ponds else Polygon()


def lay_main_roads(canvas: Canvas, rng: Rng) -> list[Road]:
    """Return one to three through roads that cross the scene."""
    size = np.array(canvas.extent.bounds[2:])
    angle = rng.uniform(0, np.pi)
    roads = []
    for k in range(rng.integers(1, 4)):
        through = size * rng.uniform(0.3, 0.7, 2)
        heading = angle + k * rng.uniform(1.0, 2.0)
        line = wavy_line(
            *chord(canvas.extent, through, heading), rng.uniform(4, 16), rng.uniform(350, 700), rng
        )
        roads.append(Road(line, rng.uniform(7.5, 11) if k == 0 else rng.uniform(6, 7.5), "main"))
    return roads


def lay_zones(canvas: Canvas, mains: list[Road], water: BaseGeometry, rng: Rng) -> list[Zone]:
    """Return the built-up areas, each around a point of the first through road."""
    inside = mains[0].line.intersection(canvas.extent)
    zones: list[Zone] = []
    free = canvas.extent.difference(water.buffer(14))
    for kind, least, greatest in canvas.style.zones:
        at = inside.length * (rng.uniform(0.3, 0.7) if not zones else rng.uniform(0, 1))
        here, ahead = inside.interpolate(at), inside.interpolate(at + 5)
        if here.equals(ahead):
            ahead = inside.interpolate(at - 5)
        angle = float(np.arctan2(ahead.y - here.y, ahead.x - here.x))
        outline = blob(here.x, here.y, rng.uniform(least, greatest), rng).intersection(free)
        for zone in zones:
            outline = outline.difference(zone.outline.buffer(12))
        if outline.area > 2000:
            zones.append(Zone(kind, outline, angle))
    return zones


def lay_streets(zones: list[Zone], mains: list[Road], water: BaseGeometry, rng: Rng) -> list[Road]:
    """Return each zone's streets: a grid, bent by slow waves, with links left out."""
    main = unary_union([road.line for road in mains])
    streets = []
    for zone in zones:
        along_m, across_m = np.array(LOTS[zone.kind].block) * rng.uniform(0.9, 1.15)
        bend = Bend(zone, rng.uniform(0, 2 * np.pi, 4), rng.uniform(4, 26))
        reach, lines = 500, []
        for v in np.arange(-reach, reach, along_m) + rng.uniform(0, along_m):
            u = np.arange(-reach, reach, 8.0)
            lines.append(bend.line(u, np.full_like(u, v)).difference(main.buffer(26)))
            for u in np.arange(-reach, reach, across_m):
                if rng.random() < 0.75:
                    offset = rng.choice([0, 0, across_m / 2])
                    link = np.linspace(v, v + along_m, 20)
                    lines.append(bend.line(np.full(20, u + offset), link))
        clip = zone.outline.difference(water.buffer(10))
        for line in lines:
            parts = shapely.get_parts(line.intersection(clip))
            streets += [Road(p, STREET_M[zone.kind], "street") for p in parts if p.length > 12]
    # a street that meets no other leads nowhere
    wide = np.array([street.line.buffer(1) for street in streets], object)
    meetings = shapely.STRtree(wide).query(wide, predicate="intersects")[0]  # itself included
    degree = np.bincount(meetings, minlength=len(streets)) + shapely.intersects(wide, main)
    return [street for street, met in zip(streets, degree, strict=True) if met > 1]


@dataclass(frozen=True)
class Bend:
    """A zone's straight street grid turned to its direction and bent by two waves."""

    zone: Zone
    phase: NDArray
    amplitude_m: float

    def line(self, u: NDArray, v: NDArray) -> LineString:
        """Return the street through grid points (u, v), in metres from the zone's centroid."""
        a, b, c, d = self.phase
        du = self.amplitude_m * (np.sin(v / 75 + a) + 0.4 * np.sin(u / 50 + b))
        dv = self.amplitude_m * (np.sin(u / 85 + c) + 0.4 * np.sin(v / 60 + d))
        line = LineString(np.stack([u + du, v + dv], 1))
        line = affinity.rotate(line, self.zone.angle, origin=(0, 0), use_radians=True)
        centre = self.zone.outline.centroid
        return affinity.translate(line, centre.x, centre.y)


def lay_parcels(canvas: Canvas, mains: list[Road], water: BaseGeometry, rng: Rng) -> list[Polygon]:
    """Return the land cut along roads and water into districts, and those into parcels."""
    size = canvas.extent.bounds[2:]
    seeds = MultiPoint(rng.uniform(0, 1, (rng.integers(4, 8), 2)) * size)
    cells = shapely.voronoi_polygons(seeds, extend_to=canvas.extent, only_edges=True)
    lines = [canvas.extent.buffer(40).boundary, cells, *(r.line for r in mains), water.boundary]
    todo = list(polygonize(unary_union(lines)))
    parcels = []
    while todo:
        land = todo.pop()
        if land.area < canvas.style.parcel_area_m2 * rng.uniform(0.5, 1.6):
            parcels.append(land)
            continue
        corners = np.array(land.minimum_rotated_rectangle.exterior.coords)[:3]
        if np.hypot(*(corners[1] - corners[0])) < np.hypot(*(corners[2] - corners[1])):
            corners = corners[::-1]
        start, end, far = corners[0], corners[1], corners[2] - corners[1]
        cut = start + (end - start) * rng.uniform(0.35, 0.65) + rng.normal(0, 3, 2)
        knife = LineString([cut - 0.2 * far, cut + 1.2 * far])
        pieces = [p for p in shapely.get_parts(shapely.ops.split(land, knife)) if p.area > 60]
        if len(pieces) < 2:
            parcels += pieces
        else:
            todo += pieces
    return [p for p in parcels if p.intersects(canvas.extent)]


def lay_tracks(
    parcels: list[Polygon], zones: list[Zone], water: BaseGeometry, rng: Rng
) -> list[Road]:
    """Return field tracks along some parcel borders."""
    avoid = unary_union([water.buffer(6), *(z.outline for z in zones)])
    tracks = []
    for parcel in parcels:
        if rng.random() < 0.12:
            ring = np.array(parcel.simplify(2).exterior.coords)
            longest = np.argsort(np.hypot(*np.diff(ring, axis=0).T))[-1:]
            for k in longest:
                line = LineString(ring[k : k + 2]).difference(avoid)
                tracks += [Road(p, rng.uniform(2.6, 3.6), "track") for p in shapely.get_parts(line)]
    return [t for t in tracks if t.line.length > 20]


def place_houses(canvas: Canvas, zones: list[Zone], roads: list[Road], rng: Rng) -> list[House]:
    """Return buildings along both sides of the zones' roads, none on a road or in water."""
    houses = []
    for zone in zones:
        allowed = canvas.mask(zone.outline)
        near = [road for road in roads if road.line.intersects(zone.outline)]
        for road in near:
            for line in shapely.get_parts(road.line.intersection(zone.outline)):
                for house in houses_along(line, road.width_m, zone.kind, rng):
                    if occupy(canvas, house, allowed):
                        houses.append(house)
    return houses


def occupy(canvas: Canvas, house: House, allowed: Mask) -> bool:
    """Take a house's plot if all of it is allowed and free; return whether it was."""
    window = canvas.window(house.x, house.y, house.length)
    if window is None:
        return False
    u, v = canvas.local(window, house.x, house.y, house.angle)
    terraced = house.zone == "dense"
    room = -1 if terraced else 1
    plot = (abs(u) < house.length / 2 + room) & (abs(v) < house.depth / 2 + room)
    if canvas.taken[window][plot].any() or not allowed[window][plot].all():
        return False
    apart = 0.1 if terraced else 2.5
    plot = (abs(u) < house.length / 2 + apart) & (abs(v) < house.depth / 2 + 3)
    canvas.taken[window] |= plot
    return True


def houses_along(line: LineString, width_m: float, kind: str, rng: Rng) -> Iterator[House]:
    """Yield candidate buildings on both sides of a street."""
    lots = LOTS[kind]
    for side in (-1.0, 1.0):
        at = rng.uniform(2, 10)
        setback, eaves = rng.uniform(*lots.setback), rng.uniform(*lots.eaves)
        while at < line.length - 4:
            length, depth = rng.uniform(*lots.length), rng.uniform(*lots.depth)
            here, ahead = line.interpolate(at + length / 2), line.interpolate(at + length / 2 + 2)
            if here.equals(ahead):
                break
            angle = float(np.arctan2(ahead.y - here.y, ahead.x - here.x))
            away = width_m / 2 + 2.3 + setback + depth / 2 + rng.uniform(0, 1.5)
            x = here.x - side * away * np.sin(angle)
            y = here.y + side * away * np.cos(angle)
            heading = angle + rng.normal(0, 0.02)
            if kind in ("suburb", "village") and rng.random() < 0.3:
                heading, length, depth = heading + np.pi / 2, depth, length
            if rng.random() < 0.93:
                height = eaves * rng.uniform(0.85, 1.15)
                yield House(x, y, length, depth, heading, height, kind, side)
            at += length + max(0.0, rng.uniform(*lots.gap))  # a negative gap: wall to wall


def place(house: House, u: float, v: float) -> tuple[float, float]:
    """Return the point u along and v across from a building's centre, in metres."""
    c, s = np.cos(house.angle), np.sin(house.angle)
    return house.x + u * c - v * s, house.y + u * s + v * c


def zone_trees(canvas: Canvas, zones: list[Zone], streets: list[Road], rng: Rng) -> list[Tree]:
    """Return the garden trees and the trees along some streets."""
    trees = []
    density = {"dense": 0.0022, "suburb": 0.0042, "village": 0.0045, "industry": 0.0008}
    for zone in zones:
        per_m2 = density[zone.kind] * canvas.style.tree_density
        trees += scattered(zone.outline, per_m2, rng, radius=(0.9, 4.0))
    for street in streets:
        if rng.random() < 0.3 * canvas.style.tree_density:
            side = street.line.offset_curve(rng.choice([-1, 1]) * (street.width_m / 2 + 2.4))
            trees += tree_row(side, rng) if not side.is_empty else []
    return trees


def bank_trees(canvas: Canvas, water: BaseGeometry, rng: Rng) -> list[Tree]:
    """Return the trees of the waterside."""
    bank = water.buffer(11).difference(water.buffer(3)).intersection(canvas.extent)
    return scattered(bank, 0.012 * canvas.style.tree_density, rng)


def outside(zones: list[Zone], trees: list[Tree]) -> list[Tree]:
    """Return the trees that stand outside the built-up areas."""
    built = unary_union([zone.outline for zone in zones])
    inside = shapely.contains_xy(built, np.array(trees).reshape(-1, 3)[:, :2])
    return [tree for tree, within in zip(trees, inside, strict=True) if not within]


def wood(parcel: Polygon, rng: Rng) -> list[Tree]:
    """Return the crowns of a closed wood."""
    return scattered(parcel, 1 / 20, rng, radius=(1.8, 4.6))


def scattered(
    area: BaseGeometry, per_m2: float, rng: Rng, radius: tuple[float, float] = (1.4, 4.2)
) -> list[Tree]:
    """Return trees at random places of an area."""
    if area.is_empty:
        return []
    left, top, right, bottom = area.bounds
    count = rng.poisson((right - left) * (bottom - top) * per_m2)
    x, y = rng.uniform(left, right, count), rng.uniform(top, bottom, count)
    inside = shapely.contains_xy(area, x, y)
    return list(zip(x[inside], y[inside], rng.uniform(*radius, inside.sum()), strict=True))


def tree_row(line: BaseGeometry, rng: Rng) -> list[Tree]:
    """Return trees along a line, with gaps: a hedge or an avenue."""
    step, size = rng.choice([2.5, 4.0, 8.0, 11.0]), rng.uniform(1.3, 3.4)
    at = np.arange(0, line.length, step)
    at = at[np.sin(at / rng.uniform(12, 50) + rng.uniform(0, 6)) > rng.uniform(-1, 0.4)]
    points = shapely.get_coordinates(line.interpolate(at)) + rng.normal(0, 0.5, (len(at), 2))
    return [(x, y, size * rng.uniform(0.75, 1.25)) for x, y in points]


def driving(roads: list[Road], rng: Rng) -> list[Car]:
    """Return cars on the roads' right and left lanes."""
    cars = []
    for road in roads:
        every_m = 70 if road.kind == "main" else 45
        for at in rng.uniform(3, road.line.length, rng.poisson(road.line.length / every_m)):
            here, back = road.line.interpolate(at), road.line.interpolate(at - 2)
            angle = np.arctan2(here.y - back.y, here.x - back.x)
            lane = road.width_m * (0.25 if road.kind == "main" else 0.34) * rng.choice([-1, 1])
            cars.append((here.x - lane * np.sin(angle), here.y + lane * np.cos(angle), angle))
    return cars


def wavy_line(
    start: NDArray, end: NDArray, amplitude_m: float, wavelength_m: float, rng: Rng
) -> LineString:
    """Return a line from start to end (metres) that swings sideways like a stream or a road."""
    length = float(np.hypot(*(end - start)))
    along = np.linspace(0, 1, max(int(length / 6), 8))
    across = np.zeros_like(along)
    for octave in (1.0, 1.7, 2.9):
        phase = rng.uniform(0, 2 * np.pi)
        across += np.sin(2 * np.pi * octave * along * length / wavelength_m + phase) / octave**1.5
    direction = (end - start) / length
    normal = np.array([-direction[1], direction[0]])
    points = start + along[:, None] * (end - start) + amplitude_m * across[:, None] * normal
    return LineString(points)


def chord(extent: Polygon, through: NDArray, angle: float) -> tuple[NDArray, NDArray]:
    """Return two points beyond the extent on the line through a point at an angle."""
    reach = np.hypot(*extent.bounds[2:]) * np.array([np.cos(angle), np.sin(angle)])
    return through - reach, through + reach


def blob(x: float, y: float, radius_m: float, rng: Rng, roughness: float = 0.25) -> Polygon:
    """Return a rounded, irregular polygon."""
    turn = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radius = np.ones_like(turn)
    for k in range(2, 9):
        radius += roughness / k * 1.6 * rng.normal() * np.cos(k * turn + rng.uniform(0, 6.3))
    radius = radius_m * np.clip(radius, 0.3, 2)
    return Polygon(np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], 1)).buffer(0)
