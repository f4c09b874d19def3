"""``evaluate --pred --label``: rasters of one place, whatever their grids."""

import json
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.warp
from geopandas import GeoDataFrame, points_from_xy, read_file
from rasterio import Affine
from scenes import blocks, options_for, read, write_scene
from shapely import box
from shapely.affinity import translate
from typer.testing import CliRunner

from segearth_cli.cli import app
from segearth_cli.segment import segment


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def write(path, values, classes=None, **profile):
    write_scene(path, np.asarray(values, np.uint8)[None], **profile)
    if classes is not None:
        with rasterio.open(path, "r+") as dst:
            dst.update_tags(CLASSES=classes)
    return path


@pytest.fixture
def label(tmp_path):
    values = np.kron(np.array([[0, 1], [2, 3]]), np.ones((4, 6), int))
    return write(tmp_path / "label.tif", values, "other,road,water,tree")


MAP = '{"0": "background", "1": "water", "2": "road"}'


def test_classes_of_equal_names_belong_together(tmp_path, label):
    made = read(label).copy()
    made = np.array([0, 2, 1, 0], np.uint8)[made]
    made[0, 0] = 1

    done = run("--pred", write(tmp_path / "map.tif", made, MAP), "--label", label, "--json", "-q")

    scores = json.loads(done.stdout)["scores"]
    assert [c["name"] for c in scores["classes"]] == ["background", "water", "road"]
    assert scores["confusion"] == [[47, 1, 0], [0, 24, 0], [0, 0, 24]]
    assert scores["miou"] == pytest.approx((47 / 48 + 24 / 25 + 1) / 3)


def test_a_map_of_another_grid_is_brought_onto_the_labels(tmp_path, label):
    made = np.array([0, 2, 1, 0], np.uint8)[read(label)]
    fine = np.kron(made, np.ones((2, 2), np.uint8))
    shifted = np.pad(fine, ((4, 0), (2, 0)), constant_values=9)
    grid = {"transform": Affine(1, 0, 499_998, 0, -1, 5_400_004)}

    done = run(
        *("--pred", write(tmp_path / "map.tif", shifted, MAP, **grid)),
        *("--label", label, "--json", "-q"),
    )

    scores = json.loads(done.stdout)["scores"]
    assert (scores["pixels"], scores["accuracy"]) == (96, 1.0)


@pytest.mark.parametrize(
    ("crs", "side", "left", "top"),
    [("EPSG:4326", 4.5e-6, 11, 48), ("EPSG:32633", 0.5, 500_000, 5_400_000)],
)
def test_labels_a_pixel_away_are_brought_onto_the_map(tmp_path, crs, side, left, top):
    values = np.kron(np.array([[0, 1], [2, 0]]), np.ones((4, 6), int))
    place = {"crs": crs, "transform": Affine(side, 0, left, 0, -side, top)}
    made = write(tmp_path / "map.tif", np.roll(values, 2, axis=1), MAP, **place)
    place["transform"] = Affine(side, 0, left + 2 * side, 0, -side, top)
    label = write(tmp_path / "label.tif", values, MAP, **place)

    done = run("--pred", made, "--label", label, "--json", "-q")

    scores = json.loads(done.stdout)["scores"]
    assert (scores["pixels"], scores["accuracy"]) == (96 - 16, 1.0)


def test_equal_sizes_at_different_places_are_not_compared(tmp_path):
    values = np.kron(np.array([[0, 1], [2, 0]]), np.ones((4, 6), int))
    made = write(tmp_path / "map.tif", values, MAP, crs=None)
    label = write(
        tmp_path / "label.tif", values, MAP, transform=Affine(2, 0, 500_100, 0, -2, 5_400_000)
    )
    done = run("--pred", made, "--label", label)
    assert done.exit_code == 1
    assert "lie at different places, and not both have a coordinate system" in done.stderr
    for transform in (None, Affine(2, 0, 500_000, 0, -2, 5_400_000)):
        write(tmp_path / "label.tif", values, MAP, crs=None, transform=transform)
        assert run("--pred", made, "--label", label).exit_code == 0


def test_blanks_around_names_are_no_part_of_them(tmp_path, label):
    made = write(tmp_path / "map.tif", read(label), "other, Road ,  water,a  tree")
    named = write(tmp_path / "named.tif", read(label), "other,road,water,A Tree")
    for more in ((), ("--label-values", "road=ROAD,a tree=a tree")):
        done = run("--pred", made, "--label", named, *more)
        assert "right: 100.0 %" in done.stderr
        assert "warning" not in done.stderr


