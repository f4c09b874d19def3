import io
import logging
from dataclasses import replace

import geopandas
import pytest
import rasterio.shutil
from scenes import blocks, names_in, options_for, read, write_scene

from segearth_cli.batch import jobs_of, options_per_scene, plan_jobs, segment_all
from segearth_cli.errors import ModelError, OutputError, SceneError, UsageError
from segearth_cli.inputs import expand_inputs, stem_of
from segearth_cli.options import BatchOptions
from segearth_cli.results import Failure
from segearth_cli.segment import segment


def test_a_dash_stands_for_the_lines_of_stdin():
    lines = io.StringIO("b.tif\r\n\n  c d.tif \n")
    found = expand_inputs(["a.tif", "-", "e.tif"], lines)
    assert [own.source for own in found] == ["a.tif", "b.tif", "c d.tif", "e.tif"]


@pytest.mark.parametrize(
    ("inputs", "text", "message"),
    [
        (["-"], b"\n \n", "standard input was empty"),
        (["a.tif", "-"], b"a.tif\n", "a.tif is named twice"),
        ([""], b"", "the name of a scene is empty"),
        (["-"], b"\xff.tif\n", "not utf-8 text"),
    ],
)
def test_lists_that_name_no_scenes(inputs, text, message):
    lines = io.TextIOWrapper(io.BytesIO(text), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        expand_inputs(inputs, lines)


def test_outputs_are_named_after_the_scene(tiny_model):
    options = options_for(tiny_model, "maps/{stem}.gpkg", "-", probabilities="{stem}/p.tif")
    sources = ["in/north.tif", "/vsizip/all.zip/south.v2.tif", "https://host/east.tif"]
    named = options_per_scene(sources, options)
    assert [own.outputs[0] for own in named] == [
        "maps/north.gpkg",
        "maps/south.v2.gpkg",
        "maps/east.gpkg",
    ]
    assert {own.outputs[1] for own in named} == {"-"}
    beside = options_per_scene(
        ["2024/a.tif", "2025/a.tif"], options_for(tiny_model, "{parent}/a.tif")
    )
    assert [own.outputs for own in beside] == [("2024/a.tif",), ("2025/a.tif",)]
    with pytest.raises(UsageError, match=r"'\{name\}\.tif' holds \{name\}; only \{stem\}"):
        options_per_scene(["a.tif"], options_for(tiny_model, "{name}.tif"))
    assert named[0].probabilities == "north/p.tif"


@pytest.mark.parametrize(
    ("sources", "outputs", "message"),
    [
        (["a.tif", "b.tif"], ["map.gpkg"], r"2 scenes cannot all be written to 'map\.gpkg'"),
        (["x/a.tif", "y/a.tif"], ["{stem}.gpkg"], r"x/a\.tif .*y/a\.tif .* both write a\.gpkg"),
        (["a.tif", "a.jp2"], ["{stem}.gpkg"], r"both write a\.gpkg"),
        (["one/A.tif", "two/a.tif"], ["{stem}.tif"], r"both write a\.tif"),
        (["x.tif", "x_p.tif"], ["{stem}.tif", "{stem}_p.tif"], r"both write x_p\.tif"),
    ],
)
def test_scenes_that_would_share_an_output_are_refused(tiny_model, sources, outputs, message):
    with pytest.raises(UsageError, match=message):
        options_per_scene(sources, options_for(tiny_model, *outputs))


def test_a_scene_that_fails_does_not_stop_the_others(tmp_path, tiny_model, caplog):
    caplog.set_level(logging.INFO, "segearth_cli")
    sources = [
        write_scene(tmp_path / "a.tif"),
        str(tmp_path / "missing.tif"),
        write_scene(tmp_path / "c.tif", blocks(1)),
    ]
    options = options_for(tiny_model, tmp_path / "{stem}_map.tif")
    first, second, third = segment_all(sources, options)
    assert isinstance(second, Failure)
    assert isinstance(second.error, SceneError)
    assert first.outputs == (str(tmp_path / "a_map.tif"),)
    assert caplog.text.count("model tiny") == 1  # loaded once
    alone = options_for(tiny_model, tmp_path / "alone.tif")
    segment(sources[2], alone)
    assert (read(third.outputs[0]) == read(tmp_path / "alone.tif")).all()


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"stretch": "p98,2"}, UsageError, "--stretch"),
        ({"dst_crs": "nowhere"}, UsageError, "--dst-crs"),
        ({"device": "cuda:99"}, UsageError, "--device"),
        ({"creation_options": (("FOO", "BAR"),)}, UsageError, "--co"),
        (
            {"creation_options": (("BLOCKSIZE", "0"),)},
            UsageError,
            "a multiple of 16 from 64",
        ),
        ({"creation_options": (("OVERVIEW_COMPRESS", "JPEG"),)}, UsageError, "^--co: JPEG"),
        ({"creation_options": (("COMPRESS", "JPEG"),)}, UsageError, "^--co: JPEG"),
        ({"creation_options": (("nbits", "4"),)}, UsageError, "would change the values"),
        ({"creation_options": (("RESAMPLING", "CUBIC"),)}, UsageError, "NEAREST or MODE"),
        ({"creation_options": (("TARGET_SRS", "EPSG:3857"),)}, UsageError, "--dst-crs"),
        ({"classes": (("road",), ("road",))}, UsageError, "twice"),
        ({"model": "no-such-model"}, UsageError, "no model or folder 'no-such-model'"),
        ({"model": "vit-b-16"}, ModelError, "segearth models pull vit-b-16"),
    ],
)
def test_what_no_scene_can_be_segmented_with_is_said_once(
    tmp_path, tiny_model, more, error, message
):
    model = more.pop("model", tiny_model)
    options = options_for(model, tmp_path / "{stem}.gpkg", **more)
    with pytest.raises(error, match=message):
        jobs_of(["a.tif", "b.tif"], options)


