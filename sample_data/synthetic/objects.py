"""Draw what stands up: buildings, trees, cars and containers, each a stamped surface."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .canvas import GSD_M, Canvas
from .layout import Car, House, Tree, place
from .styles import BARE, BUILDING, CROPLAND, GRASS, OTHER, TREE, Rng

CAR_COLOURS = (
    *((232, 232, 230), (222, 224, 226), (196, 198, 202), (150, 152, 156)),
    *((96, 98, 104), (52, 54, 58), (40, 42, 46), (150, 44, 40), (58, 80, 130)),
)


def draw_house(canvas: Canvas, house: House, rng: Rng) -> None:
    """Put up a building: its body, often a wing or a garage, and what stands on the roof."""
    style = canvas.style
    large = house.zone == "industry"
    flat = large or rng.random() < style.flat_share
    if large:
        colour = np.array([rng.uniform(120, 225)] * 3) + rng.normal(0, 7, 3)
    elif flat and style.flat_share < 0.5:
        colour = np.array([rng.uniform(90, 200)] * 3) + rng.normal(0, 4, 3)
    else:
        colour = np.array(style.roofs[rng.integers(len(style.roofs))]) * rng.uniform(0.85, 1.15)
    pitch = 0.0 if flat else rng.uniform(0.45, 0.95)
    shape = "flat" if flat else str(rng.choice(["gable", "gable", "hip"]))
    draw_roof(canvas, house, shape, pitch, colour, rng)
    if rng.random() < 0.4 and not large:
        length, depth = house.depth * rng.uniform(0.9, 1.3), house.length * rng.uniform(0.35, 0.5)
        end = rng.choice([-1, 1]) * (house.length - depth) / 2
        x, y = place(house, end, house.street_side * (house.depth * 0.35))
        wing = replace(house, x=x, y=y, length=length, depth=depth, angle=house.angle + np.pi / 2)
        draw_roof(canvas, wing, shape, pitch, colour, rng)
    elif rng.random() < 0.45 and house.zone in ("suburb", "village"):
        x, y = place(house, rng.choice([-1, 1]) * (house.length / 2 + 2.2), rng.uniform(-2, 2))
        garage = replace(house, x=x, y=y, length=3.6, depth=6.2, eaves_m=2.6)
        draw_roof(canvas, garage, "flat", 0, np.array([rng.uniform(110, 185)] * 3), rng)
    for _ in range(rng.integers(2, 12) if large else rng.integers(0, 4)):
        u, v = house.length * rng.uniform(-0.4, 0.4), house.depth * rng.uniform(-0.3, 0.3)
        x, y = place(house, u, v)
        size = rng.uniform(0.8, 3.0, 2) if flat else rng.uniform(0.6, 1.2, 2)
        top = house.eaves_m + (rng.uniform(0.7, 2) if flat else pitch * house.depth / 2 + 0.3)
        vent = replace(house, x=x, y=y, length=size[0], depth=size[1], eaves_m=top)
        draw_roof(canvas, vent, "flat", 0, np.full(3, rng.uniform(90, 200)), rng)
    if not large and rng.random() < 0.15:
        draw_panels(canvas, house)


def draw_panels(canvas: Canvas, house: House) -> None:
    """Lay solar panels on one side of a roof."""
    window = canvas.window(house.x, house.y, house.length)
    if window is None:
        return
    u, v = canvas.local(window, house.x, house.y, house.angle)
    half = min(house.length * 0.3, 3.5)
    panels = (abs(u) < half) & (abs(v - house.depth / 4) < house.depth / 7)
    canvas.rgb[window][panels & (canvas.labels[window] == BUILDING)] = (44, 52, 72)


def draw_roof(
    canvas: Canvas, house: House, shape: str, pitch: float, colour: NDArray, rng: Rng
) -> None:
    """Stamp one rectangular roof: flat with a parapet, gabled along its length, or hipped."""
    window = canvas.window(house.x, house.y, np.hypot(house.length, house.depth) / 2 + 1)
    if window is None:
        return
    u, v = canvas.local(window, house.x, house.y, house.angle)
    inward_u, inward_v = house.length / 2 - abs(u), house.depth / 2 - abs(v)
    edge = np.minimum(inward_u, inward_v)
    rise = {"flat": 0 * edge, "gable": inward_v, "hip": edge}[shape] * pitch
    if shape == "gable" and house.depth > house.length:
        rise = inward_u * pitch
    stain = 0.04 * canvas.patch[window] + 0.04 * canvas.fine[window]
    tone = 1 + stain + 0.03 * canvas.grain[window]
    if shape == "flat":
        tone = tone + np.where(edge < 0.7, 0.1, 0)
        if house.zone == "industry" and house.length > 20:
            tone = tone + 0.03 * np.sin(2 * np.pi * u / 4.2) - 0.08 * (abs(u % 14 - 7) < 0.7)
    else:
        tone = tone + 0.02 * np.sin(2 * np.pi * rise / 0.8) + 0.1 * (rise > rise.max() - 0.25)
    rgb = (tone[..., None] * colour).astype(np.float32)
    canvas.stamp(window, edge > 0, (house.eaves_m + rise).astype(np.float32), rgb, BUILDING)


def draw_trees(canvas: Canvas, trees: list[Tree], rng: Rng) -> None:
    """Stamp crowns, rounded or pointed, on ground that is free of roads, water and houses."""
    soft = np.isin(canvas.labels, (GRASS, CROPLAND, BARE, TREE))
    rows, cols = soft.shape
    conifers = rng.uniform(0, 0.5)
    for x, y, radius in trees:
        row, col = int(y / GSD_M), int(x / GSD_M)
        if not (0 <= row < rows and 0 <= col < cols and soft[row, col]):
            continue
        window = canvas.window(x, y, radius * 1.3)
        if window is None:
            continue
        conifer = rng.random() < conifers
        dx, dy = canvas.local(window, x, y, rng.uniform(0, 3))
        lumps = canvas.fine[window]
        away = np.hypot(dx, dy * rng.uniform(0.9, 1.15)) / radius * (1 + 0.1 * lumps)
        if conifer:
            top = radius * (2.7 - 1.3 * away) + 0.15 * lumps
        else:
            top = radius * (1.9 - 0.7 * away**2) + 0.3 * np.minimum(radius / 2, 1) * lumps
        tone = rng.uniform(0.78, 1.2) * (0.78 if conifer else 1.08)
        hue = rng.normal(0, 4, 3)
        shade = tone * (1 + 0.08 * lumps + 0.07 * canvas.grain[window] - 0.12 * (away - 0.5))
        rgb = shade[..., None] * (np.array(canvas.style.foliage) + hue)
        canvas.stamp(window, away < 1, top.astype(np.float32), rgb.astype(np.float32), TREE)


def draw_cars(canvas: Canvas, cars: list[Car], rng: Rng) -> None:
    """Stamp cars with a cabin and dark glass, except under trees."""
    for x, y, angle in cars:
        window = canvas.window(x, y, 3.5)
        if window is None or (canvas.labels[window] == TREE).mean() > 0.3:
            continue
        u, v = canvas.local(window, x, y, angle)
        long, wide = rng.uniform(3.8, 4.9) / 2, rng.uniform(1.7, 1.95) / 2
        cabin = (abs(u + 0.3) < long * 0.55) & (abs(v) < wide)
        glass = cabin & (abs(u + 0.3) > long * 0.35)
        colour = np.array(CAR_COLOURS[rng.integers(len(CAR_COLOURS))]) * rng.uniform(0.8, 1.1)
        rgb = np.where(glass[..., None], 45, colour).astype(np.float32)
        top = (canvas.height_m[window] + np.where(cabin, 1.45, 0.95)).astype(np.float32)
        canvas.stamp(window, (abs(u) < long) & (abs(v) < wide), top, rgb, OTHER)


def draw_containers(canvas: Canvas, house: House, rng: Rng) -> None:
    """Stamp rows of containers and lorries beside an industrial hall."""
    for _ in range(rng.integers(0, 4)):
        colour = np.array(CAR_COLOURS[rng.integers(len(CAR_COLOURS))]) * rng.uniform(0.7, 1)
        u0, v0 = rng.choice([-1, 1]) * (house.length / 2 + 8), house.depth * rng.uniform(-0.5, 0.4)
        for k in range(rng.integers(1, 6)):
            x, y = place(house, u0, v0 + 2.9 * k)
            window = canvas.window(x, y, 7)
            if window is None or (canvas.labels[window] == BUILDING).any():
                continue
            u, v = canvas.local(window, x, y, house.angle)
            inside = (abs(u) < 6.1) & (abs(v) < 1.25) & ~canvas.taken[window]
            rgb = np.broadcast_to(colour.astype(np.float32), (*u.shape, 3))
            canvas.stamp(window, inside, np.full_like(u, 2.6), rgb, OTHER)