def test_what_neither_file_says_can_be_said(tmp_path, label):
    plain = write(tmp_path / "plain.tif", read(label))
    made = write(tmp_path / "map.tif", np.where(read(label) > 1, 1, 0))

    done = run(
        *("--pred", made, "--label", plain, "--classes", "rest,wet or green"),
        *("--label-values", "2=1,3=1,*=0", "--ignore", "0", "--csv", "-q"),
    )

    rows = [line.split(",") for line in done.stdout.splitlines()]
    assert rows[0] == ["class", "IoU", "F1", "precision", "recall", "pixels"]
    assert rows[1] == ["rest", "100.0", "100.0", "100.0", "100.0", "24"]
    assert rows[2][5] == "48"


def test_nodata_of_either_says_nothing(tmp_path, label):
    values = read(label)
    made = np.array([0, 2, 1, 0], np.uint8)[values]
    made[:2] = 255
    blank = values.copy()
    blank[-1] = 200

    done = run(
        *("--pred", write(tmp_path / "map.tif", made, MAP, nodata=255)),
        *("--label", write(tmp_path / "blank.tif", blank, "other,road,water,tree", nodata=200)),
        *("--json", "-q"),
    )

    assert json.loads(done.stdout)["scores"]["pixels"] == 96 - 24 - 12


def test_folders_are_matched_by_stem(tmp_path, label):
    for folder in ("maps", "labels"):
        (tmp_path / folder).mkdir()
        for number in range(2):
            write(tmp_path / folder / f"{number}.tif", read(label), "other,road,water,tree")
    folders = ("--pred", tmp_path / "maps", "--label", tmp_path / "labels")

    done = run(*folders, "--markdown", "-q")

    assert done.stdout.splitlines()[0] == "| class | IoU | F1 | precision | recall | pixels |"
    assert "| mean | 100.0 | 100.0 | - | 100.0 | 192 |" in done.stdout
    (tmp_path / "labels/1.tif").rename(tmp_path / "labels/2.tif")
    done = run(*folders)
    assert done.exit_code == 0
    assert "1 map without a label of the same stem does not count: 1\n" in done.stderr
    assert "1 label without a map of the same stem does not count: 2\n" in done.stderr
    assert "| mean | 100.0 | 100.0 | - | 100.0 | 96 |" in run(*folders, "--markdown").stdout
    (tmp_path / "labels/0.tif").unlink()
    done = run(*folders)
    assert done.exit_code == 2
    assert "has the stem of a label" in done.stderr


def test_every_map_has_scores_of_its_own(tmp_path, label):
    for folder in ("maps", "labels"):
        (tmp_path / folder).mkdir()
        for number in range(2):
            values = read(label).copy()
            values[: 2 * number * (folder == "maps")] = 3
            write(tmp_path / folder / f"{number}.tif", values, "other,road,water,tree")
    own = ("--pred", tmp_path / "maps", "--label", tmp_path / "labels", "--per-image")
    rows = run(*own, "--csv", "-q").stdout.splitlines()
    assert rows[0] == "map,pixels,right,mIoU,other,road,water,tree"
    assert rows[1] == f"{tmp_path}/maps/0.tif,96,100.0,100.0,100.0,100.0,100.0,100.0"
    assert rows[2] == f"{tmp_path}/maps/1.tif,96,75.0,62.5,50.0,50.0,100.0,50.0"
    assert "1.tif" in run(*own).stderr.split("the worst first")[1].splitlines()[1]
    files = json.loads(run(*own, "--json", "-q").stdout)["files"]
    assert [one["scores"]["accuracy"] for one in files] == [1.0, 0.75]


