"""Batches that stop and go on: what is complete stays, the rest is done, nothing is half."""

import contextlib
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import rasterio
from rasterio.errors import RasterioIOError
from scenes import (
    blocks,
    ctrl_c_heard,
    names_in,
    options_for,
    stopped_in_the_middle,
    surroundings,
    write_scene,
)
from typer.testing import CliRunner

from segearth_cli.batch import jobs_of, plan_jobs, segment_all
from segearth_cli.cli import app
from segearth_cli.errors import OutputError, SceneError, UsageError
from segearth_cli.geo.recorded import read_record
from segearth_cli.geo.remote import give_up, patiently
from segearth_cli.options import BatchOptions
from segearth_cli.outputs import write_outputs
from segearth_cli.parse import parse_shard
from segearth_cli.prefetch import prefetched
from segearth_cli.results import Failure, SegmentResult, Skipped
from segearth_cli.segment import segment
from segearth_cli.staging import PREFIX, Staging

TESTS = Path(__file__).parent
RESUME = BatchOptions(resume=True)
EVERY_KIND = (".tif", ".gpkg", ".geojson", ".geojsonl", ".fgb", ".parquet", ".shp", ".png")


@pytest.fixture
def sources(tmp_path):
    (tmp_path / "in").mkdir()
    return [write_scene(tmp_path / "in" / f"{n}.tif", blocks(1, 40 + n, 50)) for n in range(3)]


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def kinds(outcomes):
    return [type(outcome) for outcome in outcomes]


def contents(folder):
    names = [name for name in names_in(folder) if not name.startswith(PREFIX)]
    return {name: (folder / name).read_bytes() for name in names}


def run(*args, **more):
    return CliRunner().invoke(app, [*map(str, args)], **more)


# --- what is done again ------------------------------------------------------------------------


def test_what_is_complete_is_left_as_it_is(sources, out, tiny_model):
    outputs = [out / f"{{stem}}{kind}" for kind in EVERY_KIND]
    options = options_for(tiny_model, *outputs, probabilities=f"{out}/./{{stem}}_p.tif")
    assert kinds(segment_all(sources[:2], options, RESUME)) == [SegmentResult] * 2
    before = contents(out)
    times = {name: (out / name).stat().st_mtime_ns for name in before}
    assert kinds(segment_all(sources, options, RESUME)) == [Skipped, Skipped, SegmentResult]
    after = contents(out)
    assert {name: after[name] for name in before} == before
    assert {name: (out / name).stat().st_mtime_ns for name in before} == times


@pytest.mark.parametrize(
    "lost",
    [".gpkg", ".shp", ".dbf", ".shx", ".shp.segearth.json", ".tif", ".tif.aux.xml", "_p.tif"],
)
def test_a_scene_with_a_part_missing_is_done_again(sources, out, tiny_model, lost):
    outputs = [out / "{stem}.gpkg", out / "{stem}.shp", out / "{stem}.tif"]
    options = options_for(tiny_model, *outputs, probabilities=str(out / "{stem}_p.tif"))
    list(segment_all(sources[:2], options, RESUME))
    names = names_in(out)
    (out / f"1{lost}").unlink()
    if lost == ".shp.segearth.json":  # then nothing says whose the rest is
        with pytest.raises(OutputError, match=r"1\.shp exists; use --overwrite"):
            jobs_of(sources, options, RESUME)
        return
    assert kinds(segment_all(sources[:2], options, RESUME)) == [Skipped, SegmentResult]
    assert names_in(out) == names


@pytest.mark.parametrize(
    "more",
    [
        {"threshold": 0.5},
        {"classes": (("building",), ("road",))},
        {"background": ("sky",)},
        {"min_area": 30.0},
        {"stride": 16},
        {"blend": "mean"},
        {"exact": True},
        {"precision": "bf16"},
        {"creation_options": (("COMPRESS", "LZW"),)},
    ],
)
def test_other_settings_are_done_again(sources, out, tiny_model, more):
    name = out / "{stem}.tif"
    list(segment_all(sources, options_for(tiny_model, name, precision="fp32"), RESUME))
    options = options_for(tiny_model, name, **{"precision": "fp32", **more})
    assert kinds(segment_all(sources, options, RESUME)) == [SegmentResult] * 3
    assert kinds(segment_all(sources, options, RESUME)) == [Skipped] * 3


