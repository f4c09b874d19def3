"""Labels of a dataset as class indices, and whether all of them can be measured by."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segearth_cli.errors import SceneError
from segearth_cli.geo.datasets import Dataset, Sample
from segearth_cli.geo.failures import GDAL_ERRORS, damage
from segearth_cli.geo.source import band_facts, open_raster
from segearth_cli.progress import progress_bar
from segearth_cli.scores import IGNORED

COLOURS_FROM = 3  # bands on, a label is an RGB picture
_MOST_NAMED = 3  # unknown colours
_CUT = 8  # pixels that a label may lack of an image where nobody made it coarser
_FEW_CLASSES = 2  # which one expects to be there
_TOO_DARK = -1  # no colour: what is neither black nor white in a mask

logger = logging.getLogger(__name__)


def check_labels(dataset: Dataset, samples: Sequence[Sample], progress: bool = True) -> None:
    """Read every label once, so that what is wrong with one is said before a model runs.

    Args:
        dataset: whose protocol says what values and colours mean.
        samples: the images, of which only the headers are read, and their labels.
        progress: show a bar on stderr, where that is a terminal.

    Raises:
        SceneError: a label cannot be read, holds what is no class or does not fit its image; or no
            pixel of any of them has a label.
    """
    strange: Counter[int] = Counter()
    pixels = labelled = 0
    cut: list[Sample] = []
    of_class = np.zeros(len(dataset.classes), np.int64)
    for sample in progress_bar(progress, samples, unit="label", desc="labels"):
        truth = read_label(sample, dataset, strange)
        size = _size_of(str(sample.image))
        check_shapes(sample, size, truth.shape)
        if 0 < max(abs(a - b) for a, b in zip(size, truth.shape, strict=True)) <= _CUT:
            cut.append(sample)
        pixels += truth.size
        labelled += int(np.count_nonzero(truth != IGNORED))
        of_class += np.bincount(truth.ravel(), minlength=IGNORED + 1)[: len(of_class)]
    if cut:
        logger.warning(
            "%d of %d labels have a few pixels more or less than their images, as %s: taken as "
            "finer or coarser; if they were cut, cut the images alike",
            len(cut),
            len(samples),
            cut[0].label,
        )
    if strange.pop(_TOO_DARK, 0) and not of_class[1]:
        logger.warning(
            "no mask in %s has a value of %s or more, from where on pixels are %s; where 1 is "
            "meant, set grey = 1",
            samples[0].label.parent,
            samples[0].layout.grey,
            dataset.names[1],
        )
    if strange:
        _warn_of_colours(strange, pixels, dataset)
    is_mask = samples[0].layout.grey is not None
    if labelled and not is_mask and len(of_class) <= _FEW_CLASSES and not of_class.all():
        logger.warning(
            "no pixel of the labels is %s; %.3g %% say nothing (a value of %s, or nodata); masks "
            "of 0 and 255 need grey = 128",
            dataset.names[int(of_class.argmin())],
            100 - 100 * labelled / pixels,
            " or ".join(map(str, dataset.ignore)),
        )
    if not labelled:
        raise SceneError(
            f"no pixel of the labels in {samples[0].label.parent} has a class of {dataset.name}: "
            "all values or colours say nothing; check ignore, reduce_zero_label and palette"
        )


def _size_of(image: str) -> tuple[int, int]:
    """Height and width by a raster's header."""
    with open_raster(image) as src:
        return src.height, src.width


def _warn_of_colours(strange: Counter[int], pixels: int, dataset: Dataset) -> None:
    """Say which colours are no class's, and what becomes of them."""
    rest = _rest_of(dataset)
    logger.warning(
        "%.3g %% of the labels' pixels have colours that are no class of %s, such as %s: they %s",
        100 * strange.total() / pixels,
        dataset.name,
        " and ".join(
            f"{code >> 16},{code >> 8 & 255},{code & 255}"
            for code, _ in strange.most_common(_MOST_NAMED)
        ),
        "are left out" if rest == IGNORED else f"count as {dataset.names[rest]}",
    )


def check_shapes(sample: Sample, image: tuple[int, int], label: tuple[int, ...]) -> None:
    """Refuse an image and a label that cannot show the same ground.

    A label may be finer or coarser than its image by one factor, unless both are cut into pieces.

    Args:
        sample: of which they are.
        image, label: height and width, in pixels.

    Raises:
        SceneError: they do.
    """
    down, across = (own / other for own, other in zip(image, label, strict=True))
    off = abs(across / down - 1) * max(label)  # pixels of the label
    if image != label and (sample.layout.patch is not None or off > max(1.0, 1 / down)):
        raise SceneError(
            f"{sample.image} has {image[1]} x {image[0]} pixels, {sample.label} "
            f"{label[1]} x {label[0]}; they must show the same ground"
        )