def test_a_preview_beside_a_map_is_not_taken_for_one(tmp_path, label):
    for folder in ("maps", "labels"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.tif", read(label), "other,road,water,tree")
        with rasterio.open(
            tmp_path / folder / "a.png",
            "w",
            driver="PNG",
            width=9,
            height=9,
            count=3,
            dtype="uint8",
        ) as dst:
            dst.write(np.zeros((3, 9, 9), np.uint8))

    done = run("--pred", tmp_path / "maps", "--label", tmp_path / "labels", "--json", "-q")

    assert json.loads(done.stdout)["scores"]["pixels"] == 96


def test_all_other_values_are_those_that_no_class_has(tmp_path, label):
    values = read(label).copy()
    values[0, :3] = 9
    plain = write(tmp_path / "plain.tif", values)
    for said, first in (("*=0", [24, 0, 0, 0]), ("0=0,*=tree", [21, 0, 0, 75])):
        done = run("--pred", label, "--label", plain, "--label-values", said, "--json", "-q")
        confusion = np.array(json.loads(done.stdout)["scores"]["confusion"])
        assert confusion.sum(axis=1).tolist() == ([24] * 4 if said == "*=0" else first)


def test_numbers_mean_the_same_to_rasters_and_to_points(tmp_path):
    made = write(tmp_path / "map.tif", [[0, 1, 0, 1]], "tree,road")
    labels = write(tmp_path / "labels.tif", [[0, 0, 73, 73]])
    with rasterio.open(labels) as src:
        places = [src.xy(0, column) for column in range(4)]
    geometry = points_from_xy(*zip(*places, strict=True))
    points = GeoDataFrame({"class": ["0", "0", "73", "73"]}, geometry=geometry, crs=32633)
    points.to_file(tmp_path / "points.gpkg")
    for path in (labels, tmp_path / "points.gpkg"):
        own = ("--pred", made, "--label", path, "--json", "-q", "--label-values")
        assert json.loads(run(*own, "73=1,*=1").stdout)["scores"]["confusion"] == [[0, 0], [2, 2]]
        refused = run(*own, "73=1")
        assert refused.exit_code == 2
        assert "none of the classes" in refused.stderr


def test_labels_of_whole_numbers_may_hold_values_that_mean_nothing(tmp_path, label):
    values = read(label).astype(np.int16)
    values[:2] = -1
    known = write_scene(tmp_path / "known.tif", values[None], nodata=-1)
    unknown = write_scene(tmp_path / "unknown.tif", values[None])

    last = ("--label-values", "0=0,1=1,2=2,255=3", "--ignore", "3")
    for path, more in ((known, ()), (unknown, ("--ignore", "-1")), (known, last)):
        done = run("--pred", label, "--label", path, "--json", "-q", *more)
        assert json.loads(done.stdout)["scores"]["pixels"] == 96 - 24 - 24 * ("3" in more)
    done = run("--pred", label, "--label", unknown)
    assert done.exit_code == 2
    known = "0 other, 1 road, 2 water, 3 tree; say --label-values -1=CLASS or --ignore -1"
    assert f"holds -1, which is none of the classes {known}" in done.stderr
    values[2:4] = -7
    done = run("--pred", label, "--label", write_scene(tmp_path / "more.tif", values[None]))
    assert "more.tif holds -7, -1, which are none of the classes" in done.stderr
    assert "or --ignore -7,-1" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"crs": None, "height": 5}, "not both are placed on the ground"),
        ({"bands": 2}, "give one band of class values"),
        ({"dtype": np.uint16}, "give one band of class values"),
        ({"transform": Affine(2, 0, 900_000, 0, -2, 5_400_000)}, "no pixel in common"),
    ],
)
def test_rasters_that_do_not_fit_are_named(tmp_path, label, change, said):
    height, bands = change.pop("height", 8), change.pop("bands", 1)
    values = np.zeros((bands, height, 12), change.pop("dtype", np.uint8))
    made = write_scene(tmp_path / "map.tif", values, **change)

    done = run("--pred", made, "--label", label, "--classes", "other,road,water,tree")

    assert done.exit_code == 1
    *remarks, error = done.stderr.strip().splitlines()
    assert said in error
    assert all("has no coordinate system" in remark for remark in remarks)


def test_a_label_of_complex_integers_is_refused(tmp_path, label):
    size = {"width": 12, "height": 8, "count": 1, "dtype": "complex_int16"}
    with rasterio.open(tmp_path / "radar.tif", "w", driver="GTiff", **size):
        pass
    done = run("--pred", label, "--label", tmp_path / "radar.tif")
    assert done.exit_code == 1
    assert "has 1 band of complex_int16; give one band of class values" in done.stderr


def test_a_map_without_names_asks_for_them(tmp_path, label):
    done = run("--pred", write(tmp_path / "map.tif", read(label)), "--label", label)

    assert done.exit_code == 2
    assert "does not name its classes" in done.stderr


def test_values_that_nobody_knows_are_refused(tmp_path, label):
    plain = write(tmp_path / "plain.tif", read(label))
    made = write(tmp_path / "map.tif", np.minimum(read(label), 1), '{"0": "rest", "1": "road"}')

    strange = run("--pred", made, "--label", plain)
    beyond = run("--pred", made, "--label", plain, "--label-values", "1=9,*=0")

    assert strange.exit_code == beyond.exit_code == 2
    assert f"{plain} holds 2, 3, which are none of the classes 0 rest, 1 road" in strange.stderr
    assert "there is no class 9; there are 0 rest, 1 road" in beyond.stderr
    odd = write(tmp_path / "odd.tif", read(label), '{"x": "road"}')
    assert "a tag CLASSES that names no classes" in run("--pred", odd, "--label", plain).stderr