def test_settings_that_change_no_map_do_not_matter(sources, out, tiny_model, tmp_path):
    name = str(out / "{stem}.tif")
    list(segment_all(sources, options_for(tiny_model, name), RESUME))
    shutil.copytree(tiny_model, tmp_path / "copy of model")
    shutil.copytree(tmp_path / "in", tmp_path / "moved")
    options = options_for(
        tmp_path / "copy of model", name, threads=1, max_memory=8 << 30, batch_size=2
    )
    moved = [str(tmp_path / "moved" / Path(source).name) for source in sources]
    assert kinds(segment_all(moved, options, RESUME)) == [Skipped] * 3


def test_other_pixels_another_model_or_area_are_done_again(
    sources, out, tiny_model, upsampled_model, tmp_path
):
    from geopandas import GeoSeries
    from shapely import box

    area = tmp_path / "area.gpkg"
    corner = (500_000, 5_399_950)
    GeoSeries([box(*corner, 500_080, 5_400_000)], crs="EPSG:32633").to_file(area)
    options = options_for(tiny_model, out / "{stem}.tif", aoi=str(area))
    list(segment_all(sources, options, RESUME))
    write_scene(Path(sources[1]), blocks(1, 41, 50) ^ 1)
    expected = [Skipped, SegmentResult, Skipped]
    assert kinds(segment_all(sources, options, RESUME)) == expected
    GeoSeries([box(*corner, 500_060, 5_400_000)], crs="EPSG:32633").to_file(area)
    assert kinds(segment_all(sources, options, RESUME)) == [SegmentResult] * 3
    other = options_for(upsampled_model, out / "{stem}.tif", aoi=str(area))
    assert kinds(segment_all(sources, other, RESUME)) == [SegmentResult] * 3


def test_a_record_of_a_sensor_that_there_is_not_says_nothing(sources, out, tiny_model):
    options = options_for(tiny_model, out / "{stem}.tif")
    list(segment_all(sources, options, RESUME))
    with rasterio.open(out / "1.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dst:
        dst.update_tags(SEGEARTH_SENSOR="radar")
    expected = [Skipped, SegmentResult, Skipped]
    assert kinds(segment_all(sources, options, RESUME)) == expected


def test_files_that_segearth_did_not_make_are_never_replaced(sources, out, tiny_model):
    options = options_for(tiny_model, out / "{stem}.gpkg")
    (out / "1.gpkg").write_text("mine")
    with pytest.raises(OutputError, match=r"1\.gpkg exists; use --overwrite"):
        jobs_of(sources, options, RESUME)
    assert names_in(out) == ["1.gpkg"]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("2.dbf", "shp"), ("2.gpkg-wal", "gpkg"), ("2.tif.msk", "tif"), ("2.tif.ovr", "tif")],
)
def test_what_goes_with_a_map_and_segearth_did_not_make_stays(
    sources, out, tiny_model, name, suffix
):
    options = options_for(tiny_model, out / f"{{stem}}.{suffix}")
    (out / name).write_text("mine")
    with pytest.raises(OutputError, match=rf"{name} exists"):
        jobs_of(sources, options, RESUME)
    assert (out / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("suffix", "left"), [("geojsonl", "1.geojsonl.segearth.json"), ("tif", "1.tif.aux.xml")]
)
def test_the_parts_of_a_map_that_never_came_are_replaced(sources, out, tiny_model, suffix, left):
    options = options_for(tiny_model, out / f"{{stem}}.{suffix}")
    list(segment_all(sources, options))
    (out / f"1.{suffix}").unlink()
    assert (out / left).is_file()
    assert kinds(segment_all(sources, options, RESUME)) == [Skipped, SegmentResult, Skipped]


