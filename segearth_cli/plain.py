"""Values as JSON has them; imports nothing heavy."""

import math
from typing import Any


def plain(value: Any, nan: str | None = "nan") -> Any:
    """The value as JSON gives it back: lists for tuples, words for infinity, ``nan`` for NaN."""
    if isinstance(value, dict):
        return {name: plain(item, nan) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, nan) for item in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return nan if math.isnan(value) else str(value)


def is_finite(value: object) -> bool:
    """Whether a value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object, least: int = 0, most: float = math.inf) -> bool:
    """Whether a value is a whole number in this range."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
