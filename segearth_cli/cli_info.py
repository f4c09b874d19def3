"""``segearth info``: what a map says of its making, how a scene would be read, what a model is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from segearth_cli import terminal
from segearth_cli.flags import Json
from segearth_cli.stdout import print_json, print_lines

if TYPE_CHECKING:
    from segearth_cli.info import MapInfo, ModelInfo, SceneInfo
    from segearth_cli.model.card import ModelCard


def info_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MAP|SCENE|MODEL",
            show_envvar=False,
            help="A map that segearth made, any raster, a model or its folder.",
        ),
    ],
    json: Json = False,
) -> None:
    """Tell how a map was made, and the command for it; how a scene is read; what a model is.

    Example: segearth info map.gpkg
    """
    from segearth_cli.info import MapInfo, ModelInfo, told

    terminal.log_to_stderr(False, False)
    info = told(name)
    if isinstance(info, MapInfo):
        show_map(info, json)
    elif isinstance(info, ModelInfo):
        show_model(info, json)
    else:
        show_scene(info, json)


def show_map(info: MapInfo, as_json: bool) -> None:
    """How a map was made, on stdout: it is what was asked for."""
    from segearth_cli.geo.recorded import is_of_segment

    record = info.record
    if as_json:
        print_json({"output": info.output, "command": info.command, **record})
        return
    model = record["model"]
    settings = [f"{name} {value}" for name, value in model.items() if name != "name"]
    of_scene = [["dataset", str(record.get("dataset"))]]
    why_none = "none: it is of segearth evaluate --maps"
    if is_of_segment(record):
        digest = record["source_digest"]
        of_scene = [
            ["digest of source", f"sha256 {digest.get('sha256')} ({digest.get('covers')})"],
            ["read as", str(record.get("scene"))],
        ]
        why_none = "none can say such classes: see options in --json"
    rows = [
        ["made by", f"segearth {record['version']}"],
        ["source", record["source"]],
        *of_scene,
        ["classes", ", ".join("|".join(words) for words in record.get("classes", []))],
        *([["prompts", str(record["prompts"])]] if "prompts" in record else []),
        ["model", str(model.get("name"))],
        ["digest of model", f"sha256 {record.get('model_digest')}"],
        ["runs as", ", ".join(settings)],
        ["command", info.command or why_none],
    ]
    print_rows(rows)


def show_scene(info: SceneInfo, as_json: bool) -> None:
    """What a raster is, and how `segment` would read it, on stdout."""
    if as_json:
        print_json(asdict(info))
        return
    bounds = ", ".join(f"{value:.10g}" for value in info.bounds)
    rows = [
        ["source", info.source],
        ["size", f"{info.width} x {info.height} pixels"],
        ["resolution", "unknown" if info.gsd_m is None else f"{info.gsd_m:.4g} m"],
        ["coordinates", info.crs or "none"],
        ["bounds", bounds],
        ["bands", ", ".join(info.bands)],
        ["nodata", "none" if info.nodata is None else f"{info.nodata:g}"],
        ["read as", info.reading],
    ]
    print_rows(rows)


def show_model(info: ModelInfo, as_json: bool) -> None:
    """What a model folder is, and how it runs unless told otherwise, on stdout."""
    card = info.card
    if as_json:
        facts = asdict(info)
        print_json({**facts.pop("card"), **facts})
        return
    pixels = f", {card.gsd_m[0]:g} to {card.gsd_m[1]:g} m a pixel" if card.gsd_m else ""
    settings = [
        f"{name} {getattr(card, name)}"
        for name in ("attention", "modulated_blocks", "global_bias", "logit_scale", "window")
    ]
    rows = [
        ["model", card.name],
        ["description", card.description],
        ["made for", f"{card.sensor} images{pixels}"],
        ["runs as", ", ".join([*settings, f"stride {card.stride}", f"upsampler {info.upsampler}"])],
        ["reads radar by", ", ".join(_of_radar(card))],
        ["words", f"{len(card.words)} that it has read" if card.words else "any"],
        ["channels", f"{info.channels}"],
        ["size", f"{info.size / 1e6:.0f} MB"],
        ["digest", f"sha256 {info.digest}"],
        ["licence", card.licence],
        ["made by", card.made_by],
    ]
    print_rows([row for row in rows if row[1]])


def _of_radar(card: ModelCard) -> list[str]:
    """How a model's radar images were read, where it matters."""
    filtered = [f"--speckle {card.speckle}"] if card.speckle else []
    span = ["black and white at {:g} and {:g} dB".format(*card.radar_db)] if card.radar_db else []
    return [*([card.polarisation] if card.polarisation else []), *span, *filtered]


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Names and values below one another."""
    print_lines(*(f"{name:<17}{value}" for name, value in rows))