def test_labels_may_be_named_and_what_does_not_match_is_said(tmp_path, label):
    made = write(tmp_path / "map.tif", np.minimum(read(label), 1), '{"0": "rest", "1": "road"}')
    plain = write(tmp_path / "plain.tif", np.minimum(read(label), 1))

    named = run("--pred", made, "--label", plain, "--label-values", "1=road,*=rest")
    bare = run("--pred", made, "--label", plain)
    other = run("--pred", made, "--label", label)
    again = run("--pred", made, "--label", plain, "--classes", "rest,road")

    assert "right: 100.0 %" in named.stderr
    assert "warning" not in named.stderr
    assert "labels do not name their classes: their values are taken" in bare.stderr
    assert "the map has no class other, water, tree" in other.stderr
    assert "the label has no class rest" in other.stderr
    assert again.exit_code == 2
    assert "names its own classes (rest, road); leave --classes out" in again.stderr


def test_values_of_a_map_that_nobody_named_are_refused(tmp_path, label):
    made = write(tmp_path / "map.tif", read(label))
    done = run("--pred", made, "--label", label, "--classes", "other,road")
    assert done.exit_code == 2
    assert "holds 2, and its classes are other, road" in done.stderr
    write(tmp_path / "many.tif", read(label), json.dumps({str(n): f"c{n}" for n in range(300)}))
    assert (
        "evaluate takes maps of 8 bits"
        in run("--pred", tmp_path / "many.tif", "--label", label).stderr
    )


# --- points and polygons -----------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    """A map of 4 x 6 pixels of 2 m: background above, water and road below."""
    values = np.kron(np.array([[0, 0], [1, 2]]), np.ones((2, 3), int))
    return write(tmp_path / "map.tif", values, MAP)


def shapes(path, column, values, crs="EPSG:32633"):
    """Three boxes: the upper left pixel, the lower left half and the lower right one."""
    places = [(0, 6, 2, 8), (0, 0, 6, 4), (6, 0, 12, 4)]
    boxes = [translate(box(*place), 500_000, 5_399_992) for place in places]
    frame = GeoDataFrame({column: values}, geometry=boxes[: len(values)], crs="EPSG:32633")
    frame.to_crs(crs).to_file(path)
    return path


def confusion(*arguments):
    done = run(*arguments, "--json", "-q")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["scores"]["confusion"]


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326"])
def test_polygons_label_the_pixels_in_them_and_no_others(tmp_path, made, crs):
    labels = shapes(tmp_path / "labels.gpkg", "class_name", ["Road", "water", "water"], crs)
    assert confusion("--pred", made, "--label", labels) == [[0, 0, 0], [0, 6, 6], [1, 0, 0]]
    assert "labels.gpkg shows no background" in run("--pred", made, "--label", labels).stderr
    rest = ("--label-values", "*=background")
    expected = [[11, 0, 0], [0, 6, 6], [1, 0, 0]]
    assert confusion("--pred", made, "--label", labels, *rest) == expected


