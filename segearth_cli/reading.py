"""A scene opened as its model is to see it; what is wrong with names and options said at once.

Nothing here needs torch, which takes seconds to import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from segearth_cli.errors import UsageError
from segearth_cli.geo import cog
from segearth_cli.geo.digest import source_digest
from segearth_cli.geo.grid import parse_crs
from segearth_cli.geo.raster import Scene, open_scene
from segearth_cli.geo.sensors import parse_stretch
from segearth_cli.model.card import AnyScene
from segearth_cli.model.prompts import build_vocabulary
from segearth_cli.model.weights import found_model, resolve_model
from segearth_cli.options import SegmentOptions
from segearth_cli.stac import parse_time


@dataclass(frozen=True)
class OpenScene:
    """An open scene, and the digest of what it is read from."""

    scene: Scene
    digest: dict[str, Any]


def open_source(source: str, options: SegmentOptions) -> OpenScene:
    """Open a scene, and tell what is in it from what was there yesterday.

    Raises:
        SceneError: it cannot be opened or read.
    """
    digest = source_digest(source)
    return OpenScene(open_for_model(source, options), digest)


def open_for_model(source: str, options: SegmentOptions) -> Scene:
    """The scene as its model is to see it: radar as what the model was trained on was read.

    Raises:
        SegEarthError: it cannot be opened, or as radar, and there is no model for that.
    """
    return open_scene(source, options, radar=lambda: radar_options(options.model.model, options))


def radar_options(model: str, options: AnyScene) -> AnyScene:
    """The options by which a scene is read if it turns out to be a radar's.

    Raises:
        SegEarthError: there is no such model for radar.
    """
    return found_model(model, "sar").card.radar_read(options)


def check_options(options: SegmentOptions) -> None:
    """Refuse options that no scene can be segmented with, before any work is done.

    Raises:
        UsageError: there is no such stretch, coordinate system, creation option or model, or no
            output is named.
        ModelError: the model is not on this machine, or a part of it is missing or damaged.
    """
    if not options.written:
        raise UsageError("say what to write, for instance -o map.gpkg or -o - for stdout")
    build_vocabulary(options)
    parse_stretch(options.stretch)
    if options.acquired is not None:
        parse_time(options.acquired)
    for name, crs in (
        ("--src-crs", options.src_crs),
        ("--dst-crs", options.dst_crs),
        ("--bbox-crs", options.bbox_crs),
    ):
        if crs is not None:
            parse_crs(crs, name)
    cog.check_creation_options(options.creation_options)
    if options.model.model != "auto":
        resolve_model(options.model.model)
