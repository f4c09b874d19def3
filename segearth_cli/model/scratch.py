"""Memory for what is computed again and again, of the same size or nearly."""

import math
from collections.abc import Sequence

from torch import Tensor


class Scratch:
    """Memory that is used again and again: fresh pages cost more than the arithmetic on them.

    Only on CPUs: accelerators have it from torch, and little of it.
    """

    def __init__(self) -> None:
        self._flat: dict[object, Tensor] = {}

    def take(
        self, name: object, shape: Sequence[int], like: Tensor, fill: float | None = None
    ) -> Tensor:
        """A tensor of that shape, for what nobody else uses that name for until it is done with.

        With ``fill`` it holds that number wherever nothing was written under the name.
        """
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or len(flat) < size:
            flat = like.new_empty(size) if fill is None else like.new_full((size,), fill)
            if like.is_cpu:
                self._flat[name] = flat
        return flat[:size].view(*shape)