def test_points_label_the_pixels_they_lie_in(tmp_path, made):
    points = points_from_xy([500_001, 500_001, 500_011], [5_399_999, 5_399_993, 5_399_993])
    frame = GeoDataFrame({"class": ["water", "water", "road"]}, geometry=points, crs=32633)
    frame.to_file(tmp_path / "points.geojson")
    result = confusion("--pred", made, "--label", tmp_path / "points.geojson")
    assert result == [[0, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_shapes_may_be_called_by_other_names_and_by_values(tmp_path, made):
    named = shapes(tmp_path / "named.gpkg", "kind", ["house", "lake", "unclear"])
    what = ("--column", "kind", "--label-values", "house=background,lake=water")
    done = run("--pred", made, "--label", named, *what, "--json")
    assert json.loads(done.stdout)["scores"]["confusion"] == [[1, 0, 6], [0, 6, 0], [0, 0, 0]]
    assert "the map has no class unclear: such pixels count as its background" in done.stderr
    assert "the label has no class road: they can only be wrong" in done.stderr
    values = shapes(tmp_path / "values.gpkg", "class", [2, 1, 7])
    done = confusion("--pred", made, "--label", values, "--ignore", "7")
    assert done == [[0, 0, 0], [0, 6, 0], [1, 0, 0]]


def test_folders_may_hold_rasters_and_shapes(tmp_path, made):
    maps, labels = tmp_path / "maps", tmp_path / "labels"
    maps.mkdir()
    labels.mkdir()
    for stem in ("a", "b"):
        write(maps / f"{stem}.tif", read(made), MAP)
    write(labels / "a.tif", read(made), MAP)
    shapes(labels / "b.gpkg", "label", ["Other", "water", "road"])
    done = run("--pred", maps, "--label", labels, "--json")
    expected = [[13, 0, 0], [0, 12, 0], [0, 0, 12]]
    assert json.loads(done.stdout)["scores"]["confusion"] == expected
    assert "warning" not in done.stderr


def test_a_label_raster_has_no_class_where_it_is_masked(tmp_path, label):
    made = write(tmp_path / "map.tif", np.array([0, 2, 1, 0])[read(label)], MAP)
    wrong = read(label).copy()
    wrong[:3] = 3
    masked = write(tmp_path / "masked.tif", wrong, "other,road,water,tree")
    with rasterio.open(masked, "r+") as dst:
        dst.write_mask(np.arange(8)[:, None].repeat(12, 1) >= 3)
    done = run("--pred", made, "--label", masked, "--json", "-q")
    scores = json.loads(done.stdout)["scores"]
    assert (scores["pixels"], scores["accuracy"]) == (60, 1)


def test_labels_may_be_codes_beyond_a_byte(tmp_path, made):
    codes = np.array([312, -7, 1000])[read(made)]
    codes[0, 0] = 1410
    labels = write_scene(tmp_path / "codes.tif", codes[None].astype(np.int32))
    said = ("--pred", made, "--label", labels, "--label-values")
    table = confusion(*said, "312=background,-7=water,1000=road,*=road")
    assert table == [[11, 0, 0], [0, 6, 0], [1, 0, 6]]
    table = confusion(*said, "312=background,-7=water,1000=road", "--ignore", "1410")
    assert table == [[11, 0, 0], [0, 6, 0], [0, 0, 6]]
    done = run(*said, "312=background,-7=water,1000=road")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "holds 1410, which is none of the classes" in done.stderr
    with rasterio.open(labels, "r+") as dst:
        dst.update_tags(CLASSES='{"1410": "road", "312": "other", "1000": "road"}')
    assert confusion(*said, "-7=water") == [[11, 0, 0], [0, 6, 0], [1, 0, 6]]


def test_a_label_of_0_says_nothing_beside_a_map_without_a_background(tmp_path):
    names = '{"0": "unclassified", "1": "water", "2": "road"}'
    values = np.kron(np.array([[1, 1], [1, 2]]), np.ones((2, 3), int))
    made = write(tmp_path / "map.tif", values, names)
    values[:, :2] = 0
    label = write(tmp_path / "label.tif", values)
    done = run("--pred", made, "--label", label, "--json")
    scores = json.loads(done.stdout)["scores"]
    assert (scores["pixels"], scores["miou"]) == (16, 1)


def test_points_may_be_a_table_of_coordinates(tmp_path, made):
    with rasterio.open(made) as src:
        rows, columns = np.mgrid[: src.height, : src.width].reshape(2, -1)
        xs, ys = rasterio.transform.xy(src.transform, rows, columns)
        lon, lat = rasterio.warp.transform(src.crs, "EPSG:4326", xs, ys)
    names = np.array(["background", "water", "Straße"])[read(made).ravel()]
    for columns in ({"X": xs, "Y": ys}, {"Longitude": lon, "latitude": lat}):
        pd.DataFrame({**columns, "name": names}).to_csv(tmp_path / "points.csv", index=False)
        more = ("--label-values", "Straße=road")
        table = confusion("--pred", made, "--label", tmp_path / "points.csv", *more)
        assert table == [[12, 0, 0], [0, 6, 0], [0, 0, 6]]
    done = run("--pred", made, "--label", tmp_path / "points.csv")
    assert "the map has no class Straße" in done.stderr
    holes = pd.DataFrame(
        {"lon": [*lon, "", "x"], "lat": [*lat, 48, 48], "name": [*names, "a", "b"]}
    )
    (tmp_path / "maps").mkdir()
    (tmp_path / "labels").mkdir()
    shutil.copy(made, tmp_path / "maps" / "points.tif")
    holes.to_csv(tmp_path / "labels" / "points.csv", index=False)
    done = run("--pred", tmp_path / "maps", "--label", tmp_path / "labels", *more)
    assert "points.csv: 2 rows have no coordinates; left out" in done.stderr
    assert "right: 100.0 %" in done.stderr
    pd.DataFrame({"name": names}).to_csv(tmp_path / "points.csv")
    done = run("--pred", made, "--label", tmp_path / "points.csv")
    assert done.exit_code == 1
    assert "has no coordinates: name two columns lon/lat" in done.stderr


def test_polygons_are_no_map_to_be_measured(tmp_path, made):
    labels = shapes(tmp_path / "labels.gpkg", "name", ["road", "water", "road"])
    done = run("--pred", labels, "--label", made)
    assert done.exit_code == 2
    assert "holds polygons; measure the class raster" in done.stderr


def test_a_misspelt_class_is_said_to_be_like_another(tmp_path, made):
    labels = shapes(tmp_path / "labels.gpkg", "name", ["road", "watre", ""])
    done = run("--pred", made, "--label", labels)
    assert "the map has no class watre (is it water?)" in done.stderr
    assert "1 feature has no name; left out" in done.stderr


def test_names_of_shapes_are_compared_as_people_read_them(tmp_path):
    values = np.kron(np.array([[0, 0], [1, 2]]), np.ones((2, 3), int))
    made = write(tmp_path / "map.tif", values, '{"0": "other", "1": "level 1.0", "2": "Road"}')
    labels = shapes(tmp_path / "labels.gpkg", "name", ["other", "Level  1.0", "a  b"])
    said = ("--label-values", "a  b=road")
    done = run("--pred", made, "--label", labels, *said, "--json")
    assert json.loads(done.stdout)["scores"]["miou"] == 1
    assert "warning" not in done.stderr


def test_numbers_of_shapes_are_taken_as_the_maps_and_that_is_said(tmp_path, made):
    labels = shapes(tmp_path / "labels.gpkg", "class", [0.0, 1.0, 2.0])
    done = run("--pred", made, "--label", labels)
    assert done.exit_code == 0, done.stderr
    assert "their values are taken as the map's (0 background" in done.stderr


def test_shapes_that_say_no_class_are_named(tmp_path, made):
    labels = shapes(tmp_path / "labels.gpkg", "kind", ["road"])
    done = run("--pred", made, "--label", labels)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "does not say which column holds the classes: --column (kind)" in done.stderr
    done = run("--pred", made, "--label", made, "--column", "kind")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--column kind is of a vector file" in done.stderr


def test_label_rasters_may_be_said_by_name_too(tmp_path, label):
    made = write(tmp_path / "map.tif", np.array([0, 2, 1, 0], np.uint8)[read(label)], MAP)
    said = ("--label-values", "road=road,water=water,tree=0,other=0")
    assert confusion("--pred", made, "--label", label, *said) == [
        [48, 0, 0],
        [0, 24, 0],
        [0, 0, 24],
    ]
    done = run("--pred", made, "--label", label, "--label-values", "house=road")
    assert done.exit_code == 2
    assert "has no class house; it has other, road, water, tree" in done.stderr


def test_a_name_that_is_said_leaves_the_other_names_as_they_are(tmp_path, label):
    made = write(tmp_path / "map.tif", np.array([0, 2, 1, 0], np.uint8)[read(label)], MAP)
    said = ("--label-values", "tree=background")
    assert confusion("--pred", made, "--label", label, *said) == [
        [48, 0, 0],
        [0, 24, 0],
        [0, 0, 24],
    ]
    rest = ("--label-values", "*=road")  # the map has other as its background
    assert confusion("--pred", made, "--label", label, *rest)[0] == [24, 0, 0]
    assert confusion("--pred", made, "--label", label, "--ignore", "water")[1] == [0, 0, 0]


def test_shapes_of_no_class_of_the_map_and_what_is_left_out_is_said(tmp_path, made):
    strange = shapes(tmp_path / "strange.gpkg", "name", ["0.5", "True", "x"])
    done = run("--pred", made, "--label", strange)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "is of 0.5, True, x, and none of them is a class of the map" in done.stderr
    nameless = shapes(tmp_path / "nameless.gpkg", "name", ["road", "water", None])
    done = run("--pred", made, "--label", nameless)
    assert "nameless.gpkg: 1 feature has no name; left out" in done.stderr
    labels = shapes(tmp_path / "labels.gpkg", "name", ["road", "water", "cloud"])
    said = ("--label-values", "haus=road", "--ignore", "cloud")
    done = run("--pred", made, "--label", labels, *said, "--json")
    assert json.loads(done.stdout)["scores"]["pixels"] == 7
    assert "has nothing called haus" in done.stderr
    twice = GeoDataFrame(geometry=[box(500_000, 5_399_992, 500_004, 5_399_996)] * 2, crs=32633)
    twice["name"] = ["road", "water"]
    both = pd.concat([twice, read_file(labels)])
    both.to_file(tmp_path / "both.gpkg")
    done = run("--pred", made, "--label", tmp_path / "both.gpkg")
    assert "both.gpkg: 4 pixels have labels of several classes; left out" in done.stderr


def test_labels_may_be_called_by_the_maps_synonyms(tmp_path, tiny_model):
    scene = write_scene(tmp_path / "scene.tif", blocks(1, 40, 50))
    made = tmp_path / "map.tif"
    segment(scene, options_for(tiny_model, made, classes=(("building", "house"), ("road",))))
    frame = GeoDataFrame(
        {"class": ["House"]}, geometry=[box(5e5, 5399920, 500_100, 5.4e6)], crs=32633
    )
    frame.to_file(tmp_path / "houses.gpkg")
    truth = confusion("--pred", made, "--label", tmp_path / "houses.gpkg")
    assert [sum(row) for row in truth] == [0, 40 * 50, 0]


def test_files_may_be_called_as_gdal_calls_them(tmp_path, label, monkeypatch):
    made = write(tmp_path / "map.tif", np.array([0, 2, 1, 0], np.uint8)[read(label)], MAP)
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("both.zip", "w") as both:
        both.write("map.tif")
        both.write("label.tif")
    for maps, labels in (
        ("/vsizip/both.zip/map.tif", "/vsizip/both.zip/label.tif"),
        (f"vrt://{made}?bands=1", f"vrt://{label}?bands=1"),
    ):
        done = run("--pred", maps, "--label", labels, "--json", "-q")
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["scores"]["accuracy"] == 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_may_be_whole_floats(tmp_path, label, dtype):
    made = write(tmp_path / "map.tif", read(label), "other,road,water,tree")
    values = read(label).astype(dtype)
    values[0] = np.nan
    floats = write_scene(tmp_path / "floats.tif", values[None])
    fine = {"transform": Affine(1, 0, 500_000, 0, -1, 5_400_000)}
    onto = write_scene(tmp_path / "fine.tif", np.kron(values, np.ones((2, 2), dtype))[None], **fine)
    for path, pixels in ((floats, 84), (onto, 4 * 84)):
        done = run("--pred", made, "--label", path, "--json", "-q")
        assert done.exit_code == 0, done.stderr
        scores = json.loads(done.stdout)["scores"]
        assert (scores["pixels"], scores["accuracy"]) == (pixels, 1.0)
    for value in (0.5, np.inf):
        values[1, 0] = value
        write_scene(tmp_path / "floats.tif", values[None])
        done = run("--pred", made, "--label", floats)
        assert (done.exit_code, done.stdout) == (1, "")
        assert f"{floats} holds {value}, and classes are whole numbers" in done.stderr
    assert run("--pred", floats, "--label", made, "--classes", "a,b,c,d").exit_code == 1


def test_unclassified_pixels_are_missed_and_no_class_of_their_own(tmp_path):
    names = '{"0": "unclassified", "1": "water", "2": "road"}'
    truth = np.kron(np.array([[1, 1], [2, 2]]), np.ones((2, 3), int))
    found = truth.copy()
    found[0, :3] = 0
    made = write(tmp_path / "map.tif", found, names)
    done = run("--pred", made, "--label", write(tmp_path / "label.tif", truth, names), "--json")
    assert "warning" not in done.stderr
    scores = json.loads(done.stdout)["scores"]
    assert [c["iou"] for c in scores["classes"]] == [None, 9 / 12, 1]
    assert (scores["miou"], scores["mean_accuracy"]) == (pytest.approx(0.875), 0.875)
    assert scores["mean_f1"] == pytest.approx((2 * 9 / (9 + 12) + 1) / 2)
    assert scores["accuracy"] == 21 / 24
    truth[:, 0] = 0  # says nothing, by its name as well
    for label in (
        write(tmp_path / "label.tif", truth, names),
        write(tmp_path / "label.tif", truth, "Unclassified,Water,Road"),
    ):
        done = run("--pred", made, "--label", label, "--json")
        assert json.loads(done.stdout)["scores"]["pixels"] == 20
        assert "warning" not in done.stderr
    labels = shapes(tmp_path / "labels.gpkg", "name", ["unclassified", "road", "road"])
    done = run("--pred", made, "--label", labels, "--json", "-q")
    assert json.loads(done.stdout)["scores"]["pixels"] == 12


def test_labels_and_maps_that_hardly_meet_are_told(tmp_path):
    values = np.zeros((10, 10), np.uint8)
    made = write(tmp_path / "map.tif", values, MAP)
    beside = {"transform": Affine(2, 0, 500_000 + 2 * 7, 0, -2, 5_400_000)}
    label = write(tmp_path / "label.tif", values, MAP, **beside)
    done = run("--pred", made, "--label", label, "--json")
    told = (
        "only 30 % of the labelled pixels lie on the map and 30 % of the map's pixels have a label"
    )
    assert f"warning: {told}; the scores are of no others\n" in done.stderr
    inside = {"transform": Affine(1, 0, 500_004, 0, -1, 5_399_996)}
    small = write(tmp_path / "small.tif", values, MAP, **inside)
    done = run("--pred", made, "--label", small)
    assert "only 25 % of the map's pixels have a label; the scores" in done.stderr
    values[:6] = 255
    same = write(tmp_path / "same.tif", values, MAP, nodata=255)
    done = run("--pred", made, "--label", same)
    assert "only 40 % of the map's pixels have a label; the scores" in done.stderr
    done = run("--pred", same, "--label", made)
    assert "only 40 % of the labelled pixels lie on the map; the scores" in done.stderr


def test_shapes_beyond_the_map_are_told(tmp_path, made):
    near = box(500_000, 5_399_992, 500_004, 5_400_000)
    half = box(500_008, 5_399_992, 500_016, 5_400_000)
    far = box(500_100, 5_399_000, 500_108, 5_399_008)
    points = points_from_xy([500_001, 500_100, 500_100, np.nan], [5_399_999, 0, 1, np.nan])
    for name, geometry, share in (
        ("in.gpkg", [near, half], None),
        ("out.gpkg", [near, half, far], "40"),
        ("points.gpkg", points, "33"),
    ):
        names = ["background"] * len(geometry)
        GeoDataFrame({"name": names}, geometry=geometry, crs=32633).to_file(tmp_path / name)
        done = run("--pred", made, "--label", tmp_path / name)
        assert done.exit_code == 0, done.stderr
        said = f"only {share} % of the labelled pixels lie on the map; the scores"
        told = "lie on the map" in done.stderr
        assert (told, said in done.stderr) == (share is not None,) * 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--label-values", "1=road", "--ignore", "1"), "--ignore 1 and --label-values 1=road"),
        (("--label-values", "Tree=road", "--ignore", "tree"), "contradict each other"),
        (("--label-values", "1=road,1=water"), "gives 1 two meanings, road and water"),
        (("--label-values", "*=0,*=1"), "gives * two meanings, 0 and 1"),
    ],
)
def test_labels_of_two_meanings_are_refused(made, more, said):
    for command in (
        ("evaluate", "--pred", made, "--label", made),
        ("tune", f"{made}={made}", "--classes", "water,road"),
    ):
        done = CliRunner().invoke(app, [*map(str, command), *more])
        assert (done.exit_code, done.stdout) == (2, "")
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    twice = ("--label-values", "1=Water,1=water", "--ignore", "3")
    assert run("--pred", made, "--label", made, *twice).exit_code == 0


