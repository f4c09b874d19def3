"""Scenes whose bands are files of their own. Their name is a JSON object: bands and files.

{"red": "B04.tif", "green": "B03.tif", "blue": "B02.tif"}
"""

import json
from collections.abc import Mapping
from pathlib import Path


def stack_name(files: Mapping[str, str]) -> str:
    """The name of the scene whose bands, called so, are in these files."""
    return json.dumps(files, ensure_ascii=False)


def band_files(source: str) -> dict[str, str]:
    """The files of a scene by the names of their bands; of a scene in one file that, unnamed."""
    if not source.startswith("{"):
        return {"": source}
    try:
        files = json.loads(source)
    except ValueError:
        return {"": source}
    is_named = files and all(isinstance(file, str) and file for file in files.values())
    return files if is_named else {"": source}


def is_stack(source: str) -> bool:
    """Whether a scene's bands are files of their own."""
    return list(band_files(source)) != [""]


def title_of(source: str) -> str:
    """What a scene is called where there is little room: its files without their folders."""
    return ", ".join(Path(file).name for file in band_files(source).values())
