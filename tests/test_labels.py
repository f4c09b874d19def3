"""Labels on a scene's grid, whatever they come from."""

import json

import geopandas
import numpy as np
import pandas
import pytest
import rasterio
import shapely
from labelled import truth, vector_of
from rasterio.control import GroundControlPoint
from scenes import blocks, read, write_scene
from typer.testing import CliRunner

from segearth_cli.cli import app
from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.label_meaning import LabelMeaning
from segearth_cli.geo.labels import blocks_of, open_labels, spread_places
from segearth_cli.options import SegmentOptions, TuneOptions

KNOWN = LabelMeaning(
    {0: "background", 1: "building", 2: "road"},
    {"background": 0, "other": 0, "building": 1, "house": 1, "road": 2},
)


def grid_of(path):
    with rasterio.open(path) as src:
        return Grid(src.width, src.height, src.transform, src.crs)


def labels_on(path, grid, column=None):
    """All of the labels, read in parts."""
    with open_labels(str(path), grid, KNOWN, column) as labels:
        parts = [labels.read(0, 33), labels.read(33, grid.height - 33)]
        return np.concatenate([part.classes for part in parts])


@pytest.fixture
def scene(tmp_path):
    return write_scene(tmp_path / "scene.tif")


def test_a_raster_without_names_counts_from_the_background(tmp_path, scene):
    labels = truth()
    labels[:, :5] = 255
    path = write_scene(tmp_path / "labels.tif", labels)
    found = labels_on(path, grid_of(scene))
    assert (found[:5] == -1).all()
    assert (found[5:] == labels[0, 5:]).all()


def test_a_raster_may_hold_whole_floats(tmp_path, scene):
    labels = truth().astype(np.float32)
    labels[:, :5] = np.nan
    path = write_scene(tmp_path / "labels.tif", labels)
    found = labels_on(path, grid_of(scene))
    assert (found[:5] == -1).all()
    assert (found[5:] == labels[0, 5:]).all()


def test_a_raster_names_its_own_values(tmp_path, scene):
    path = write_scene(tmp_path / "labels.tif", np.array([0, 7, 4], np.uint8)[truth()], nodata=0)
    with rasterio.open(path, "r+") as dst:
        dst.update_tags(CLASSES=json.dumps({"4": "House", "7": "road"}))
    found = labels_on(path, grid_of(scene))
    assert (found == np.array([-1, 2, 1])[truth()[0]]).all()


def test_what_is_said_of_a_raster_fits_its_names(tmp_path, scene, caplog):
    path = write_scene(tmp_path / "labels.tif", truth() + 4)
    with rasterio.open(path, "r+") as dst:
        dst.update_tags(CLASSES=json.dumps({"4": "house", "5": "road"}))
    own = {"segment": SegmentOptions(classes=(("house",),)), "pairs": ((scene, path),)}
    twice = TuneOptions(**own, ignore=("House",), label_values=((4, 1),))
    with (
        pytest.raises(UsageError, match=r"give 4 of .* two meanings"),
        open_labels(path, grid_of(scene), KNOWN.explained(twice)),
    ):
        pass
    of_others = TuneOptions(**own, ignore=("cloud",))
    with open_labels(path, grid_of(scene), KNOWN.explained(of_others)):
        assert caplog.messages == [f"{path} has nothing called cloud"]


def test_a_raster_on_another_grid_is_aligned(tmp_path, scene):
    grid = grid_of(scene)
    coarse = truth()[:, ::2, ::2]
    place = grid.transform * rasterio.Affine.scale(2)
    path = write_scene(tmp_path / "labels.tif", coarse[:, :30], transform=place)
    found = labels_on(path, grid)
    assert (found[60:] == -1).all()
    assert (found[:60] == np.kron(coarse[0], np.ones((2, 2), int))[:60]).all()


@pytest.mark.parametrize("crs", [32633, 4326, 3857])
@pytest.mark.parametrize("kind", ["polygons", "points"])
@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_vectors_label_the_pixels_they_lie_on(tmp_path, scene, crs, kind, suffix):
    path = tmp_path / f"labels{suffix}"
    frame = vector_of(truth(), scene, kind).to_crs(crs)
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_file(path)
    assert (labels_on(path, grid_of(scene)) == truth()[0]).mean() > 0.999  # edges are rounded


def test_labels_in_one_of_several_layers(tmp_path, scene):
    path = tmp_path / "labels.gpkg"
    frame = vector_of(truth(), scene, "polygons")
    frame.to_file(path, layer="checked")
    frame.assign(class_name="road").to_file(path, layer="draft")
    found = labels_on(f"{path}|layername=checked", grid_of(scene))
    assert (found == truth()[0]).all()


