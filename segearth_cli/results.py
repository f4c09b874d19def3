"""What becomes of one scene: its map, or what that would take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from segearth_cli.errors import SegEarthError
from segearth_cli.options import SegmentOptions


@dataclass(frozen=True)
class SegmentResult:
    """What one scene became."""

    source: str
    outputs: tuple[str, ...]
    pixels: dict[str, int]  # per class name
    area_m2: dict[str, float | None]  # None without a CRS
    nodata_pixels: int
    seconds: float
    options: SegmentOptions


@dataclass(frozen=True)
class Failure:
    """A scene that came to nothing, and why."""

    source: str
    error: SegEarthError
    seconds: float = 0.0


@dataclass(frozen=True)
class Skipped:
    """A scene whose outputs were there already."""

    source: str
    outputs: tuple[str, ...]
    seconds: float


Outcome: TypeAlias = SegmentResult | Skipped | Failure


@dataclass(frozen=True)
class Plan:
    """What one scene would take."""

    source: str
    width: int
    height: int
    gsd_m: float | None
    crs: str | None
    reading: str  # sensor, bands, scaling
    model: str
    settings: str
    window: int
    stride: int
    windows: int
    panels: int
    memory_bytes: int
    classes: dict[int, str]
    outputs: tuple[str, ...]
