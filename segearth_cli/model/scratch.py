"""Memory for what is computed again and again, of the same size or nearly."""

import math
from collections.abc import Sequence

from torch import Tensor


class Scratch:
    """Memory that is used again and again: fresh pages cost more than the arithmetic on them."""

    def __init__(self) -> None:
        self._flat: dict[object, Tensor] = {}

    def take(self, name: object, shape: Sequence[int], like: Tensor, fill: float = 0.0) -> Tensor:
        """A tensor of that shape; it still holds what was written to it under that name."""
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or len(flat) < size:
            flat = self._flat[name] = like.new_full((size,), fill)
        return flat[:size].view(*shape)
