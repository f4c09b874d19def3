"""Which images are trained on and which are measured on: folders, files, and pairs of them."""

from __future__ import annotations

import csv
import hashlib
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.digest import source_digest
from segearth_cli.geo.grid import warp_target
from segearth_cli.geo.pairs import read_head, shared_grid
from segearth_cli.geo.remote import is_remote
from segearth_cli.inputs import SCENE_SUFFIXES, rasters_in
from segearth_cli.names import file_meant, listed, plain_name, public_name
from segearth_cli.options import SceneOptions, TrainOptions

SUFFIXES = (".png", ".jpg", ".jpeg", *SCENE_SUFFIXES)
LONE_HELD_OUT = 0.25  # share of the rows of an image that is the only one, at least

Named = tuple[tuple[str, ...], str]  # an image or a pair; train, val or nothing

logger = logging.getLogger(__name__)


@contextmanager
def leaving_out(sources: tuple[str, ...]) -> Iterator[None]:
    """Take options that these images cannot follow for a fault of theirs: others may.

    Raises:
        SceneError: they cannot.
    """
    try:
        yield
    except UsageError as error:
        raise SceneError(f"{' and '.join(sources)}: {error}") from error


@dataclass(frozen=True)
class Place:
    """An image, or an optical and a radar image of one place; and which of its rows.

    Attributes:
        sources: where the images are.
        size: height and width in pixels, as they are read.
        first, last: the rows, from and to these shares of the height.
        looks_like_radar: the image, or the optical one, by its head.
    """

    sources: tuple[str, ...]
    size: tuple[int, int]
    first: float = 0.0
    last: float = 1.0
    looks_like_radar: bool = False

    @classmethod
    def of(cls, sources: tuple[str, ...], options: SceneOptions) -> Place:
        """The whole of an image, or of a pair, whose heads say its size.

        Raises:
            SceneError: they cannot be opened, do not match, or cannot be read by the options.
        """
        with leaving_out(sources):
            if len(sources) == 2:
                grid, _, is_radar = shared_grid(*sources)
            else:
                grid, is_radar = read_head(sources[0])
            if options.gsd is not None:
                grid = warp_target(grid, options.gsd, None)
        return cls(sources, (grid.height, grid.width), looks_like_radar=is_radar)

    def rows(self, height: int) -> tuple[int, int]:
        """The first row and the number of rows; two parts of an image share none."""
        first, end = (
            height if share == 1 else min(math.ceil(share * height), height - 1)
            for share in (self.first, self.last)
        )
        return first, end - first


@dataclass(frozen=True)
class Sources:
    """Places to train on and places to measure on, and how they are opened."""

    train: tuple[Place, ...]
    held_out: tuple[Place, ...]
    skipped: tuple[str, ...]  # what does not match or cannot be read, one line each

    def without(self, unusable: dict[Place, str]) -> Sources:
        """The same, but for places held out of which something is wrong, which is said."""
        _warn_of(unusable.values())
        held_out = tuple(place for place in self.held_out if place not in unusable)
        return replace(self, held_out=held_out, skipped=(*self.skipped, *unusable.values()))

    @cached_property
    def names_held_out(self) -> list[str]:
        """Of each place held out the image, from the folder that all images have in common."""
        sources = [place.sources[0] for place in self.train + self.held_out]
        folders = [
            os.path.dirname(os.path.abspath(name)) for name in filter(os.path.exists, sources)
        ]
        root = os.path.commonpath(folders) if folders else "."
        return [
            os.path.relpath(source, root) if os.path.exists(source) else public_name(source)
            for source in sources[len(self.train) :]
        ]

    @cached_property
    def digest(self) -> str:
        """The sha256 over what is trained on and measured on: names, contents and rows.

        Of images on servers the names alone; of large files samples, see `source_digest`.
        """
        total = hashlib.sha256()
        for part in (self.train, self.held_out):
            total.update(f"{len(part)} places\0".encode())
            for place in part:
                total.update(f"rows {place.first} to {place.last}\0".encode())
                for source in place.sources:
                    content = source if is_remote(source) else source_digest(source)["sha256"]
                    total.update(f"{Path(source).name}\0{content}\0".encode())
        return total.hexdigest()