def test_our_own_polygons_are_labels(tmp_path, tiny_model, scene, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["segment", scene, "--classes", "building,road", "--model", str(tiny_model)]
    done = CliRunner().invoke(app, [*args, "--device", "cpu", "-o", "map.gpkg", "-o", "map.tif"])
    assert done.exit_code == 0, done.stderr
    found, raster = (labels_on(name, grid_of(scene)) for name in ("map.gpkg", "map.tif"))
    assert (raster == read("map.tif")).all()
    assert (found[raster > 0] == raster[raster > 0]).all()
    assert (found[raster == 0] == -1).all()


def test_a_scene_without_a_coordinate_system_has_rows_below_zero(tmp_path):
    grid = Grid(130, 100, rasterio.Affine.identity())
    points = shapely.points([20.5, 100.2], [-10.5, -80.7])
    frame = geopandas.GeoDataFrame({"label": ["road", "house"]}, geometry=points)
    frame.to_file(tmp_path / "labels.geojson", driver="GeoJSON", crs=None)
    found = labels_on(tmp_path / "labels.geojson", grid)
    assert (found[10, 20], found[80, 100], (found >= 0).sum()) == (2, 1, 2)
    frame.geometry = shapely.points([20.5, 100.2], [10.5, 80.7])  # as --aoi takes them, too
    frame.to_file(tmp_path / "down.geojson", driver="GeoJSON", crs=None)
    assert (labels_on(tmp_path / "down.geojson", grid) == found).all()


def test_polygons_without_an_area_are_left_out_and_counted(tmp_path, scene, caplog):
    flat = shapely.Polygon([(500_000, 5_399_990), (500_010, 5_399_990), (500_020, 5_399_990)])
    frame = vector_of(truth(), scene, "polygons")
    flat = geopandas.GeoDataFrame({"class_name": ["road"]}, geometry=[flat], crs=frame.crs)
    pandas.concat([frame, flat]).to_file(tmp_path / "labels.gpkg")
    assert (labels_on(tmp_path / "labels.gpkg", grid_of(scene)) == truth()).all()
    assert "labels.gpkg: 1 feature has no area; left out" in caplog.text


def test_ground_control_points_must_be_the_same(tmp_path):
    corners = ((0, 0), (0, 130), (100, 0), (100, 130))

    def file(name, array, shift):
        points = [
            GroundControlPoint(r, c, 500_000 + 2 * c + shift, 5e6 - 2 * r) for r, c in corners
        ]
        return write_scene(tmp_path / name, array, transform=None, gcps=points)

    scene, same = file("scene.tif", blocks(), 0), file("same.tif", truth(), 0)
    with rasterio.open(scene) as src:
        gcps, crs = src.gcps
        grid = Grid(src.width, src.height, src.transform, crs, tuple(gcps))
    assert (labels_on(same, grid) == truth()[0]).all()
    with pytest.raises(SceneError, match="lies on another grid than the scene"):
        labels_on(file("other.tif", truth(), 10), grid)
    points = geopandas.GeoDataFrame(
        {"name": ["road"]}, geometry=[shapely.Point(500_041, 5e6 - 21)], crs=crs.to_wkt()
    )
    points.to_crs(4326).to_file(tmp_path / "points.fgb")
    found = labels_on(tmp_path / "points.fgb", grid)
    assert (found[10, 20], (found >= 0).sum()) == (2, 1)


def test_pixels_with_two_classes_say_nothing(tmp_path, scene, caplog):
    frame = vector_of(truth(), scene, "polygons")
    frame.loc[len(frame)] = {"class_name": "road", "geometry": frame.geometry.union_all()}
    frame.to_file(tmp_path / "labels.gpkg")
    with open_labels(str(tmp_path / "labels.gpkg"), grid_of(scene), KNOWN) as labels:
        places = spread_places(labels, 50)
    assert places.labelled == {2: int((truth() == 2).sum())}
    assert "11875 pixels have labels of several classes" in caplog.text
    caplog.clear()
    silent = TuneOptions(
        segment=SegmentOptions(classes=(("house",),)), pairs=((scene, scene),), ignore=("road",)
    )
    with open_labels(str(tmp_path / "labels.gpkg"), grid_of(scene), KNOWN.explained(silent)) as of:
        assert all(not (rows.classes >= 0).any() for _, rows in blocks_of(of))
        assert all(rows.disputed == 0 for _, rows in blocks_of(of))


def test_places_are_spread_and_always_the_same(tmp_path, scene):
    grid = grid_of(scene)
    path = write_scene(tmp_path / "labels.tif", truth())
    with open_labels(path, grid, KNOWN) as labels:
        one, other = (spread_places(labels, 300) for _ in range(2))
    assert (one.rows == other.rows).all()
    assert (one.columns == other.columns).all()
    assert (truth()[0][one.rows, one.columns] == one.values).all()
    assert (np.diff(one.rows * grid.width + one.columns) > 0).all()
    for value in range(3):
        own = one.values == value
        count = int((truth() == value).sum())
        assert own.sum() == min(300, count)
        assert one.weights[own].sum() == pytest.approx(count)
        in_upper_half = (truth()[0, :50] == value).sum() / count
        assert (one.rows[own] < 50).mean() == pytest.approx(in_upper_half, abs=0.01)