def test_outputs_are_checked_before_the_first_scene(tmp_path, tiny_model):
    sources = [write_scene(tmp_path / "a.tif"), write_scene(tmp_path / "a_map.tif")]
    (tmp_path / "a_map.gpkg").write_text("mine")
    taken = options_for(tiny_model, tmp_path / "{stem}.gpkg")
    with pytest.raises(OutputError, match=r"a_map\.gpkg exists; use --overwrite"):
        next(segment_all(sources, taken))
    over = options_for(tiny_model, tmp_path / "{stem}_map.tif", overwrite=True)
    with pytest.raises(OutputError, match=r"a_map\.tif is to be read"):
        next(segment_all(sources, over))
    assert names_in(tmp_path) == ["a.tif", "a_map.gpkg", "a_map.tif"]


def test_a_tile_of_another_scene_is_never_replaced(tmp_path, tiny_model):
    tile = write_scene(tmp_path / "tile.tif")
    mosaic = str(tmp_path / "mosaic.vrt")
    rasterio.shutil.copy(tile, mosaic, driver="VRT")
    (tmp_path / "other").mkdir()
    other = write_scene(tmp_path / "other" / "tile.tif")
    options = options_for(tiny_model, tmp_path / "{stem}.tif", overwrite=True)
    with pytest.raises(OutputError, match=r"tile\.tif is to be read"):
        jobs_of([other, mosaic, str(tmp_path / "gone.tif")], options)
    assert len(jobs_of([mosaic, str(tmp_path / "gone.tif")], options)) == 2


def test_plans_name_the_scenes_that_would_fail(tmp_path, tiny_model):
    sources = [str(tmp_path / "missing.tif"), write_scene(tmp_path / "a.tif")]
    jobs = jobs_of(sources, options_for(tiny_model, tmp_path / "{stem}.gpkg"))
    missing, planned = plan_jobs(jobs)
    assert isinstance(missing, Failure)
    assert planned.outputs == (str(tmp_path / "a.gpkg"),)
    assert names_in(tmp_path) == ["a.tif"]
    (missing,) = plan_jobs(jobs, BatchOptions(on_error="stop"))
    assert isinstance(missing, Failure)


def test_what_is_complete_is_not_replaced_as_well(tmp_path, tiny_model):
    options = replace(options_for(tiny_model, tmp_path / "{stem}.gpkg"), overwrite=True)
    with pytest.raises(UsageError, match="exclude each other"):
        jobs_of([write_scene(tmp_path / "a.tif")], options, BatchOptions(resume=True))


def test_a_plan_for_a_cluster_asks_nothing_of_this_machine(tmp_path, tiny_model):
    options = options_for(tiny_model, tmp_path / "{stem}.gpkg", device="cuda", precision="fp16")
    how = BatchOptions(engine="ray", address="head:6379")
    (planned,) = plan_jobs(jobs_of([write_scene(tmp_path / "a.tif")], options, how), how)
    assert planned.settings.endswith("on a Ray cluster")


def test_features_of_several_scenes_share_one_stream(tmp_path, tiny_model, capsys):
    sources = [write_scene(tmp_path / f"{name}.tif") for name in "ab"]
    list(segment_all(sources, options_for(tiny_model, "-")))
    (tmp_path / "all.geojsonl").write_text(capsys.readouterr().out)
    frame = geopandas.read_file(tmp_path / "all.geojsonl")
    assert set(frame.source) == set(sources)


@pytest.mark.parametrize(
    ("source", "stem"),
    [
        ("scenes/my town.tif", "my town"),
        ("https://host/a/b.tif?X-Amz-Signature=q/w.e", "b"),
        ("/vsicurl/https://host/c.tif", "c"),
        ('NETCDF:"folder/d.nc":band', "d"),
        ("C:\\scenes\\e.tif", "e"),
    ],
)
def test_the_stem_of_a_scene(source, stem):
    assert stem_of(source) == stem


def test_what_is_no_url_is_one_line():
    with pytest.raises(UsageError, match=r"http://\[x/a\.tif is no URL"):
        expand_inputs(["http://[x/a.tif"])
