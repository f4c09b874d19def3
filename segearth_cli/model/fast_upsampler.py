"""The upsampler as scoring needs it: features to coordinates, doublings over tiles, logits."""

import torch
import torch.nn.functional as F
from torch import Tensor

from segearth_cli.model.coordinates import Coordinates
from segearth_cli.model.fused import MOST_CHANNELS, FusedKernels, fused_kernels
from segearth_cli.model.runs import TILE
from segearth_cli.model.tiles import TileKernels, doubled, window_sums
from segearth_cli.model.upsampler import Upsampler


class FastUpsampler:
    """Logits at pixel resolution from patch features.

    Args:
        upsampler: in evaluation mode; its weights are copied.
        text: text features, Q x D.
        patch: side of a patch in pixels.
        dtype: see `TileKernels`.
    """

    def __init__(self, upsampler: Upsampler, text: Tensor, patch: int, dtype: torch.dtype) -> None:
        self.patch = patch
        self.smallest_grid = upsampler.smallest_grid  # patches a side
        self.coordinates = Coordinates(text, upsampler.fixup_proj[1])
        steps = upsampler.steps(patch)
        own = {step: TileKernels(step, dtype) for step in set(steps)}
        self.kernels = [own[step] for step in steps]
        self._fused = fused_kernels(self.kernels)

    def coarse(self, coordinates: Tensor, image: Tensor, left: int) -> Tensor:
        """Coordinates after all doublings but the last ``left``.

        Args:
            coordinates: of the patch features, B x h x w x C.
            image: B x 3 x H x W, normalised as for the encoder, as fine as the result or finer.
            left: doublings that are left to do.

        Returns:
            B x h' x w' x C.
        """
        fused = self.fused_for(coordinates.shape[-1])
        for step in range(len(self.kernels) - left):
            final = guidance(coordinates, image)
            if fused is not None:
                coordinates = fused[step].doubled(coordinates, final)
            else:
                coordinates = doubled(self.kernels[step], coordinates, final)
        return coordinates

    def fused_for(self, channels: int) -> list[FusedKernels] | None:
        """The kernels for GPUs, if they run here and have room for so many coordinates."""
        return self._fused if channels <= MOST_CHANNELS else None

    def logits(self, coordinates: Tensor, image: Tensor) -> Tensor:
        """Cosine of every pixel's feature with every query, by the last doubling.

        Args:
            coordinates: what ``coarse`` returns with one doubling left, B x h' x w' x C.
            image: B x 3 x H x W.

        Returns:
            B x Q x h x w, as large as patches times 2^doublings.
        """
        final = guidance(coordinates, image)
        fused = self.fused_for(coordinates.shape[-1])
        if fused is not None:
            return fused[-1].logits(coordinates, final, self.coordinates)
        height, width = final.shape[-2:]
        size = (len(final), -(-height // TILE) * TILE, -(-width // TILE) * TILE)
        logits = coordinates.new_empty(*size, self.coordinates.queries)
        for chunk, sums in window_sums(self.kernels[-1], coordinates, final):
            chunk.write(logits, self.coordinates.logits(sums))
        return logits[:, :height, :width].movedim(-1, 1)


def guidance(coordinates: Tensor, image: Tensor) -> Tensor:
    """The image at twice the coordinates' resolution: B 3 2h 2w."""
    return F.adaptive_avg_pool2d(image, (2 * coordinates.shape[1], 2 * coordinates.shape[2]))