def read_label(
    sample: Sample, dataset: Dataset, strange: Counter[int] | None = None
) -> NDArray[np.uint8]:
    """The label as class indices, H x W; ``IGNORED`` where it says nothing.

    Args:
        sample: an image and its label.
        dataset: whose protocol says what values and colours mean.
        strange: takes up the pixels of every colour that is no class's, as 0xRRGGBB; of a mask
            those that are neither black nor white, as ``_TOO_DARK``.

    Raises:
        SceneError: it cannot be read, or holds a value that is no class.
    """
    source = str(sample.label)
    with open_raster(source) as src:
        nodata = src.nodata
        is_bit = src.tags(1, ns="IMAGE_STRUCTURE").get("NBITS") == "1"  # 0 and 1, black and white
        data = band_facts(src).data or (1,)  # without alpha
        try:
            bands = src.read(data)
        except GDAL_ERRORS as error:
            raise SceneError(f"cannot read {source}: {damage(error)}") from error
    if sample.layout.grey is not None:
        least = 1 if is_bit else sample.layout.grey
        grey = bands.mean(axis=0)
        silent = np.isnan(grey)
        if nodata and nodata < least:  # black or white declared so shows less of a mask in GIS
            silent |= bands[0] == nodata
        if strange is not None:
            strange[_TOO_DARK] += int(((grey > 0) & (grey < least) & ~silent).sum())
        mask: NDArray[np.uint8] = (grey >= least).astype(np.uint8)
        mask[silent] = IGNORED
        return mask
    if len(bands) >= COLOURS_FROM:
        return _of_colours(bands[:3], dataset, source, strange)
    return _of_values(bands[0], nodata, dataset, source)


def _of_values(
    values: NDArray[Any], nodata: float | None, dataset: Dataset, source: str
) -> NDArray[np.uint8]:
    """Class indices of a label's values, H x W; its nodata value says nothing, if it is no class's.

    Of floats NaN says nothing, and the others must be whole.
    """
    if values.dtype.kind == "c":
        raise SceneError(f"{source} holds complex values, and classes are whole numbers")
    first = int(dataset.reduce_zero_label)  # the value of the first class
    is_class = (values >= first) & (values < first + len(dataset.classes))
    if values.dtype.kind == "f":
        is_class &= values == np.floor(values)
    silent = [*([0] if first else []), *([] if nodata is None else [nodata])]
    ignored = np.isin(values, dataset.ignore)
    ignored |= ~is_class & (np.isin(values, silent) | np.isnan(values))
    strange = values[~is_class & ~ignored]
    if strange.size:
        raise SceneError(
            f"{source} holds {strange[0]:.10g}, which is none of the {len(dataset.classes)} "
            f"classes of {dataset.name}; name such values in ignore = [...]"
        )
    indices = np.full(values.shape, IGNORED, np.uint8)
    known = is_class & ~ignored
    indices[known] = (values[known] - first).astype(np.uint8)
    return indices


def _of_colours(
    bands: NDArray[Any], dataset: Dataset, source: str, strange: Counter[int] | None
) -> NDArray[np.uint8]:
    """Class indices of an RGB label, 3 x H x W -> H x W; see `_rest_of` for unknown colours."""
    if not dataset.palette:
        raise SceneError(
            f"{source} is a picture of {len(bands)} bands, and {dataset.name} has no palette; "
            "convert it to class indices"
        )
    if bands.dtype.kind not in "iu" or bands.min() < 0 or bands.max() > 255:
        raise SceneError(
            f"{source} has colours of {bands.dtype} beyond 0 to 255; convert it to 8 bits"
        )
    code = (bands.astype(np.uint32) << np.array([16, 8, 0], np.uint32)[:, None, None]).sum(axis=0)
    label = np.full(code.shape, _rest_of(dataset), np.uint8)
    unknown = np.ones(code.shape, bool)
    entries = [(*colour, index) for index, colour in enumerate(dataset.palette)]
    for red, green, blue, index in (*entries, *dataset.colours):
        own = code == (red << 16 | green << 8 | blue)
        label[own] = index
        unknown &= ~own
    if strange is not None:
        found, counts = np.unique(code[unknown], return_counts=True)
        strange.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
    return label


def _rest_of(dataset: Dataset) -> int:
    """What a colour that is no class's counts as: the background, or nothing.

    Where label 0 says nothing, such a colour says nothing either.
    """
    rest = IGNORED if dataset.reduce_zero_label else dataset.background_index
    return IGNORED if rest is None else rest
