"""The datasets of the paper as data: `presets.json`, read."""

import functools
import json
from importlib import resources
from typing import Any


@functools.cache
def read_presets() -> dict[str, dict[str, Any]]:
    """Every preset by name."""
    text = resources.files("segearth_cli").joinpath("presets.json").read_text(encoding="utf-8")
    return {preset["name"]: preset for preset in json.loads(text)}
