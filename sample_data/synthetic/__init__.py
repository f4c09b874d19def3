"""Synthetic aerial scenes: a landscape is laid out, drawn, and seen by a camera and a radar."""

from .scene import Scene, render
from .styles import CLASSES, LABEL_COLOURS

__all__ = ["CLASSES", "LABEL_COLOURS", "Scene", "render"]