def ask_about_radar(sources: Sources) -> None:
    """A warning where images that are to be read as optical ones look like radar."""
    places = sources.train + sources.held_out
    radar = [place.sources[0] for place in places if place.looks_like_radar]
    if len(radar) == len(places):
        logger.warning("%s looks like radar: if it is, say --sensor sar", radar[0])
    elif radar:
        logger.warning(
            "among the %d images %d look like radar, %s first: if so, leave them out, or train on "
            "them alone with --sensor sar",
            len(places),
            len(radar),
            radar[0],
        )


def find_images(paths: Sequence[str]) -> list[str]:
    """The images in folders, and those named one by one.

    Raises:
        UsageError: one is not there, or a folder is without images.
    """
    found: list[str] = []
    for path in paths:
        if not Path(path).is_dir():
            _check_there(path)
            found.append(path)
            continue
        inside = rasters_in(Path(path), SUFFIXES)
        if not inside:
            raise UsageError(f"there is no image in {path}; they end with {' '.join(SUFFIXES)}")
        found.extend(map(str, inside))
    return found


def _check_there(path: str, option: str = "") -> None:
    """Refuse the name of a file or folder that is not there; GDAL's own names are let through."""
    if not Path(path).exists() and not _is_gdals(path):
        raise UsageError(f"{option}there is no image or folder {path}; check the name")


def _is_gdals(name: str) -> bool:
    """Whether it may be a URL, a GDAL virtual path or a part of a file, as NETCDF:a.nc:red."""
    return ":" in name or name.startswith("/vsi")


def image_sources(paths: Sequence[str], held_out: float, options: SceneOptions) -> Sources:
    """Images that can be opened, some of them held out.

    Raises:
        UsageError: one is not there, or fewer than two are left.
    """
    named: list[Named] = [((path,), "") for path in find_images(paths)]
    places, skipped = _matching(_taken_once(named), options)
    return _split([place for place, _ in places], held_out, skipped, "images")


def pair_sources(
    optical: str | None,
    sar: str | None,
    table: str | None,
    held_out: float,
    options: SceneOptions,
    one_file: bool = False,
) -> Sources:
    """Pairs of images by equal stems or by a table, those that match; some of them held out.

    Args:
        optical, sar: folders, or two images.
        table: instead of them.
        held_out: share of the pairs, where the table does not say.
        options: how the optical images are read.
        one_file: whether both images of a pair may be bands of one file.

    Raises:
        UsageError: folders or table cannot be read, a pair is both trained on and held out or one
            file, or fewer than two pairs are left.
    """
    named, lost = (
        _pairs_of_table(Path(table))
        if table is not None
        else _pairs_by_stem(str(optical), str(sar))
    )
    if not one_file:
        _refuse_one_file(named)
    places, unfit = _matching(_taken_once(named), options)
    skipped = lost + unfit
    if not any(part == "val" for _, part in named):
        return _split([place for place, _ in places], held_out, skipped, "pairs")
    if held_out != TrainOptions.held_out:
        logger.warning("--held-out changes nothing: %s says by split what is held out", table)
    train = tuple(place for place, part in places if part != "val")
    return _checked(train, tuple(p for p, part in places if part == "val"), skipped, "pairs")


def _taken_once(named: list[Named]) -> list[Named]:
    """Images or pairs without those that come again, be it by another name.

    Raises:
        UsageError: a pair is both trained on and held out.
    """
    first: dict[tuple[str, ...], Named] = {}
    again = []
    for sources, part in named:
        files = tuple(map(file_meant, sources))
        if files not in first:
            first[files] = sources, part
            continue
        name, known = " and ".join(sources), " and ".join(first[files][0])
        if (part == "val") != (first[files][1] == "val"):
            raise UsageError(
                f"the pair {name} is named twice, once to train on and once to hold out (val); "
                "give it one split"
            )
        again.append(name if name == known else f"{name} (it is {known})")
    if again:
        logger.warning("named more than once, and taken once: %s", listed(again))
    return list(first.values())


