"""What the arguments of ``segment`` name: rasters, lists, folders, tile indexes, STAC items."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import sys
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from segearth_cli.errors import SceneError, SegEarthError, UsageError
from segearth_cli.names import (
    counted,
    files_named,
    is_path,
    local_path,
    public_name,
    stack_files,
    stack_name,
)

SCENE_SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".img", ".ntf")  # of rasters in a folder
_PRODUCTS = ("*_MTL.txt", "MTD_MSI*.xml")  # Landsat's, Sentinel-2's
_BAND_FILE = re.compile(r"(^|_)(SR_)?B\d?[\dA](_\d+m)?$")
_LOOKED_AT = 1000  # files, whether they are bands of one scene
_INDEX_SUFFIXES = (".shp", ".fgb", ".gpkg")
_JSON_SUFFIXES = (".json", ".geojson")
_LOCATION = "location"  # the field in which GDAL's tile indexes name files
_RASTER_TYPES = ("image/tiff", "image/jp2", "image/vnd.stac.geotiff")
_NO_DATA_ROLES = {"thumbnail", "overview", "metadata"}
_USUAL_ASSET = "visual"
_TIMEOUT = 30  # seconds that a server may keep silent
_LARGEST = 256 << 20  # bytes of a list of items

PLACEHOLDER = re.compile(r"\{(\w*)\}")  # in an output's name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Input:
    """A scene, and the name that its outputs get for ``{stem}``; for ``{parent}`` its folder's.

    Attributes:
        acquired: when, where a STAC Item says so.
        item: that Item, where it has a place of its own.
        is_asset: of a STAC Item.
    """

    source: str
    stem: str
    acquired: str | None = None
    item: str | None = None
    is_asset: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, source: str | os.PathLike[str] | Input) -> Input:
        """The input of a scene's name (see `names`)."""
        if isinstance(source, Input):
            return source
        name = local_path(os.fspath(source))
        return cls(name, stem_of(name))

    def named(self, pattern: str) -> str:
        """An output's name for this scene."""
        values = {"stem": self.stem, "parent": parent_of(self.source)}
        return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), pattern)


def expand_inputs(
    names: Iterable[str], lines: Iterable[str] | None = None, asset: str | None = None
) -> list[Input]:
    """The scenes that the arguments name, in their order.

    ``-`` stands for one name a line of ``lines`` (or stdin); a folder for the rasters in it and
    below, but for maps of segearth's; a tile index for its locations; a STAC Item or
    ItemCollection for the ``asset`` of each item, or for several with commas between, whose bands
    make one scene.

    Raises:
        UsageError: nothing is named, or a scene is named twice.
        SceneError: a folder or a list holds no scenes or cannot be read.
    """
    found: list[Input] = []
    for name in names:
        for line in _lines(sys.stdin if lines is None else lines) if name == "-" else [name]:
            found += _expanded(line, asset)
    if asset is not None and found and not any(own.is_asset for own in found):
        logger.warning("--asset %s is for STAC Items, and no input is one", asset)
    if not found:
        raise UsageError("no scene: standard input was empty; name one a line")
    twice = [own for own, count in Counter((i.source, i.stem) for i in found).items() if count > 1]
    if twice:
        raise UsageError(f"{twice[0][0]} is named twice; name each scene once")
    return found