def test_a_file_that_appears_meanwhile_is_not_replaced(sources, out, tiny_model, monkeypatch):
    options = options_for(tiny_model, out / "{stem}.gpkg")
    list(segment_all([sources[0], sources[2]], options))

    def write(*args):
        (out / "1.gpkg").write_text("mine")
        return write_outputs(*args)

    monkeypatch.setattr("segearth_cli.segment.write_outputs", write)
    first, second, third = segment_all(sources, options, RESUME)
    assert "1.gpkg exists; use --overwrite" in str(second.error)
    assert kinds([first, third]) == [Skipped, Skipped]
    assert (out / "1.gpkg").read_text() == "mine"


def test_maps_are_whole_though_gdal_may_write_nothing_beside_files(sources, out, tiny_model):
    words = ("--classes", "road", "--model", str(tiny_model), "--json", "--resume")
    command = [sys.executable, "-m", "segearth_cli", "segment", sources[0], *words]
    env = surroundings(GDAL_PAM_ENABLED="NO")
    for status in ("done", "skipped"):
        done = subprocess.run([*command, "-o", out / "map.tif"], stdout=-1, env=env)
        assert json.loads(done.stdout)["status"] == status
    assert "road" in (out / "map.tif.aux.xml").read_text()


def test_a_source_that_is_gone_is_said_though_its_map_is_there(sources, out, tiny_model):
    options = options_for(tiny_model, out / "{stem}.gpkg")
    list(segment_all(sources, options, RESUME))
    Path(sources[1]).unlink()
    first, second, third = segment_all(sources, options, RESUME)
    assert "there is no such file" in str(second.error)
    assert kinds([first, third]) == [Skipped, Skipped]
    assert read_record(out / "1.gpkg") is not None


def test_stdout_cannot_be_resumed(sources, tiny_model):
    with pytest.raises(UsageError, match="--resume finds nothing on stdout"):
        jobs_of(sources, options_for(tiny_model, "-"), RESUME)


def test_what_a_killed_run_left_goes_and_what_others_do_stays(sources, out, tiny_model, caplog):
    dead = out / f"{PREFIX}{socket.gethostname()}-1-0123456789abcdef"
    foreign = out / f"{PREFIX}another-machine-1-0123456789abcdef"
    for folder in (dead, foreign):
        folder.mkdir()
        (folder / "lock").touch()
    (dead / "half.tif").write_text("half")
    options = options_for(tiny_model, out / "{stem}.gpkg")
    list(plan_jobs(jobs_of(sources, options, RESUME), RESUME))
    assert dead.is_dir()  # nothing was asked to be done
    with contextlib.ExitStack() as stack:
        alive = Staging(stack).beside(out / "other.tif")
        list(segment_all(sources, options, RESUME))
        assert alive.is_dir()
    assert not dead.exists()
    assert foreign.is_dir()
    assert "which a killed run left" in caplog.text


# --- parts, errors, and what is said -----------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_the_parts_of_a_job_array_are_all_scenes_once(sources, out, tiny_model, parts):
    options = options_for(tiny_model, out / "{stem}.gpkg")
    done = [
        job.source
        for part in range(1, parts + 1)
        for job in jobs_of(sources, options, BatchOptions(shard=(part, parts)))
    ]
    assert sorted(done) == sources


def test_a_clash_of_names_is_found_whatever_part_it_lies_in(tiny_model, out):
    options = options_for(tiny_model, out / "{stem}.gpkg")
    with pytest.raises(UsageError, match=r"both write .*a\.gpkg"):
        jobs_of(["x/a.tif", "y/a.tif"], options, BatchOptions(shard=(1, 2)))


@pytest.mark.parametrize(
    ("text", "message"),
    [("0/3", "is no part"), ("4/3", "is no part"), ("1", "is not PART"), ("a/b", "is not PART")],
)
def test_parts_that_there_are_not(text, message):
    with pytest.raises(UsageError, match=message):
        BatchOptions(shard=parse_shard(text))