def _refuse_one_file(pairs: list[Named]) -> None:
    for (own, other), _ in pairs:
        if file_meant(own) == file_meant(other):
            raise UsageError(
                f"the optical image {own} and the radar image {other} are one file; name two, or "
                "say with --bands and --sar-bands which of its bands are which"
            )


def _matching(
    named: list[Named], options: SceneOptions
) -> tuple[list[tuple[Place, str]], list[str]]:
    """The places that can be opened, with the part each is for; what is wrong with the others."""
    places, skipped = [], []
    for sources, part in named:
        try:
            places.append((Place.of(sources, options), part))
        except SceneError as error:
            skipped.append(str(error))
    return places, skipped


def _pairs_by_stem(optical: str, sar: str) -> tuple[list[Named], list[str]]:
    for option, path in (("--optical", optical), ("--sar", sar)):
        _check_there(path, f"{option}: ")
    folders = [Path(path).is_dir() for path in (optical, sar)]
    if not any(folders):
        return [((optical, sar), "")], []
    if not all(folders):
        raise UsageError(
            f"of --optical {optical} and --sar {sar} only one is a folder; give two folders, or "
            "two images"
        )
    first, second = (_by_name(folder) for folder in (optical, sar))
    skipped = [
        f"{path} has no partner of that name"
        for own, other in ((first, second), (second, first))
        for name in own.keys() - other.keys()
        for path in own[name]
    ]
    named: list[Named] = []
    for name in (name for name in first if name in second):
        paths = (*first[name], *second[name])
        if len(paths) > 2:
            skipped.append(f"{' and '.join(paths)} have one name but for the suffix")
        else:
            named.append((paths, ""))
    return named, sorted(skipped)


def _by_name(folder: str) -> dict[str, list[str]]:
    """A folder's images by their path in it, without suffix."""
    found: dict[str, list[str]] = {}
    for path in find_images([folder]):
        found.setdefault(str(Path(path).relative_to(folder).with_suffix("")), []).append(path)
    return found


def _pairs_of_table(path: Path) -> tuple[list[Named], list[str]]:
    """Pairs with the part that each is for (train, val or nothing), and what is skipped."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            reader.fieldnames = [plain_name(heading) for heading in reader.fieldnames or ()]
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is no CSV in UTF-8"
        raise UsageError(f"cannot read the pairs of {path}: {reason}") from error
    headings = list(reader.fieldnames)
    if not {"optical", "sar"} <= set(headings):
        raise UsageError(
            f"{path} must have columns optical and sar (and split, if you like, with train or "
            f"val), parted by commas; it has {listed([repr(name) for name in headings]) or 'none'}"
        )
    if not rows:
        raise UsageError(f"{path} names no pair; give one a line")
    named: list[Named] = []
    skipped = []
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
        named.append((tuple(_beside(path, name) for name in names), part))
    return named, skipped


def _beside(table: Path, name: str) -> str:
    """A file's name from where its table is; GDAL's own names as they are."""
    path = table.parent / name
    return name if _is_gdals(name) and not path.exists() else str(path)


def _split(good: list[Place], share: float, skipped: list[str], kind: str) -> Sources:
    """Hold out a share, evenly spread over the names; of a lone image some of its rows."""
    if len(good) == 1 and good[0].size[0] > 1:
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
    _warn_of(skipped)
    if not train or not held_out:
        usable = len(train) + len(held_out)
        raise UsageError(
            f"of {usable + len(skipped)} {kind} {usable or 'none'} can be used: there must be at "
            "least one to train on and one to measure on"
        )
    return Sources(train, held_out, tuple(skipped))


def _warn_of(skipped: Iterable[str]) -> None:
    for reason in skipped:
        logger.warning("skipped: %s", reason)