def _lines(stream: Iterable[str] | None) -> list[str]:
    """Names, one a line, or between zero bytes, as ``find -print0`` writes them."""
    if stream is None:
        raise UsageError("- reads the list of scenes from standard input, which is closed")
    try:
        text = "".join(line if line.endswith("\n") else f"{line}\n" for line in stream)
        text = text.removeprefix("\ufeff")  # which some programs begin a file with
        if "\0" in text:
            return [name for name in text.removesuffix("\n").split("\0") if name]
        return [line.strip() for line in text.split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise UsageError(f"the list of scenes is not {error.encoding} text") from error


def _expanded(name: str, asset: str | None) -> list[Input]:
    if not name:
        raise UsageError("the name of a scene is empty; check the variable that it comes from")
    if "\0" in name:
        raise UsageError("the name of a scene holds a zero byte")
    name = local_path(name)
    if (stack := stack_files(name)) is not None:
        return [Input.of(stack_name(stack))]
    if os.path.isdir(name):
        return _in_folder(Path(name))
    suffix = PurePosixPath(_place(name)).suffix.lower()
    if suffix in _JSON_SUFFIXES and (os.path.isfile(name) or _is_web(name)):
        return list(_in_document(_document(name), name, asset))
    if suffix in _INDEX_SUFFIXES and os.path.isfile(name):
        return _in_index(name)
    return [Input.of(name)]


def _is_web(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def stem_of(source: str) -> str:
    """The name of a scene without folder and suffix, fit for a file's name.

    Of a URL it is its path's; of GDAL's ``FORMAT:"file":part`` the file's; of bands in files of
    their own the first one's.
    """
    return safe_name(_path_of(source).stem)


def parent_of(source: str) -> str:
    """The name of the folder that a scene lies in, fit for a file's name."""
    path = _path_of(source)
    parent = PurePosixPath(os.path.abspath(path.parent)) if is_path(source) else path.parent
    return safe_name(parent.name)


def _path_of(source: str) -> PurePosixPath:
    """Where a scene lies, or the first of its files."""
    first = public_name(files_named(source)[0])
    return PurePosixPath(_place(first).replace("\\", "/"))


def _place(source: str) -> str:
    """A path, or a URL's."""
    try:
        return urlsplit(source).path if "://" in source else source
    except ValueError as error:
        raise UsageError(f"{source} is no URL: {error}") from error


def safe_name(name: str) -> str:
    """The name as a file may be called: in no other folder, with nothing that a system forbids."""
    plain = re.sub(r'[/\\:;!"*?<>|\x00-\x1f\x7f]+', "_", name).strip()
    return plain if plain.strip("._") else "scene"


def rasters_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The rasters in a folder and below, by name: none that are hidden, or that segearth made."""

    def unreadable(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise SceneError(f"cannot search {folder}: {error.strerror}") from error
        logger.warning("%s: left out, as it cannot be searched: %s", error.filename, error.strerror)

    paths = []
    for where, below, names in os.walk(folder, onerror=unreadable):
        below[:] = [name for name in below if not name.startswith(".")]
        paths += [
            path
            for path in (Path(where, name) for name in names if not name.startswith("."))
            if path.suffix.lower() in suffixes and path.is_file()
        ]
    paths.sort()
    scenes = [path for path in paths if not _is_a_map(path)]
    if len(scenes) < len(paths):
        logger.warning(
            "%s: left out %s that segearth made",
            folder,
            counted(len(paths) - len(scenes), "raster"),
        )
    return scenes


def _is_a_map(path: Path) -> bool:
    """Whether segearth made a raster; what cannot be read is for others to tell."""
    from segearth_cli.geo.recorded import READERS, read_record

    try:
        return path.suffix.lower() in READERS and read_record(path) is not None
    except SegEarthError:
        return False


def _in_folder(folder: Path) -> list[Input]:
    scenes = rasters_in(folder, SCENE_SUFFIXES)
    if not scenes:
        raise SceneError(
            f"{folder}: it is a folder without scenes, which end with {' '.join(SCENE_SUFFIXES)}; "
            "name other rasters themselves, as in ls *.jpg | segearth segment -"
        )
    _warn_of_product(folder, scenes)
    return [Input.of(str(path)) for path in scenes]


def _warn_of_product(folder: Path, scenes: Collection[Path]) -> None:
    """Say so where several scenes are bands of one: a file beside or above them tells of it."""
    bands = [path for path in scenes if _BAND_FILE.search(path.stem)]
    places = {place for path in bands[:_LOOKED_AT] for place in path.parents}
    for place in sorted(place for place in places if place == folder or folder in place.parents):
        product = next((p for pattern in _PRODUCTS for p in place.glob(pattern)), None)
        if product is not None and len(bands) > 1:
            logger.warning(
                "%s tells of a scene whose bands are files: each becomes a map of its own, in "
                'grey; name its picture in colour, or its bands, as {"red": "..._B04.jp2", ...}',
                product,
            )
            return


def _in_index(name: str) -> list[Input]:
    """The rasters of a tile index; a GeoPackage without layers of shapes is a raster itself."""
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError

    try:
        layer = next((n for n, kind in pyogrio.list_layers(name) if kind is not None), None)
        if layer is not None and _LOCATION in pyogrio.read_info(name, layer=layer)["fields"]:
            table = pyogrio.read_dataframe(
                name, layer=layer, columns=[_LOCATION], read_geometry=False
            )
            return _at_locations(table[_LOCATION].dropna().tolist(), name)
    except (DataSourceError, DataLayerError):
        layer = None
    if layer is None and name.lower().endswith(".gpkg"):
        return [Input.of(name)]
    raise SceneError(
        f"{name} is no scene and no tile index: that has a field {_LOCATION!r}, as gdaltindex "
        "makes it"
    )


def _at_locations(locations: list[Any], index: str) -> list[Input]:
    """Files as gdaltindex names them: from the working folder, or from the index's own."""
    places = [str(location) for location in locations if location]
    if not places:
        raise SceneError(f"{index} is a tile index without a single location")
    beside = [os.path.join(os.path.dirname(index), place) for place in places]
    return [
        Input.of(own if not os.path.exists(place) and os.path.exists(own) else place)
        for place, own in zip(places, beside, strict=True)
    ]


def _document(name: str) -> Any:
    try:
        if _is_web(name):
            with urllib.request.urlopen(name, timeout=_TIMEOUT) as answer:
                content = answer.read(_LARGEST + 1)
        else:
            with open(name, "rb") as stream:
                content = stream.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise SceneError(f"cannot read {name}: it is larger than {_LARGEST >> 20} MiB")
        return json.loads(content)
    except (OSError, http.client.HTTPException) as error:  # of them URLError
        why = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise SceneError(f"cannot read {name}: {why}") from error
    except (ValueError, RecursionError) as error:
        raise SceneError(f"cannot read {name}: it is not JSON") from error


def _in_document(document: Any, name: str, asset: str | None) -> Iterator[Input]:
    kind = document.get("type") if isinstance(document, dict) else None
    features = document.get("features") if kind == "FeatureCollection" else [document]
    if not isinstance(features, list) or not all(isinstance(f, dict) for f in features):
        features = []
    if kind == "FeatureCollection" and document.get("features") == []:
        raise SceneError(f"{name} is an empty collection: it names no scene")
    if features and all(isinstance(feature.get("assets"), dict) for feature in features):
        if kind not in ("Feature", "FeatureCollection"):
            raise SceneError(f"{name} is a STAC {kind}; give Items or an ItemCollection")
        links = document.get("links")
        if any(isinstance(x, dict) and x.get("rel") == "next" for x in links or ()):
            logger.warning("%s has further pages, which are not read: fetch all of them", name)
        for item in features:
            own_place = name if item is document else _self_link(item)
            yield replace(_of_item(item, name, asset), item=own_place)
        return
    properties = [feature.get("properties") for feature in features]
    if features and all(isinstance(p, dict) and p.get(_LOCATION) for p in properties):
        yield from _at_locations([p[_LOCATION] for p in properties if p], name)
        return
    raise SceneError(f"{name} holds neither STAC Items with assets nor a tile index")


def _self_link(item: dict[str, Any]) -> str | None:
    """Where an Item of a collection is by itself, if it says so."""
    links = item.get("links")
    own = [x for x in links if isinstance(x, dict)] if isinstance(links, list) else []
    hrefs = [str(x.get("href")) for x in own if x.get("rel") == "self"]
    return next((href for href in hrefs if _is_web(href)), None)


def _of_item(item: dict[str, Any], name: str, asset: str | None) -> Input:
    label = str(item.get("id") or "without id")
    assets = {key: a for key, a in item["assets"].items() if isinstance(a, dict) and a.get("href")}
    rasters = _rasters(assets)
    if asset is not None:
        chosen = _asked(asset, assets)
        lacking = [part for part in chosen if part not in assets]
        problem = f"no asset {', '.join(lacking)}" if lacking else ""
    else:
        chosen = [_USUAL_ASSET] if _USUAL_ASSET in rasters else rasters
        problem = {0: "no asset with a raster", 1: ""}.get(len(chosen), "several rasters")
    if problem:
        raise UsageError(
            f"{name}: item {label} has {problem}; choose with --asset among "
            f"{', '.join(rasters or assets)} (of one band each: --asset red,green,blue)"
        )
    files = {part: _href(str(assets[part]["href"]), name) for part in chosen}
    source = stack_name(files) if len(files) > 1 else files[chosen[0]]
    stem = safe_name(label) if item.get("id") else stem_of(source)
    stated = item.get("properties")
    properties = stated if isinstance(stated, dict) else {}
    acquired = _acquired(properties, f"{name}: item {label}")
    return Input(source, stem, acquired, is_asset=True)


def _asked(asset: str, assets: Collection[str]) -> list[str]:
    """The assets that ``--asset`` names: one, or several with commas between."""
    names = [asset] if asset in assets else [part.strip() for part in asset.split(",")]
    if "" in names or len(set(names)) < len(names):
        raise UsageError(f"--asset {asset!r} names nothing, or one asset twice; try red,green,blue")
    return names


def _href(href: str, item: str) -> str:
    """Where an asset is, seen from here."""
    if not is_path(href) or os.path.isabs(href):
        return local_path(href)
    return urljoin(item, href) if _is_web(item) else _beside(item, href)


def _acquired(properties: dict[str, Any], item: str) -> str | None:
    """When a scene was taken, where its Item says so."""
    from segearth_cli.stac import parse_time, time_of

    acquired = time_of(properties)
    if acquired is None:
        return None
    try:
        return parse_time(acquired)
    except UsageError:
        logger.warning("%s has the datetime %r, which is no time: left out", item, acquired)
        return None


def _beside(item: str, href: str) -> str:
    """A file by its relative URI; some Items hold its plain name instead."""
    plain, decoded = (
        os.path.normpath(os.path.join(os.path.dirname(item), place))
        for place in (href, unquote(href))
    )
    return plain if os.path.exists(plain) else decoded


def _texts(value: Any) -> list[str]:
    """The texts of a list of them, or of one; nothing of anything else."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


def _rasters(assets: dict[str, Any]) -> list[str]:
    """The assets that are data in a raster's format."""
    return [
        key
        for key, asset in assets.items()
        if not _NO_DATA_ROLES.intersection(_texts(asset.get("roles")))
        and (
            str(asset.get("type") or "").startswith(_RASTER_TYPES)
            or (not asset.get("type") and str(asset["href"]).lower().endswith(SCENE_SUFFIXES))
        )
    ]
