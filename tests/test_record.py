"""Maps that say how they were made: in every format, for any words, and the command again."""

import json
import shlex
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from scenes import CLASSES, blocks, options_for, write_scene
from typer.testing import CliRunner

from segearth_cli import __version__
from segearth_cli.cli import app
from segearth_cli.errors import SegEarthError, UsageError
from segearth_cli.geo.digest import source_digest
from segearth_cli.geo.recorded import READERS, read_record
from segearth_cli.info import map_info
from segearth_cli.presets import read_presets
from segearth_cli.segment import segment

KINDS = [kind for kind in READERS if kind not in (".tiff", ".stac.json")]
ODD = (
    ('it\'s "quoted"', "a;b"),
    ("Robert'); DROP TABLE layer_styles;--",),
    ("🌳 tree <&> \\ %s {stem}",),
    ("$(touch pwned) `id`",),
)


@pytest.fixture
def source(tmp_path):
    return write_scene(tmp_path / "scene.tif")


def run(*args):
    result = CliRunner().invoke(app, [*map(str, args)])
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_says_how_it_was_made(tmp_path, source, tiny_model, kind):
    path = tmp_path / f"map{kind}"
    segment(source, options_for(tiny_model, path, threshold=0.2))
    record = read_record(path)
    assert record["version"] == __version__
    assert record["source"] == source
    assert record["source_digest"] == source_digest(source)
    assert record["classes"] == [["background"], *map(list, CLASSES)]
    assert "80 ImageNet templates" in record["prompts"]
    assert (record["model"]["name"], record["model"]["stride"]) == ("tiny", 32)
    assert len(record["model_digest"]) == 64
    assert record["options"]["threshold"] == 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_makes_the_same_bytes_again(tmp_path, source, tiny_model, kind, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    path = tmp_path / f"map{kind}"
    more = {"bbox": (500_000.0, 5_399_800.0, 500_150.0, 5_400_000.0), "min_area": 8.5}
    options = options_for(tiny_model, path, simplify=1.0, bands=("3", "2", "1"), **more)
    segment(source, options)
    first = path.read_bytes()
    program, *words = shlex.split(map_info(path).command)
    assert program == "segearth"
    run(*words, "--overwrite", "--device", "cpu", "-q")
    assert path.read_bytes() == first


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_classes_may_hold_anything(tmp_path, source, tiny_model, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"map{kind}"
    segment(source, options_for(tiny_model, path, classes=ODD))
    assert read_record(path)["classes"][1:] == [list(words) for words in ODD]
    first = map_info(path)
    run(*shlex.split(first.command)[1:], "--overwrite", "--device", "cpu", "-q")
    assert map_info(path) == first
    assert not (tmp_path / "pwned").exists()


def test_probabilities_are_made_again_as_such(tmp_path, source, tiny_model):
    path = tmp_path / "p.tif"
    segment(source, options_for(tiny_model, probabilities=str(path)))
    assert f"--probabilities {path}" in map_info(path).command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--preset", "loveda"), "--preset loveda"),
        (("--preset", "loveda", "--threshold", "0", "--no-background"), "--threshold=0.0"),
        (("--preset", "vdd"), "--threshold=0.3"),
        (("--classes", "a|b,c", "--background", "sky|cloud"), "'--background=sky|cloud'"),
        (("--classes", "a", "--no-background"), "--classes=a --no-background"),
        (("--classes", "a,b", "--colours", "b=#0102ff"), "--classes=a,b '--colours=b=#0102ff'"),
        (("--preset", "vdd", "--colours", "water=0102ff"), "water=#0102ff"),
        (("--classes", "a", "--nodata", "nan"), "--nodata=nan"),
        (("--classes", "a", "--co", "COMPRESS=LZW"), "--co=COMPRESS=LZW"),
    ],
)
def test_however_the_classes_were_given(tmp_path, source, tiny_model, words, said):
    path = tmp_path / "map.tif"
    run("segment", source, "-o", path, "--model", tiny_model, "--device", "cpu", *words)
    first = map_info(path)
    assert said in first.command
    run(*shlex.split(first.command)[1:], "--overwrite", "--device", "cpu")
    assert map_info(path) == first


@pytest.mark.parametrize("classes", [(("a|b",), ("c",))])
def test_no_command_is_made_up_for_names_that_none_can_say(tmp_path, source, tiny_model, classes):
    path = tmp_path / "map.tif"
    segment(source, options_for(tiny_model, path, classes=classes))
    assert map_info(path).command is None
    assert "none can say such classes" in run("info", path)


def test_info_prints_a_table_or_json(tmp_path, source, tiny_model):
    path = tmp_path / "map.gpkg"
    segment(source, options_for(tiny_model, path))
    table = run("info", path)
    assert f"source           {source}\n" in table
    assert "classes          background, building|roof, road, water\n" in table
    command = table.splitlines()[-1].removeprefix("command").strip()
    said = json.loads(run("info", path, "--json"))
    assert said["command"] == command
    assert said["model"]["name"] == "tiny"


