"""The Lee filter: speckle averaged where a radar image is calm, kept where it is not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segearth_cli.geo.sensors import SMALLEST_POWER

Array = NDArray[Any]
Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]

UNITS: dict[str, tuple[Function, Function]] = {  # values to intensities, and back
    "decibels": (lambda x: 10 ** (x / 10), lambda x: 10 * np.log10(np.maximum(x, SMALLEST_POWER))),
    "amplitude": (np.square, np.sqrt),
    "power": (lambda x: x, lambda x: x),
}

_CALM = 75  # percentile of the windows' looks that counts as an even surface
_LEAST = 1e-30  # variance and mean are divided by


@dataclass(frozen=True)
class LeeFilter:
    """J.-S. Lee's filter for multiplicative noise (1980), on intensities.

    A pixel x in a window of mean m and variance v becomes m + w (x - m), w = 1 - cu^2 / ci^2,
    where ci^2 = v / m^2 and cu^2 = 1 / looks; w lies between 0 and 1. Only valid pixels count.

    Attributes:
        size: pixels a side of the window, odd.
        unit: ``decibels``, ``amplitude`` or ``power``, of the values.
        looks: equivalent number of looks of the scene.
    """

    size: int
    unit: str
    looks: float = 1.0

    @property
    def margin(self) -> int:
        """Pixels around an image that its border needs."""
        return self.size // 2

    def __call__(self, raw: Array, valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Filter values with ``margin`` pixels around them: [B, h, w] -> smaller, float32."""
        power, valid = self._power(raw, valid)
        mean, variance = self._moments(power, valid)
        noise = mean**2 / self.looks
        weight = np.clip(1 - noise / np.maximum(variance, _LEAST), 0, 1)
        power, valid, raw = (self._inside(part) for part in (power, valid, raw))
        filtered = np.maximum(mean + weight * (power - mean), 0)
        values = UNITS[self.unit][1](filtered).astype(np.float32)
        return np.where(valid, values, raw.astype(np.float32))

    def _inside(self, image: Array) -> Array:
        return image[..., self.margin : -self.margin, self.margin : -self.margin]

    def looks_of(self, raw: Array, valid: NDArray[np.bool_]) -> float:
        """Return the number of looks: mean^2 / variance of windows on calm ground."""
        power, valid = self._power(raw, valid)
        if min(raw.shape[-2:]) < self.size:
            return self.looks
        mean, variance = self._moments(power, valid)
        mean, variance = (part[:, :: self.size, :: self.size] for part in (mean, variance))
        usable = (mean > 0) & (variance > 0)
        if not usable.any():
            return self.looks
        return float(np.percentile(mean[usable] ** 2 / variance[usable], _CALM))

    def _moments(
        self, power: NDArray[np.float64], valid: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and variance of the valid pixels of every window."""
        count = np.maximum(self._sums(valid.astype(np.float64)), 1)
        mean = self._sums(power) / count
        return mean, np.maximum(self._sums(power**2) / count - mean**2, 0)

    def _sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return sums over windows, always added in the same order: [B, h, w] -> smaller."""
        for axis in (1, 2):
            length = values.shape[axis] - self.size + 1
            total = np.take(values, range(length), axis)
            for start in range(1, self.size):
                total += np.take(values, range(start, start + length), axis)
            values = total
        return values

    def _power(
        self, raw: Array, valid: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return intensities, 0 where there is none, and where there are some."""
        valid = valid & np.isfinite(raw)
        power = UNITS[self.unit][0](np.where(valid, raw, 0).astype(np.float64))
        return np.where(valid, power, 0.0), valid
