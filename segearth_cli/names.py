"""What scenes are called, and what others may read of it.

A scene is named by a path, a GDAL virtual path or a URL. One whose bands are files of their own is
named by a JSON object of bands and files:

    {"red": "B04.tif", "green": "B03.tif", "blue": "B02.tif"}
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qsl

_MOST_LISTED = 3
_LONGEST = 60  # letters
_VRT = "vrt://"  # GDAL's for parts of a file: vrt://FILE?OPTIONS


def counted(number: int, what: str) -> str:
    """A number of things that are called so one by one."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def stack_name(files: Mapping[str, str]) -> str:
    """The name of the scene whose bands, called so, are in these files."""
    return json.dumps(files, ensure_ascii=False)


def stack_files(source: str) -> dict[str, str] | None:
    """The files of a scene by the names of their bands; none for a scene in one file."""
    if not source.lstrip().startswith("{"):
        return None
    try:
        files = json.loads(source)
    except (ValueError, RecursionError):
        return None
    named = all(name and isinstance(file, str) and file for name, file in files.items())
    return files if files and named else None


def files_named(source: str) -> list[str]:
    """The files, GDAL paths or URLs that a scene's name holds."""
    return [_vrt_parts(file)[1] for file in (stack_files(source) or {"": source}).values()]


def _vrt_parts(name: str) -> tuple[str, str, str]:
    """A file's name, and what GDAL's ``vrt://`` puts before and behind it."""
    if not name.startswith(_VRT):
        return "", name, ""
    file, mark, options = name.removeprefix(_VRT).partition("?")
    return _VRT, file, mark + options


def plain_name(name: str) -> str:
    """A class's name as names are compared: in lower case, with single blanks."""
    return " ".join(name.casefold().split())


def plain_label(name: str) -> str:
    """What a label is called as labels are compared: a class's name, or a whole number."""
    plain = plain_name(name)
    number = plain.removesuffix(".0")  # of a column of whole numbers that has gaps
    return str(int(number)) if is_number(number) else plain


def is_number(text: str) -> bool:
    """Whether it is a whole number."""
    return text.removeprefix("-").isdecimal()


def is_path(name: str) -> bool:
    """Whether a file is named by its path: no URL, and none of GDAL's virtual paths."""
    return "://" not in name and not name.startswith("/vsi")


def local_path(name: str) -> str:
    """The path that a ``file://`` URL stands for, other names as they are."""
    from urllib.request import url2pathname  # imports much

    path = re.sub("^file://(localhost)?/", "/", name)
    return path if path == name or os.path.exists(path) else url2pathname(path)


def file_meant(source: str) -> str:
    """An image's file without links on the way to it; GDAL's own names as they are."""
    path = local_path(source)
    return os.path.realpath(path) if os.path.exists(path) else source


def file_and_layer(name: str) -> tuple[str, str | None]:
    """A vector file and the layer that is meant, of QGIS's name for both: FILE|layername=LAYER."""
    file, mark, layer = name.partition("|layername=")
    return file, layer if mark else None


def public_name(source: str) -> str:
    """A scene's name for others to read: its URLs without user, password and query.

    They are looked for inside GDAL's names too, as ``/vsicurl?url=...`` and ``NETCDF:"..."``.
    """
    stack = stack_files(source)
    if stack is not None:
        return stack_name({name: public_name(file) for name, file in stack.items()})
    before, file, behind = _vrt_parts(source)
    if before:
        return before + public_name(file) + behind

    def url(options: re.Match[str]) -> str:
        return f"/vsicurl/{dict(parse_qsl(options[1])).get('url', '')}"

    plain = re.sub(r'/vsicurl(?:_streaming)?\?([^"}]*)', url, source)
    if "://" not in plain:
        return plain
    is_url = re.match(r"(/vsi\w+/)*\w+://", plain)
    query = r"\?.*" if is_url else r'\?[^"}]*'
    return re.sub(query, "", re.sub(r'://[^/?"\s]*@', "://", plain), flags=re.DOTALL)


def title_of(source: str) -> str:
    """What a scene is called where there is little room: its files without their folders."""
    return listed([Path(public_name(file)).name for file in files_named(source)])


def listed(names: Sequence[str], most: int = _MOST_LISTED) -> str:
    """The first ones, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def shortened(text: str, longest: int = _LONGEST) -> str:
    """A text for a person to recognise: its beginning, where it is long."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