def test_on_error_stop_leaves_the_rest(sources, out, tiny_model):
    options = options_for(tiny_model, out / "{stem}.gpkg")
    named = [sources[0], "missing.tif", sources[2]]
    outcomes = list(segment_all(named, options, BatchOptions(on_error="stop")))
    assert kinds(outcomes) == [SegmentResult, Failure]
    assert names_in(out) == ["0.gpkg"]


def test_the_end_of_a_batch_is_a_table_and_its_lines_come_as_they_happen(sources, out, tiny_model):
    words = ("--classes", "building,road", "--model", tiny_model, "--device", "cpu")
    args = ("segment", *words, "-o", out / "{stem}.gpkg", "--resume", "--json")
    assert run(*args, sources[0]).exit_code == 0
    result = run(*args, *sources[:2], "missing.tif")
    assert result.exit_code == 3
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["status"] for line in lines] == ["skipped", "done", "failed"]
    assert [line["outputs"] for line in lines] == [
        [str(out / "0.gpkg")],
        [str(out / "1.gpkg")],
        [],
    ]
    assert all(line["seconds"] >= 0 for line in lines)
    assert "no such file" in lines[2]["error"]
    table = [line.split() for line in result.stderr.splitlines()[-5:]]
    assert table[0] == ["scenes", "time"]
    assert [row[:-2] for row in table[1:4]] == [
        ["done", "1"],
        ["complete", "already", "1"],
        ["failed", "1"],
    ]
    assert " ".join(table[4]).startswith("failed: cannot open missing.tif")
    stopped = run(*args, "missing.tif", sources[2], "--on-error", "stop")
    assert stopped.exit_code == 3
    assert "not begun  1" in " ".join(stopped.stderr.split("\n")).replace("       ", "  ")


def test_an_empty_part_is_no_failure(sources, out, tiny_model):
    args = ("segment", *sources, "--classes", "a", "--model", tiny_model, "--device", "cpu")
    result = run(*args, "-o", out / "{stem}.gpkg", "--shard", "5/5")
    assert result.exit_code == 0
    assert result.stderr.strip() == "warning: this part holds none of the 3 scenes"


def test_remarks_come_with_their_scene_though_it_is_opened_before(tmp_path, out, tiny_model):
    sources = [write_scene(tmp_path / f"{name}.tif", blocks(1, 40, 50), crs=None) for name in "abc"]
    args = ("segment", *sources, "--classes", "a", "--model", tiny_model, "--device", "cpu")
    lines = run(*args, "-o", out / "{stem}.tif").stderr.splitlines()
    firsts = [line.split()[1] if line.startswith("warning") else line for line in lines]
    assert [line for line in firsts if line in sources] == [s for s in sources for _ in "12"]


def test_a_bug_in_one_scene_of_many_is_said_in_full_and_the_others_go_on(
    sources, out, tiny_model, monkeypatch
):
    from segearth_cli import fitness

    def broken(scene, *rest):
        if scene.source == sources[1]:
            raise ZeroDivisionError("of all things")

    monkeypatch.setattr(fitness, "warn_of_resolution", broken)
    args = ("segment", "--classes", "a", "--model", tiny_model, "--device", "cpu")
    result = run(*args, *sources, "-o", out / "{stem}.gpkg")
    assert result.exit_code == 3
    assert names_in(out) == ["0.gpkg", "2.gpkg"]
    assert "Traceback" in result.stderr
    assert "failed: " + sources[1] in result.stderr
    alone = run(*args, sources[1], "-o", out / "map.gpkg")
    assert isinstance(alone.exception, ZeroDivisionError)


def test_the_next_scene_is_made_ready_and_let_go_when_nobody_takes_it():
    made, dropped, begun = [], [], threading.Event()

    def make(item):
        made.append(item)
        if item == "b":
            begun.set()
        if item == "bad":
            raise ValueError(item)
        return item.upper()

    items = prefetched(["bad", "a", "b", "c"], make, dropped.append)
    _, take = next(items)
    with pytest.raises(ValueError, match="bad"):
        take()
    item, take = next(items)
    assert (item, take()) == ("a", "A")
    assert begun.wait(60)  # while "a" is worked on
    items.close()
    assert made == ["bad", "a", "b"]
    assert dropped == ["B"]