def test_info_of_what_is_no_map_is_one_line(tmp_path, source):
    (tmp_path / "bad.gpkg").write_text("no database")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "map.geojson").write_text('{"type":"FeatureCollection","features":[]}')
    (tmp_path / "deep.geojson").write_text("[" * 100_000)
    (tmp_path / "map.shp").write_text("")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    Image.new("RGB", (2, 2)).save(tmp_path / "mine.png")
    for name in ("bad.gpkg", "empty.png", "map.geojson", "deep.geojson", "map.shp", "mine.png"):
        with pytest.raises(SegEarthError, match="does not say how it was made"):
            map_info(tmp_path / name)
    with pytest.raises(SegEarthError, match="does not say how it was made"):
        map_info(Path(source))
    with pytest.raises(SegEarthError, match="does not say how it was made"):
        map_info(tmp_path / "cut.parquet")
    with pytest.raises(SegEarthError, match="there is no file"):
        map_info(tmp_path / "absent.tif")
    with pytest.raises(SegEarthError, match="none of segearth's outputs"):
        map_info(tmp_path / "notes.txt")


def test_a_picture_of_any_size_may_be_asked(tmp_path, recwarn):
    path = tmp_path / "large.png"
    Image.new("L", (1, 1)).save(path)
    head, rest = path.read_bytes()[:12], path.read_bytes()[33:]
    for side in (1, 10_000, 20_000):
        header = b"IHDR" + struct.pack(">II", side, side) + path.read_bytes()[24:29]
        path.write_bytes(head + header + struct.pack(">I", zlib.crc32(header)) + rest)
        assert read_record(path) is None
        assert rasterio.open(path).width == side
    assert not [own for own in recwarn if issubclass(own.category, Image.DecompressionBombWarning)]


def test_parquet_without_its_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("segearth_cli.geo.recorded.find_spec", lambda name: None)
    (tmp_path / "map.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"reading map\.parquet needs pyarrow: pip install"):
        map_info(tmp_path / "map.parquet")


def test_a_record_of_another_version_is_said_not_guessed(tmp_path, source, tiny_model):
    path = tmp_path / "map.tif"
    segment(source, options_for(tiny_model, path))
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dst:
        dst.update_tags(SEGEARTH_VERSION="9.9", SEGEARTH_OPTIONS='{"classes": 3}')
    with pytest.raises(SegEarthError, match=r"written by segearth 9\.9"):
        map_info(path)


def test_a_preset_that_is_broken_is_not_blamed_on_the_record(
    tmp_path, source, tiny_model, monkeypatch
):
    path = tmp_path / "map.tif"
    segment(source, options_for(tiny_model, path))
    monkeypatch.setitem(read_presets(), "broken", {"name": "broken", "classes": 3})
    with pytest.raises(SegEarthError, match=r"^broken "):
        map_info(path)


# --- what the source was -----------------------------------------------------------------------


def test_the_digest_knows_content_and_place_and_not_names_or_times(tmp_path, source):
    first = source_digest(source)
    assert first["covers"] == "everything"
    assert first["bytes"] == Path(source).stat().st_size
    copy = str(shutil.copy(source, tmp_path / "other name.tif"))
    Path(f"{copy}.aux.xml").write_text("<PAMDataset/>")  # what a viewer leaves behind
    assert source_digest(copy) == first
    other = blocks()
    other[0, 50, 50] ^= 1
    assert source_digest(write_scene(tmp_path / "b.tif", other)) != first
    assert source_digest(write_scene(tmp_path / "c.tif", crs="EPSG:32634")) != first


@pytest.mark.parametrize("place", ["first", "last"])
def test_the_digest_of_a_large_file_reads_a_little_of_it(tmp_path, place):
    image = np.random.default_rng(0).integers(0, 255, (3, 2000, 2000), np.uint8)
    first = source_digest(write_scene(tmp_path / "a.tif", image))
    assert first["covers"].startswith("size, first and last MiB")
    image[:, 0 if place == "first" else -1] ^= 1
    assert source_digest(write_scene(tmp_path / "b.tif", image)) != first


def test_the_digest_of_a_mosaic_is_that_of_its_parts(tmp_path, source):
    virtual = tmp_path / "all.vrt"
    rasterio.shutil.copy(source, virtual, driver="VRT")
    first = source_digest(str(virtual))
    write_scene(Path(source), blocks() ^ 1)
    assert source_digest(str(virtual)) != first


def test_what_is_no_file_is_told_by_its_pixels(tmp_path, source):
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path, "scene.tif")
    inside = source_digest(f"/vsizip/{archive}/scene.tif")
    assert inside["bytes"] is None
    assert inside["covers"] == "size, place and 9 windows of 64 x 64 pixels"
    write_scene(tmp_path / "scene.tif", blocks() ^ 1)
    archive = shutil.make_archive(str(tmp_path / "new"), "zip", tmp_path, "scene.tif")
    assert source_digest(f"/vsizip/{archive}/scene.tif")["sha256"] != inside["sha256"]


def test_a_source_that_is_gone_or_damaged_is_one_line(tmp_path):
    with pytest.raises(SegEarthError, match="there is no such file"):
        source_digest(str(tmp_path / "gone.tif"))
