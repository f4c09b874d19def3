"""What ``segearth info`` tells of a map: the record in it, and the command that makes it again."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from segearth_cli.errors import SegEarthError
from segearth_cli.geo.recorded import Record, is_probabilities, read_record
from segearth_cli.options import STAC_SUFFIX
from segearth_cli.record import command_again


@dataclass(frozen=True)
class MapInfo:
    """How a map was made."""

    output: str
    record: Record
    command: str | None  # None: made from Python, with classes that no command line can say


def map_info(output: Path) -> MapInfo:
    """What a map says of its making.

    Raises:
        SegEarthError: it says nothing, or is no output of segearth.
    """
    record = read_record(output)
    if record is None:
        raise SegEarthError(
            f"{output} does not say how it was made; another program wrote or changed it"
        )
    command = command_again(record, str(output), _place(output))
    return MapInfo(str(output), record, command)


def _place(output: Path) -> list[str]:
    """The options that say where to write it."""
    if not output.name.endswith(STAC_SUFFIX):
        return ["--probabilities" if is_probabilities(output) else "-o", str(output)]
    item = json.loads(output.read_text(encoding="utf-8"))
    try:
        words = ["--stac"]
        for name, asset in item["assets"].items():
            path = os.path.normpath(output.parent / unquote(asset["href"]))
            words += ["--probabilities" if name == "probabilities" else "-o", path]
        time = item["properties"]["datetime"]
    except (KeyError, TypeError, AttributeError) as error:
        raise SegEarthError(f"{output} does not name the files that it describes") from error
    return [*words, *([f"--datetime={time}"] if time else [])]
