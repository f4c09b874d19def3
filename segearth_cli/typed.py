"""Dataclasses that hold what their annotations say, whoever fills them; imports nothing heavy."""

import os
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any

from segearth_cli.errors import UsageError

_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    Path: "a path",
    type(None): "None",
}


class Typed:
    """Takes numpy's numbers for Python's, lists for tuples and paths for texts, nothing else."""

    def __post_init__(self) -> None:
        """Refuse values of other types than the fields have."""
        cls: Any = type(self)
        for name, kind in _kinds_of(cls).items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, _taken(value, kind))
            except TypeError as error:
                shown = " ".join(repr(value).split())  # arrays' have lines
                raise UsageError(f"{name} is {shown}; it must be {_named(kind)}") from error


@cache
def _kinds_of(cls: Any) -> dict[str, Any]:
    """The annotations of a dataclass, by field."""
    return typing.get_type_hints(cls)


def _taken(value: Any, kind: Any) -> Any:
    """A value as its kind has it.

    Raises:
        TypeError: it is of another one.
    """
    if getattr(value, "shape", None) == ():  # a number of numpy or torch
        value = value.item()
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for one in arguments:
            try:
                return _taken(value, one)
            except TypeError:
                continue
    elif origin is tuple and not isinstance(value, str | bytes | dict):
        values = tuple(value)
        kinds = arguments[:1] * len(values) if arguments[1:] == (...,) else arguments
        if len(kinds) == len(values):
            return tuple(map(_taken, values, kinds))
    elif kind in (str, Path) and isinstance(value, str | os.PathLike):
        # an Enum of texts calls itself otherwise
        return kind(str.__str__(value) if isinstance(value, str) else os.fspath(value))
    elif isinstance(value, (int, float) if kind is float else origin or kind) and (
        kind is bool or not isinstance(value, bool)
    ):
        return value
    raise TypeError


def _named(kind: Any, several: bool = False) -> str:
    """A kind in words, as ``a whole number or None``; of several, ``whole numbers``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_named(one, several) for one in arguments)
    if origin is not tuple:
        name = _NAMES[kind] if kind in _NAMES else f"a {kind.__name__}"
    elif arguments[1:] == (...,):
        name = f"a tuple of {_named(arguments[0], several=True)}"
    else:
        return f"({', '.join(map(_named, arguments))})"
    if several and name.startswith("a "):
        noun, of, what = name.removeprefix("a ").partition(" of ")
        return f"{noun}s{of}{what}"
    return name
