"""The Segmenter: windows in, logits per query out; scoring and Global Bias Alleviation (3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segearth_cli.device import (
    DTYPES,
    autocast,
    float32_products,
    has_float64,
    memory_guard,
    pick_device,
    pick_precision,
)
from segearth_cli.errors import ModelError, UsageError
from segearth_cli.geo.tiling import WindowGrid
from segearth_cli.model.clip import DenseEncoder, round_weights
from segearth_cli.model.fast_upsampler import FastUpsampler
from segearth_cli.model.folder import ModelFolder, load_clip
from segearth_cli.model.text import text_features
from segearth_cli.model.upsampler import Upsampler, build_upsampler, read_upsampler_state
from segearth_cli.model.weights import cache_folder, resolve_model
from segearth_cli.options import ModelOptions
from segearth_cli.stages import stage
from segearth_cli.words import Words

NO_NUMBERS = "the model gives values that are no numbers; try --precision fp32"


@dataclass(frozen=True)
class ModelSettings:
    """The model's settings as they run: the folder's own, unless the user said otherwise."""

    name: str
    folder: ModelFolder
    attention: str
    modulated_blocks: int
    upsampler: str  # bilinear, or its file
    global_bias: float
    logit_scale: float
    window: int  # pixels; 0 = the whole scene at once
    stride: int  # pixels
    blend: str  # of overlapping windows
    precision: str
    exact: bool  # no approximation for speed

    def windows(self, height: int, width: int) -> WindowGrid:
        """The windows over an image."""
        return WindowGrid(height, width, self.window, self.stride, blend=self.blend)

    def as_record(self) -> dict[str, Any]:
        """What a map's record says of them; the folder has a digest of its own there."""
        return {name: value for name, value in vars(self).items() if name != "folder"}


