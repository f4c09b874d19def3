"""Which images are trained on and which are measured on: folders, files, and pairs of them."""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.pairs import shared_grid
from segearth_cli.geo.source import environment, gdal_settings, opened

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".jp2", ".vrt")
LONE_HELD_OUT = 0.25  # share of the rows of an image that is the only one, at least
WHOLE_FILE = 1 << 20  # bytes: of larger files the digest takes size, head and tail
HEAD = 1 << 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """An image, or an optical and a radar image of one place; and which of its rows."""

    sources: tuple[str, ...]
    first: float = 0.0  # share of the height
    last: float = 1.0

    def rows(self, height: int) -> tuple[int, int]:
        """The first row and the number of rows."""
        first = round(self.first * height)
        return first, max(1, round(self.last * height) - first)


@dataclass(frozen=True)
class Sources:
    """Places to train on and places to measure on, and how they are opened."""

    train: tuple[Place, ...]
    held_out: tuple[Place, ...]
    skipped: tuple[str, ...]  # what does not match, one line each

    @property
    def digest(self) -> str:
        """The sha256 over names, sizes and contents of all files."""
        total = hashlib.sha256()
        for part in (self.train, self.held_out):
            for source in (source for place in part for source in place.sources):
                total.update(f"{Path(source).name}\0{_content_digest(source)}\0".encode())
        return total.hexdigest()


def _content_digest(source: str) -> str:
    """Of a file's bytes, its head and tail if it is large; of the name, if it is no file."""
    path = Path(source)
    if not path.is_file():
        return source
    size = path.stat().st_size
    total = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        if size <= WHOLE_FILE:
            total.update(stream.read())
        else:
            total.update(stream.read(HEAD))
            stream.seek(-HEAD, 2)
            total.update(stream.read(HEAD))
    return total.hexdigest()


def find_images(paths: Sequence[str]) -> list[str]:
    """The images in folders, and those named one by one.

    Raises:
        UsageError: a folder without images.
    """
    found: list[str] = []
    for path in paths:
        if not Path(path).is_dir():
            found.append(path)
            continue
        inside = [p for p in sorted(Path(path).rglob("*")) if p.suffix.lower() in SUFFIXES]
        if not inside:
            raise UsageError(f"there is no image in {path}; they end with {' '.join(SUFFIXES)}")
        found.extend(map(str, inside))
    return list(dict.fromkeys(found))


def image_sources(paths: Sequence[str], held_out: float) -> Sources:
    """Images that can be opened, some of them held out.

    Raises:
        UsageError: fewer than two are left.
    """
    good: list[Place] = []
    skipped: list[str] = []
    for source in find_images(paths):
        problem = _problem(image_size, source)
        if problem is None:
            good.append(Place((source,)))
        else:
            skipped.append(problem)
    return _split(good, held_out, skipped, "images")


def pair_sources(
    optical: str | None, sar: str | None, table: str | None, held_out: float
) -> Sources:
    """Pairs of images by equal stems or by a table, those that match; some of them held out.

    Raises:
        UsageError: the table cannot be read, or fewer than two pairs are left.
    """
    if table is not None:
        places, parts, skipped = _pairs_of_table(Path(table))
    else:
        places, skipped = _pairs_by_stem(str(optical), str(sar))
        parts = [""] * len(places)
    good: list[tuple[Place, str]] = []
    for place, part in zip(places, parts, strict=True):
        problem = _problem(shared_grid, *place.sources)
        if problem is None:
            good.append((place, part))
        else:
            skipped.append(problem)
    if any(part == "val" for _, part in good):
        train = tuple(place for place, part in good if part != "val")
        return _checked(train, tuple(p for p, part in good if part == "val"), skipped, "pairs")
    return _split([place for place, _ in good], held_out, skipped, "pairs")


def _pairs_by_stem(optical: str, sar: str) -> tuple[list[Place], list[str]]:
    if not Path(optical).is_dir() and not Path(sar).is_dir():  # two files: one pair
        return [Place((optical, sar))], []
    first, second = (_by_name(folder) for folder in (optical, sar))
    skipped = [
        f"{path} has no partner of that name"
        for own, other in ((first, second), (second, first))
        for name in own.keys() - other.keys()
        for path in own[name]
    ]
    places = []
    for name in first:
        paths = [*first[name], *second.get(name, ())]
        if len(paths) > 2 and name in second:
            skipped.append(f"{' and '.join(paths)} have one name but for the suffix")
        elif name in second:
            places.append(Place(tuple(paths)))
    return places, sorted(skipped)


def _by_name(folder: str) -> dict[str, list[str]]:
    """A folder's images by their path in it, without suffix."""
    found: dict[str, list[str]] = {}
    for path in find_images([folder]):
        name = Path(path).relative_to(folder) if Path(folder).is_dir() else Path(Path(path).name)
        found.setdefault(str(name.with_suffix("")), []).append(path)
    return found


def _pairs_of_table(path: Path) -> tuple[list[Place], list[str], list[str]]:
    """Places, the part that each is for (train, val or nothing), and what is skipped."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is no CSV in UTF-8"
        raise UsageError(f"cannot read the pairs of {path}: {reason}") from error
    if not rows or not {"optical", "sar"} <= set(rows[0]):
        raise UsageError(
            f"{path} must have columns optical and sar (and split, if you like, with train or val)"
        )
    places: list[Place] = []
    parts, skipped = [], []
    for number, row in enumerate(rows, 2):
        names = [(row[column] or "").strip() for column in ("optical", "sar")]
        if not all(names):
            skipped.append(f"line {number} of {path} names no pair")
            continue
        part = (row.get("split") or "").strip().lower()
        if part not in ("", "train", "val"):
            raise UsageError(
                f"line {number} of {path} has the split {part!r}; write train, val or nothing, and "
                "leave out the pairs that are for neither"
            )
        places.append(Place(tuple(str(path.parent / name) for name in names)))
        parts.append(part)
    return places, parts, skipped


def _problem(check: Callable[..., object], *sources: str) -> str | None:
    """What is wrong with an image or a pair, in one line."""
    try:
        check(*sources)
    except SceneError as error:
        return str(error)
    return None


def _split(good: list[Place], share: float, skipped: list[str], kind: str) -> Sources:
    """Hold out a share, evenly spread over the names; of a lone image some of its rows."""
    if len(good) == 1:
        last = 1 - max(share, LONE_HELD_OUT)
        above, below = replace(good[0], last=last), replace(good[0], first=last)
        return _checked((above,), (below,), skipped, kind)
    count = min(max(1, round(share * len(good))), len(good) - 1)
    middles = {int((i + 0.5) * len(good) / count) for i in range(count)} if count > 0 else set()
    train = tuple(place for i, place in enumerate(good) if i not in middles)
    return _checked(train, tuple(good[i] for i in sorted(middles)), skipped, kind)


def _checked(
    train: tuple[Place, ...], held_out: tuple[Place, ...], skipped: list[str], kind: str
) -> Sources:
    for reason in skipped:
        logger.warning("skipped: %s", reason)
    if not train or not held_out:
        raise UsageError(
            f"only {len(train) + len(held_out)} of the {kind} can be used"
            + (f" ({len(skipped)} were skipped)" if skipped else "")
            + ": there must be at least one to train on and one to measure on"
        )
    return Sources(train, held_out, tuple(skipped))


def image_size(source: str) -> tuple[int, int]:
    """Height and width, from the file's head.

    Raises:
        SceneError: it is no raster.
    """
    with environment(gdal_settings(source)), opened(source) as src:
        return src.height, src.width
