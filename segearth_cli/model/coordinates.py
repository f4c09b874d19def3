"""Features in few coordinates: all that scoring asks of them, through a linear upsampler.

Logits need a feature's products with the text vectors and its length, nothing else. The products
live in the span of the text vectors, which is carried exactly. Of the rest only lengths of sums of
a window's own patches are asked for: its components along that window's leading directions do.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segearth_cli.model.scratch import Scratch
from segearth_cli.model.upsampler import pointwise_weights

ALIGNED = 32  # channels come in multiples of this
LEAST_RANK = 16  # directions besides the text's
TOLERANCE = 2e-3  # share of a window's squared lengths that may be left out


class Coordinates:
    """Turns features into coordinates before an upsampler, and coordinates into logits after.

    Args:
        text: text features, Q x D.
        mixing: the upsampler's last convolution, which is linear too and goes into the
            coordinates: x + 0.1 (W x + b).
    """

    def __init__(self, text: Tensor, mixing: nn.Module) -> None:
        eye = torch.eye(text.shape[1], dtype=torch.float64, device=text.device)
        weight, bias = (part.double() for part in pointwise_weights(mixing))
        self._mixing = (eye + 0.1 * weight).float()
        span = torch.cat([text.double(), 0.1 * bias[None]])
        # Singular vectors put what all texts share into one coordinate: the others stay small,
        # and keep their digits in bf16.
        _, strength, directions = torch.linalg.svd(span, full_matrices=False)
        basis = directions[strength > 1e-6 * strength[0]].T  # D x own
        if _aligned(basis.shape[1] + LEAST_RANK) >= len(eye):
            basis = eye  # nothing to gain: the coordinates are the channels
        self._basis = basis.float()
        self._is_whole = basis.shape[1] == len(eye)
        self._shift = (0.1 * bias @ basis).float()
        self._text = (text.double() @ basis).T.float()  # own x Q
        self._scratch = Scratch()

    @property
    def queries(self) -> int:
        """How many texts there are."""
        return self._text.shape[1]

    def most(self, patches: int) -> int:
        """Coordinates that a window of so many patches may need."""
        dimensions, own = self._basis.shape
        return min(dimensions, own + patches)

    def of(self, features: Tensor) -> Tensor:
        """Coordinates of projected patch features: B D h w -> B h w C, float32.

        C depends on the window that needs most; a window's values do not depend on the others.
        """
        grid = features.shape[-2:]
        tokens = features.float().flatten(2).mT @ self._mixing.T  # B N D
        own = tokens @ self._basis
        if not self._is_whole:
            rest = tokens - own @ self._basis.T
            taken = own.shape[-1]
            most = self.most(tokens.shape[1]) - taken
            factors = low_rank(rest, min(_aligned(taken + LEAST_RANK) - taken, most), most)
            own = torch.cat([own, factors], dim=-1)
        return own.unflatten(1, grid)

    def logits(self, coordinates: Tensor) -> Tensor:
        """Cosine of feature and text: ... C -> ... Q, float32. The coordinates are overwritten."""
        own, length = self._of_texts(coordinates)
        return (own / length) @ self._text

    def blended(self, coordinates: Tensor, weights: Tensor) -> Tensor:
        """Sum over windows of weight times cosine of feature and text.

        Args:
            coordinates: of pixels as several windows see them, B x N x windows x C; overwritten.
            weights: B x N x windows.

        Returns:
            B x Q x N, float32.
        """
        own, length = self._of_texts(coordinates)
        own *= weights[..., None] / length
        return self._text.T @ own.sum(dim=-2).mT  # one product with the texts for all windows

    def filled(self, channels: int) -> tuple[Tensor, Tensor]:
        """What is added to coordinates, and the texts' ones, with zeros up to ``channels``.

        Returns:
            C and Q x C: logits are text (x + shift) / |x + shift|.
        """
        more = (0, channels - len(self._shift))
        return F.pad(self._shift, more), F.pad(self._text.T, more).contiguous()

    def _of_texts(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """The coordinates that the texts have too, and the lengths of all: ... own, ... 1."""
        if coordinates.dtype != self._text.dtype:
            exact = self._scratch.take("coordinates", coordinates.shape, self._text)
            coordinates = exact.copy_(coordinates)
        own = coordinates[..., : len(self._shift)]
        own += self._shift
        return own, coordinates.norm(dim=-1, keepdim=True).clamp_(min=1e-12)


def _aligned(channels: int) -> int:
    return -(-channels // ALIGNED) * ALIGNED


def low_rank(vectors: Tensor, columns: int, most: int) -> Tensor:
    """Fewer numbers per vector with nearly the same products: B N D -> B N columns.

    The vectors' components along the leading directions of each window (Halko, Martinsson and
    Tropp 2011: a random sketch and one subspace iteration). A window whose directions leave out
    more than ``TOLERANCE`` of its squared lengths gets more of them, up to ``most``; the others
    are then filled up with zeros.
    """
    factors = _leading(vectors, columns)
    squared = vectors.square().sum((1, 2))
    more = ALIGNED
    while factors.shape[-1] < most:
        poor = squared - factors.square().sum((1, 2)) > TOLERANCE * squared
        if not poor.any():
            break
        own = _leading(vectors[poor], min(factors.shape[-1] + more, most))
        more *= 2
        factors = F.pad(factors, (0, own.shape[-1] - factors.shape[-1]))
        factors[poor] = own
    return factors


def _leading(vectors: Tensor, rank: int) -> Tensor:
    """Components along approximately the leading directions: B N D -> B N rank."""
    sketch = vectors @ _random_directions(vectors.shape[-1], rank).to(vectors.device)
    directions = _orthonormal(vectors.mT @ _orthonormal(sketch))
    return vectors @ directions


@lru_cache(maxsize=8)
def _random_directions(size: int, rank: int) -> Tensor:
    """The same ones at every call: size x rank."""
    return torch.randn(size, rank, generator=torch.Generator().manual_seed(0))


def _orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span: B N r, by Cholesky in float64.

    Far faster in batches than a QR decomposition. Where the columns depend on each other some
    come out short, never long: lengths in the basis are never overestimated.
    """
    exact = columns.double()
    products = exact.mT @ exact
    diagonal = products.diagonal(dim1=-2, dim2=-1)
    diagonal += 1e-12 * diagonal.sum(-1, keepdim=True) + 1e-30
    factor = torch.linalg.cholesky(products)
    basis: Tensor = torch.linalg.solve_triangular(factor, exact.mT, upper=False).mT
    return basis.to(columns.dtype)