def test_nobody_waits_for_a_server_whose_scene_is_no_longer_wanted(monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "600")
    asked, attempts = threading.Event(), []

    def attempt():
        attempts.append(1)
        asked.set()
        raise SceneError("no answer") from RasterioIOError("no answer")

    def make(item):
        return patiently("https://host/b.tif", attempt) if item == "b" else item

    with contextlib.closing(prefetched(["a", "b"], make, str)) as items:
        _, take = next(items)
        assert take() == "a"
        assert asked.wait(60)
    assert len(attempts) == 1
    assert not give_up.is_set()


def test_after_an_interrupt_no_further_scene_is_opened():
    made = []

    def make(item):
        made.append(item)
        raise KeyboardInterrupt

    with contextlib.closing(prefetched(["a", "b"], make, made.append)) as items:
        _, take = next(items)
        with pytest.raises(KeyboardInterrupt):
            take()
    assert made == ["a"]


# --- stopped and killed ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_whole_scenes_and_nothing_else(tmp_path, out, tiny_model, sent, code):
    words = ("--classes", "building,road", "--model", tiny_model, "--device", "cpu")
    outputs = ("-o", out / "new" / "{stem}.tif")
    stopped_in_the_middle(tmp_path, sent, code, *words, *outputs)
    assert names_in(out) == ["new", "new/a.tif", "new/a.tif.aux.xml"]
    assert read_record(out / "new" / "a.tif") is not None


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_the_bytes_are_the_same(sources, tmp_path, tiny_model):
    names = [f"{{stem}}{kind}" for kind in (".tif", ".gpkg", ".shp", ".geojsonl", ".png")]
    environment = surroundings(SOURCE_DATE_EPOCH="1700000000")

    def killed(runs):
        spec = {"model": str(tiny_model), "sources": sources, "outputs": names, "runs": runs}
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        done = subprocess.run(
            [sys.executable, str(TESTS / "killed.py"), str(tmp_path / "spec.json")],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    # the first one also encodes the words, which are kept then
    never = sys.maxsize
    _, calls = killed([(str(tmp_path / name), never) for name in ("first", "whole")])
    whole = contents(tmp_path / "whole")
    pick = random.Random(20)
    moments = [pick.randrange(1, calls) for _ in range(8)]
    # the last calls of a scene put its files into place
    moments += [calls - pick.randrange(40, 500) for _ in range(8)]
    folders = [tmp_path / f"killed {moment}" for moment in moments]
    ends = killed([(str(f), moment) for f, moment in zip(folders, moments, strict=True)])
    assert sum(end == moment for end, moment in zip(ends, moments, strict=True)) >= 12
    found = 0
    for left in folders:
        for name in names_in(left) if left.exists() else ():
            is_output = any(name.endswith(pattern.format(stem="")) for pattern in names)
            if is_output and not name.startswith(PREFIX):
                assert (left / name).read_bytes() == whole[name], name
                found += 1
    assert found > 14
    killed([(str(folder), None) for folder in folders])
    for left in folders:
        assert contents(left) == whole


def test_signals_wait_while_files_are_put_into_place(tmp_path, sources, tiny_model, monkeypatch):
    """The files of a scene come all together, whenever Ctrl-C comes."""
    from segearth_cli import staging

    put = staging._put

    def interrupted(destination, places):
        signal.raise_signal(signal.SIGINT)
        put(destination, places)

    monkeypatch.setattr(staging, "_put", interrupted)
    out = tmp_path / "out"
    outputs = [out / "a.gpkg", out / "a.tif", out / "a.shp"]
    with pytest.raises(KeyboardInterrupt), ctrl_c_heard():
        segment(sources[0], options_for(tiny_model, *outputs))
    assert all(read_record(path) for path in outputs)
    assert not [name for name in names_in(out) if name.startswith(PREFIX)]
