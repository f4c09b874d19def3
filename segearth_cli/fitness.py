"""Whether a model suits what it is given: sensor, resolution, windows, words; said where not."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from segearth_cli.geo.raster import Scene
from segearth_cli.model.segmenter import ModelSettings, number_of_tower
from segearth_cli.names import listed, shortened
from segearth_cli.options import SceneOptions, SegmentOptions

GSD_TOLERANCE = 1.5  # times the resolution that a model was made for
FEWEST_PATCHES = 4  # along a window: of fewer a model learns too little
SMALLER = 4  # times than the model's own windows
MOST_WORDS = 10  # in a warning

logger = logging.getLogger(__name__)


def warn_of_scene(scene: Scene, model: ModelSettings, options: SegmentOptions) -> None:
    """Say so when a scene is not what the model, or an option, is for."""
    warn_of_sensor(scene.source, scene.sensor, model)
    warn_of_resolution(scene, model)
    warn_of_window(model)
    for option, length in (("--min-area", options.min_area), ("--simplify", options.simplify)):
        if length and scene.grid.pixel_area_m2 is None:
            logger.warning(
                "%s has no coordinate system: %s %g means pixels", scene.source, option, length
            )
    warn_of_radar_options(scene.source, scene.sensor, options)


def warn_of_radar_options(
    source: str, sensor: str, options: SceneOptions, remedy: str = "say --sensor sar"
) -> None:
    """Say so when options of radar are given for what is none; ``remedy``: what to do if it is."""
    if options.speckle and sensor != "sar":
        logger.warning("%s is no radar scene: read without a speckle filter", source)
    if options.sar_unit != "auto" and sensor != "sar":
        logger.warning(
            "%s is read as an optical image, where --sar-unit means nothing; if it is radar, %s",
            source,
            remedy,
        )


def warn_of_sensor(
    source: str, sensor: str, model: ModelSettings, remedy: str = "say --sensor sar"
) -> None:
    """Say so when a model sees what another sensor made than its own; ``remedy`` as above."""
    made_for = model.folder.card.sensor
    if (sensor, made_for) == ("sar", "optical"):
        logger.warning(
            "%s is read as radar, and %s was made for optical images: expect a poor map",
            source,
            model.name,
        )
    elif (sensor, made_for) == ("optical", "sar"):
        logger.warning(
            "%s is read as an optical scene, and %s was made for radar: expect a poor map; if it "
            "is radar, %s",
            source,
            model.name,
            remedy,
        )


def warn_of_resolution(scene: Scene, model: ModelSettings) -> None:
    """Say so when pixels are far larger or smaller than those the model was made for."""
    gsd_m = scene.grid.gsd_m
    made_for = model.folder.card.gsd_m
    if gsd_m is None or made_for is None:
        return
    finest, coarsest = made_for
    if not finest / GSD_TOLERANCE <= gsd_m <= coarsest * GSD_TOLERANCE:
        logger.warning(
            "%s has pixels of %.3g m; %s was made for %g to %g m: expect a poor map",
            scene.source,
            gsd_m,
            model.name,
            finest,
            coarsest,
        )


def warn_of_window(model: ModelSettings) -> None:
    """Say so when windows are far smaller than those the model was made for."""
    own = model.folder.card.window
    least = max(FEWEST_PATCHES * number_of_tower(model.folder, "patch_size"), own // SMALLER)
    if 0 < model.window < least and model.window != own:
        logger.warning(
            "--window %d is too small for %s, which %s: expect a poor map",
            model.window,
            model.name,
            f"takes windows of {own} pixels" if own else f"needs {least} pixels or more",
        )


def warn_of_words(settings: ModelSettings, queries: Sequence[str]) -> None:
    """Say so when a model that knows few words is asked for others."""
    unread = settings.folder.card.unread(queries)
    if unread:
        logger.warning(
            "%s has never read %s: expect an arbitrary map, or an empty one, of such words",
            settings.name,
            listed([shortened(word) for word in unread], MOST_WORDS),
        )
