"""A format of outputs is known wherever something is said of formats."""

import pytest
from typer.main import get_command

from segearth_cli import outputs, stac
from segearth_cli.cli import app
from segearth_cli.geo import companions, recorded, vector
from segearth_cli.options import OUTPUT_SUFFIXES, STAC_SUFFIX, VECTOR_SUFFIXES


@pytest.mark.parametrize(
    ("table", "suffixes"),
    [
        (vector.WRITERS, VECTOR_SUFFIXES),
        (outputs.WRITERS, (*OUTPUT_SUFFIXES, ".json", "probabilities")),
        (recorded.READERS, (*OUTPUT_SUFFIXES, STAC_SUFFIX)),
        (stac.MEDIA_TYPES, OUTPUT_SUFFIXES),
        (companions.COMPANIONS, OUTPUT_SUFFIXES),
    ],
    ids=["polygons", "outputs", "records", "media types", "companions"],
)
def test_a_table_has_every_format(table, suffixes):
    assert set(table) == set(suffixes)


def test_the_help_names_every_format():
    command = get_command(app).commands["segment"]
    (output,) = (own for own in command.params if own.name == "output")
    words = output.help.replace(",", " ").replace(". ", " ").split()
    assert set(OUTPUT_SUFFIXES) <= set(words)