def test_a_label_by_name_and_by_value_is_one(tmp_path, label):
    made = write(tmp_path / "map.tif", np.array([0, 2, 1, 0], np.uint8)[read(label)], MAP)
    for more in (
        ("--label-values", "3=road,tree=water"),
        ("--ignore", "3", "--label-values", "tree=0"),
    ):
        done = run("--pred", made, "--label", label, *more)
        assert done.exit_code == 2
        assert f"give 3 of {label} two meanings, once as" in done.stderr
    assert run("--pred", made, "--label", label, "--label-values", "3=1,tree=water").exit_code == 0


def test_all_others_are_shapes_of_other_names_too(tmp_path, made):
    labels = shapes(tmp_path / "labels.gpkg", "name", ["road", "water", "shed"])
    done = run("--pred", made, "--label", labels, "--label-values", "*=road", "--json")
    assert json.loads(done.stdout)["scores"]["confusion"] == [[0, 0, 0], [0, 6, 0], [12, 0, 6]]
    assert "the map has no class shed: such pixels count as road\n" in done.stderr


def test_a_name_says_nothing_of_a_raster_without_names(tmp_path, label):
    made = write(tmp_path / "map.tif", read(label), "other,road,water,tree")
    plain = write(tmp_path / "plain.tif", read(label))
    done = run("--pred", made, "--label", plain, "--ignore", "cloud")
    assert "plain.tif has nothing called cloud\n" in done.stderr
    assert "right: 100.0 %" in done.stderr