class Segmenter(nn.Module):
    """Open-vocabulary segmentation of windows.

    Args:
        encoder: the modulated vision tower.
        upsampler: of the features; ``None`` interpolates the logits bilinearly.
        text: text features of the queries, Q x D, of unit length.
        mean, std: of the images that the encoder was trained on, three values each.
        global_bias: lambda of Global Bias Alleviation; 0 leaves it out.
        logit_scale: factor on the logits before the softmax over queries.
        query_class: index of each query's class.
        precision: ``fp32``, ``bf16`` or ``fp16``, of the encoder and the upsampler's kernels;
            all else is float32.
        exact: run the upsampler as it is written, on all channels: what `FastUpsampler` is
            measured against.
    """

    text: Tensor
    mean: Tensor
    std: Tensor
    query_class: Tensor

    def __init__(
        self,
        encoder: DenseEncoder,
        upsampler: Upsampler | None,
        text: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        global_bias: float,
        logit_scale: float,
        query_class: Sequence[int],
        precision: str = "fp32",
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.upsampler = upsampler
        self.global_bias = global_bias
        self.logit_scale = logit_scale
        self.precision = precision
        self.exact = exact
        self.most_windows: int | None = None  # at once, where more were found not to fit
        self.register_buffer("text", text)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None])
        self.register_buffer("query_class", torch.tensor(query_class))

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.text.device

    def _apply(self, *args: Any, **more: Any) -> Any:
        """Move or convert it; what was made for the old device is made again."""
        self.__dict__.pop("fast_upsampler", None)
        return super()._apply(*args, **more)  # type: ignore[no-untyped-call]

    @cached_property
    def fast_upsampler(self) -> FastUpsampler | None:
        """The upsampler in the form that runs.

        ``None`` where there is no upsampler, ``exact`` is set, or the device lacks float64.
        """
        if self.upsampler is None or self.exact or not has_float64(self.device):
            return None
        dtype = DTYPES.get(self.precision, torch.float32)
        return FastUpsampler(self.upsampler, self.text, self.encoder.patch_size, dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of every query at every pixel.

        Args:
            images: B x 3 x H x W in [0, 1]; any size: padded to whole patches and cut back.

        Returns:
            B x Q x H x W: cosine of feature and query, less ``global_bias`` times the cosine of
            class token and query.

        Raises:
            ValueError: these are no such images.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            shape = " x ".join(map(str, images.shape))
            raise ValueError(
                f"the images are {shape} of {images.dtype}; give B x 3 x H x W floating point "
                "numbers in [0, 1]"
            )
        return self.window_logits(self.normalised(images.to(self.device, torch.float32)))

    def normalised(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the encoder takes them."""
        return (images - self.mean) / self.std

    def window_logits(self, images: Tensor) -> Tensor:
        """The same as `forward`, of normalised images."""
        height, width = images.shape[-2:]
        padded, (top, left) = self.padded(images)
        features, bias = self.encode(padded)
        with stage("upsampler"):
            logits = self.cosines(features, padded) - bias[:, :, None, None]
        return logits[..., top : top + height, left : left + width]

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patch features, and what Global Bias Alleviation takes off (paper 3.3, eq. 9).

        Args:
            images: B x 3 x H x W, normalised, of whole patches.

        Returns:
            B x D x h x w and B x Q, float32.
        """
        with stage("encoder"), autocast(self.device, self.precision):
            features, class_token = self.encoder(images)
        return features.float(), self.global_bias * self.class_similarity(class_token)

    def class_similarity(self, class_token: Tensor) -> Tensor:
        """Cosine of the class token with each query: B x D -> B x Q."""
        return F.normalize(class_token.float(), dim=-1) @ self.text.T

    def cosines(self, features: Tensor, images: Tensor) -> Tensor:
        """Cosine of each pixel's feature with each query.

        Args:
            features: B x D x h x w, float32.
            images: B x 3 x H x W, those that were encoded.

        Returns:
            B x Q x H x W.
        """
        with float32_products(self.device):
            cosines = self._upsampled(features, images)
        size = images.shape[-2:]
        if cosines.shape[-2:] == size:
            return cosines
        return F.interpolate(cosines, size, mode="bilinear", align_corners=False)

    def _upsampled(self, features: Tensor, images: Tensor) -> Tensor:
        """Cosine of each feature, as fine as the upsampler makes them, with each query."""
        if self.fast_upsampler is not None:
            coordinates = self.fast_upsampler.coordinates.of(features)
            coordinates = self.fast_upsampler.coarse(coordinates, images, left=1)
            return self.fast_upsampler.logits(coordinates, images)
        if self.upsampler is not None:
            features = self.upsampler(features, images)
        similarity = torch.einsum("bdhw,qd->bqhw", features, self.text)
        return similarity / features.norm(dim=1, keepdim=True).clamp(min=1e-12)

    def padded(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Zero-pad evenly to whole patches; also returns the rows above and columns left."""
        patch = self.encoder.patch_size
        least = patch * (self.upsampler.smallest_grid if self.upsampler is not None else 1)
        missing = [max(least, -(-side // patch) * patch) - side for side in images.shape[-2:]]
        (top, left) = (side // 2 for side in missing)
        padded = F.pad(images, (left, missing[1] - left, top, missing[0] - top))
        return padded, (top, left)

    def class_probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each class: softmax over queries, a class takes its best query's.

        Args:
            logits: Q x H x W, averaged over the windows.

        Returns:
            K x H x W.
        """
        probabilities = (logits * self.logit_scale).softmax(dim=0)
        classes = int(self.query_class.max()) + 1
        if classes == len(self.query_class):
            return probabilities
        index = self.query_class[:, None, None].expand_as(probabilities)
        empty = probabilities.new_zeros(classes, *probabilities.shape[1:])
        return empty.scatter_reduce(0, index, probabilities, "amax")


def load_segmenter(
    options: ModelOptions, vocabulary: Words, sensor: str
) -> tuple[Segmenter, ModelSettings]:
    """The model that the options name, ready to run, and its settings as they run.

    Raises:
        ModelError: the model's files are missing, damaged, or do not fit together.
        UsageError: no such model, sensor or device.
        SegEarthError: there is not enough memory.
    """
    folder = resolve_model(options.model, sensor)
    device = pick_device(options.device)
    settings = model_settings(folder, options, pick_precision(options.precision_wanted, device))
    (segmenter,) = load_segmenters([settings], vocabulary, device)
    return segmenter, settings


def load_segmenters(
    every: Sequence[ModelSettings], words: Words, device: torch.device
) -> list[Segmenter]:
    """Settings of one model, ready to run, all on one vision tower.

    Raises:
        ModelError: the model's files are missing, damaged, or do not fit together.
        SegEarthError: there is not enough memory.
    """
    folder = every[0].folder
    elsewhere = "" if device.type == "cpu" else "--device cpu, or "
    with memory_guard(f"{every[0].name} does not fit {device}: try {elsewhere}a smaller model"):
        clip, tokenizer = load_clip(folder)
        cached = cache_folder() / "text"
        text = text_features(clip, tokenizer, words.queries, cached, folder.digest())
        paths = dict.fromkeys(settings.upsampler for settings in every)
        upsamplers = {path: load_upsampler(path, clip.visual) for path in paths}
        return [
            build_segmenter(
                clip.visual, upsamplers[own.upsampler], text, words.query_class, own
            ).to(device)
            for own in every
        ]


def load_upsampler(path: str, visual: Any) -> Upsampler | None:
    """The upsampler of a file for a vision tower's features; ``None`` for ``bilinear``.

    Raises:
        ModelError: its file is damaged or of another width.
    """
    if path == "bilinear":
        return None
    return build_upsampler(read_upsampler_state(Path(path)), int(visual.output_dim), path)


def build_segmenter(
    visual: Any,
    upsampler: Upsampler | None,
    text: Tensor,
    query_class: Sequence[int],
    settings: ModelSettings,
) -> Segmenter:
    """A segmenter of a vision tower and an upsampler, which several can share, and text Q x D.

    The tower's layers are rounded to the settings' precision.

    Raises:
        ModelError: the tower is no plain transformer.
    """
    encoder = DenseEncoder(visual, settings.attention, settings.modulated_blocks)
    if settings.precision in DTYPES:
        round_weights(visual, DTYPES[settings.precision])
    segmenter = Segmenter(
        encoder,
        upsampler,
        text,
        mean=visual.preprocess_cfg["mean"],
        std=visual.preprocess_cfg["std"],
        global_bias=settings.global_bias,
        logit_scale=settings.logit_scale,
        query_class=query_class,
        precision=settings.precision,
        exact=settings.exact,
    )
    return segmenter.eval().requires_grad_(False)


def model_settings(folder: ModelFolder, options: ModelOptions, precision: str) -> ModelSettings:
    """The folder's settings, each replaced by the user's where there is one.

    Raises:
        UsageError: windows so far apart that pixels would be left out, more modulated blocks than
            the vision tower has, or any with gem.
        ModelError: there is no such upsampler file.
    """
    card = folder.card

    def chosen(name: str) -> Any:
        own = getattr(options, name)
        return getattr(card, name) if own is None else own

    blocks = number_of_tower(folder, "layers")
    if options.modulated_blocks is not None and 0 < blocks < options.modulated_blocks:
        raise UsageError(
            f"--modulated-blocks is {options.modulated_blocks}, and {card.name} has {blocks} "
            f"blocks; give {blocks} or less"
        )
    if options.modulated_blocks is not None and chosen("attention") == "gem":
        raise UsageError(
            f"--modulated-blocks {options.modulated_blocks} changes nothing: the attention gem has "
            "a depth of its own; leave it out, or name another --attention"
        )
    window = chosen("window")
    stride = options.stride or (card.stride if options.window is None else max(window // 2, 1))
    if window and stride > window:
        raise UsageError(
            f"a stride of {stride} pixels skips pixels between windows of {window}; "
            f"give a --stride of {window} or less"
        )
    return ModelSettings(
        name=card.name,
        folder=folder,
        attention=chosen("attention"),
        modulated_blocks=chosen("modulated_blocks"),
        upsampler=str(upsampler_path(folder, options) or "bilinear"),
        global_bias=chosen("global_bias"),
        logit_scale=chosen("logit_scale"),
        window=window,
        stride=stride,
        blend=options.blend,
        precision=precision,
        exact=options.exact,
    )


def number_of_tower(folder: ModelFolder, name: str) -> int:
    """A whole number of the folder's vision tower, as ``layers``; 0 where it names none."""
    value = folder.read_config()["model_cfg"]["vision_cfg"].get(name)
    return value if isinstance(value, int) else 0


def upsampler_path(folder: ModelFolder, options: ModelOptions) -> Path | None:
    """The upsampler's file: the folder's own by ``auto``; none means bilinear."""
    if options.upsampler == "bilinear":
        return None
    path = folder.upsampler if options.upsampler == "auto" else Path(options.upsampler)
    if path is not None and not path.is_file():
        raise ModelError(f"no upsampler at {path}; give a .safetensors or .ckpt file")
    return path
