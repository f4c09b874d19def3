"""What a person looks at after a run: the preview picture."""

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from segearth_cli.errors import OutputError
from segearth_cli.geo.legend import Legend
from segearth_cli.geo.recorded import KEY, to_json
from segearth_cli.names import listed, shortened
from segearth_cli.staging import shown

_LONGEST = 1600  # pixels, of the whole picture
_SMALLEST = 480  # a tiny scene is enlarged to this
_THINNEST = 12  # a scene of one row is drawn this thick
_GAP = 16
_COLUMN_GAP = 40  # between columns of the legend
_LINE = 24  # height of a legend row
_SWATCH = 16
_NAME_WIDTH = 240
_MOST_CLASSES = 40  # listed in the legend
_MAP_ALPHA = 0.5
_BORDER_ALPHA = 0.9
_PAPER, _INK, _FAINT = (255, 255, 255), (33, 37, 41), (134, 142, 150)
_NO_DATA = (222, 226, 230)

_FONTS = (  # by Pillow's search of the system's folders
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "arial.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "PingFang.ttc",
)

logger = logging.getLogger(__name__)

_Colour = tuple[int, int, int]


def write_preview(
    image: NDArray[Any],
    valid: NDArray[np.bool_],
    classes: NDArray[Any],
    legend: Legend,
    destination: str | Path,
    *,
    pixels: Mapping[int, int],
    title: str = "",
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write a PNG of a scene: the image, the map over it, and the legend with class shares.

    ``image`` [3, h, w] is uint8 or float in [0, 1], ``valid`` and ``classes`` [h, w]; all may be
    decimated. ``pixels`` counts every class in the full raster. ``record`` goes along as text. The
    picture's long side is at most 1600 pixels, unless the legend alone is higher.
    Raises OutputError when the file cannot be written.
    """
    rows = _legend_rows(legend, pixels)
    rgb = _rgb(image, valid)
    coloured = np.where(valid & (classes < len(legend.values)), classes, 0)
    picture = _page(rgb, coloured, legend.colours, rows, title)
    about = PngInfo()
    if record is not None:
        about.add_itxt(KEY, to_json(record))
    try:
        picture.save(destination, format="PNG", optimize=True, pnginfo=about)
    except OSError as error:
        Path(destination).unlink(missing_ok=True)
        raise OutputError(f"cannot write {shown(Path(destination))}: {error}") from error


def _rgb(image: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return uint8 [h, w, 3], grey where there is no data."""
    if image.dtype != np.uint8:
        image = np.round(np.nan_to_num(image).clip(0, 1) * 255).astype(np.uint8)
    return np.where(valid[..., None], image.transpose(1, 2, 0), np.array(_NO_DATA, np.uint8))


_Row = tuple[_Colour | None, str, str]  # colour (None: the map is not coloured), name, share


def _legend_rows(legend: Legend, counts: Mapping[int, int]) -> list[_Row]:
    """Return the rows of the legend, the background last; of too many classes the largest."""
    total = sum(counts.get(value, 0) for value in legend.values)
    entries = list(zip(legend.values, legend.names, legend.colours, strict=True))
    background, classes = entries[0], entries[1:]
    left_out = len(classes) - _MOST_CLASSES
    if left_out > 0:
        largest = sorted(classes, key=lambda entry: counts.get(entry[0], 0), reverse=True)
        classes = sorted(largest[:_MOST_CLASSES])
    rows: list[_Row] = [
        (None if value == 0 else colour, name, _share(counts.get(value, 0), total))
        for value, name, colour in [*classes, background]
    ]
    return [*rows, (None, f"and {left_out} smaller", "")] if left_out > 0 else rows


def _share(count: int, total: int) -> str:
    if not total:
        return "-"
    percent = 100 * count / total
    return "< 0.1 %" if 0 < percent < 0.05 else f"{percent:.1f} %"


def _page(
    rgb: NDArray[np.uint8],
    classes: NDArray[Any],
    colours: tuple[_Colour, ...],
    rows: list[_Row],
    title: str,
) -> Image.Image:
    """Lay out title, image, map and legend: side by side, or one below the other if wide."""
    height, width = classes.shape
    top = _GAP + (32 if title else 0)
    stacked = width > 1.6 * height
    legend = _legend_picture(rows, _LONGEST - 2 * _GAP if stacked else 0)
    if stacked:
        room = (_LONGEST - 2 * _GAP, (_LONGEST - top - 3 * _GAP - legend.height) // 2)
    else:
        room = ((_LONGEST - 4 * _GAP - legend.width) // 2, _LONGEST - top - _GAP)
    size = _fitted(width, height, room)
    image = Image.fromarray(rgb).resize(size, Image.Resampling.BOX)
    shown = np.asarray(
        Image.fromarray(classes.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    )
    pictures = [image, _overlay(image, shown, colours), legend]
    x, y, right, bottom = _GAP, top, 0, 0
    corners = []
    for picture in pictures:
        corners.append((x, y))
        right, bottom = max(right, x + picture.width), max(bottom, y + picture.height)
        x, y = (x, bottom + _GAP) if stacked else (right + _GAP, y)
    page = Image.new("RGB", (max(right, _SMALLEST) + _GAP, bottom + _GAP), _PAPER)
    for picture, corner in zip(pictures, corners, strict=True):
        page.paste(picture, corner)
    font = _font(20, title)
    _warn_of_boxes([title], font)
    text = _shortened(title, font, page.width - 2 * _GAP)
    ImageDraw.Draw(page).text((_GAP, _GAP - 4), text, _INK, font)
    return page


def _fitted(width: int, height: int, room: tuple[int, int]) -> tuple[int, int]:
    """Return the drawn size of a scene: as large as there is room, small ones a bit enlarged."""
    scale = min(room[0] / width, room[1] / height)
    if scale > 1:
        scale = max(1, min(int(scale), _SMALLEST // max(width, height)))
    return max(_THINNEST, round(width * scale)), max(_THINNEST, round(height * scale))


def _overlay(
    image: Image.Image, classes: NDArray[Any], colours: tuple[_Colour, ...]
) -> Image.Image:
    """Return the image under semi-transparent class colours, their borders stronger."""
    border = np.zeros(classes.shape, bool)
    border[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    border[1:] |= classes[1:] != classes[:-1]
    alpha = np.where(border, _BORDER_ALPHA, _MAP_ALPHA) * (classes > 0)
    paint = np.array(colours, np.float32)[classes]
    mixed = np.asarray(image) * (1 - alpha[..., None]) + paint * alpha[..., None]
    return Image.fromarray(np.round(mixed).astype(np.uint8))


def _legend_picture(rows: list[_Row], most_width: int) -> Image.Image:
    """Return swatches, names and shares, in as many columns as fit the width (at least one)."""
    font = _font(15, "".join(name for _, name, _ in rows))
    _warn_of_boxes([name for _, name, _ in rows], font)
    named = [(colour, _shortened(name, font, _NAME_WIDTH), share) for colour, name, share in rows]
    names = max(math.ceil(font.getlength(name)) for _, name, _ in named)
    column = _SWATCH + 10 + names + 80
    columns = max(1, min(len(rows), most_width // (column + _COLUMN_GAP)))
    lines = math.ceil(len(rows) / columns)
    picture = Image.new(
        "RGB", (columns * (column + _COLUMN_GAP) - _COLUMN_GAP, lines * _LINE), _PAPER
    )
    draw = ImageDraw.Draw(picture)
    for index, (colour, name, share) in enumerate(named):
        x, y = index // lines * (column + _COLUMN_GAP), index % lines * _LINE
        if share:
            box = (x, y + 4, x + _SWATCH, y + 4 + _SWATCH)
            draw.rectangle(box, fill=colour, outline=_FAINT)
        draw.text((x + _SWATCH + 10, y + _LINE // 2), name, _INK, font, anchor="lm")
        draw.text((x + column, y + _LINE // 2), share, _INK, font, anchor="rm")
    return picture


def _font(size: int, text: str) -> Any:
    """Return a font for a text: Pillow's own, and beyond ASCII the system's that has most of it."""
    own = ImageFont.load_default(size)
    if text.isascii():
        return own
    fonts = [own]
    for name in _FONTS:
        with contextlib.suppress(OSError):  # not on this system
            fonts.append(ImageFont.truetype(name, size))
    return max(fonts, key=lambda font: _drawn(text, font))


def _drawn(text: str, font: Any) -> int:
    """Return how many letters of a text the font has."""
    missing = bytes(font.getmask("\U0010fffe"))
    return sum(bytes(font.getmask(letter)) != missing for letter in _letters(text))


def _letters(text: str) -> set[str]:
    return {letter for letter in text if letter.strip()}


def _warn_of_boxes(names: Sequence[str], font: Any) -> None:
    """Say which names have letters that the font draws as boxes."""
    boxes = [shortened(name) for name in names if _drawn(name, font) < len(_letters(name))]
    if boxes:
        logger.warning(
            "the preview shows boxes for letters of %s: no font here has them all; install one "
            "such as Noto Sans CJK",
            listed(boxes),
        )


def _shortened(text: str, font: Any, width: float) -> str:
    """Return the text on one line, cut with an ellipsis where it is wider than allowed."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
