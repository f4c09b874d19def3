"""Polygons from class rasters: what a GIS reads back from every format."""

import io
import json
import os
import resource
import sqlite3
import sys
import tracemalloc
import warnings
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree as ET

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import shapely
from pyarrow import parquet
from pyproj import Geod
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.features import rasterize

from segearth_cli.errors import OutputError, UsageError
from segearth_cli.geo import seams
from segearth_cli.geo.grid import Grid
from segearth_cli.geo.legend import Legend
from segearth_cli.geo.recorded import require_package
from segearth_cli.geo.vector import (
    Polygons,
    write_features,
    write_vector,
)
from segearth_cli.options import VECTOR_SUFFIXES

UTM = CRS.from_epsg(32633)
NAMES = ("background", "building", "road", "water")
COLOURS = ((0, 0, 0), (230, 60, 60), (250, 200, 40), (40, 100, 240))
LEGEND = Legend((0, 1, 2, 3), NAMES, COLOURS)
COLUMNS = ["class_id", "class_name", "area_m2", "confidence", "source"]
RING = np.array(
    [
        [1, 1, 1, 1, 0],
        [1, 0, 2, 1, 0],
        [1, 0, 0, 1, 255],
        [1, 1, 1, 1, 2],
    ]
)


def utm_grid(shape: tuple[int, ...], pixel: float = 2.0) -> Grid:
    return Grid(shape[1], shape[0], Affine(pixel, 0, 5e5, 0, -pixel, 5e6), UTM)


def write_raster(path: Path, values: np.ndarray, grid: Grid | None, nodata: int) -> Path:
    placed = {}
    if grid is not None and grid.crs is not None:
        placed = {"crs": grid.crs}
        placed |= {"gcps": list(grid.gcps)} if grid.gcps else {"transform": grid.transform}
    height, width = values.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = {"driver": "GTiff", "dtype": values.dtype.name, "count": 1, "nodata": nodata}
        with rasterio.open(path, "w", width=width, height=height, **kind, **placed) as dataset:
            dataset.write(values, 1)
    return path


def make(
    folder: Path,
    classes: np.ndarray,
    grid: Grid | None = None,
    confidence: np.ndarray | None = None,
    legend: Legend = LEGEND,
    simplify_m: float = 0.0,
) -> geopandas.GeoDataFrame:
    grid = utm_grid(classes.shape) if grid is None else grid
    if confidence is None:
        confidence = np.full(classes.shape, 80)
    classes = classes.astype(legend.dtype)
    frames = Polygons(
        write_raster(folder / "classes.tif", classes, grid, legend.nodata),
        write_raster(folder / "confidence.tif", confidence.astype(np.uint8), grid, 255),
        legend,
        grid,
        source="scene.tif",
        simplify_m=simplify_m,
    )
    return pd.concat(frames, ignore_index=True)


def trace_in_strips(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(seams, "STRIP", 1)
    monkeypatch.setattr(seams, "FEWEST_ROWS", rows)


def assert_same_polygons(
    one: geopandas.GeoDataFrame, other: geopandas.GeoDataFrame, columns: list[str]
) -> None:
    rows = [
        sorted(zip(frame.geometry.normalize().to_wkb(), *(frame[c] for c in columns), strict=True))
        for frame in (one, other)
    ]
    assert rows[0] == rows[1]


def read(path: Path) -> geopandas.GeoDataFrame:
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    return geopandas.read_file(path, layer=0)


def blobs(height: int, width: int, smooth: int = 4) -> np.ndarray:
    """Four classes in irregular patches."""
    fields = np.random.default_rng(7).standard_normal((4, height, width))
    for axis in (1, 2):
        for _ in range(2):
            fields = sum(np.roll(fields, shift, axis) for shift in range(smooth))
    return fields.argmax(0)


def test_polygons_have_the_promised_columns_and_leave_background_and_nodata_out(tmp_path):
    frame = make(tmp_path, RING)
    assert frame.columns.tolist() == [*COLUMNS, "geometry"]
    assert frame.crs.to_epsg() == 32633
    rows = frame.sort_values("area_m2")[["class_id", "class_name", "area_m2"]].to_numpy().tolist()
    assert rows == [[2, "road", 4.0], [2, "road", 4.0], [1, "building", 48.0]]
    assert (frame.source == "scene.tif").all()
    building = frame[frame.class_id == 1].geometry.item()
    assert building.bounds == (5e5, 5e6 - 8, 5e5 + 8, 5e6)
    assert len(building.interiors) == 1


def test_confidence_is_the_mean_of_the_regions_own_pixels(tmp_path):
    classes = blobs(90, 70)
    confidence = np.random.default_rng(1).integers(0, 101, classes.shape)
    confidence[10:14, 20:60] = 255  # nodata: not counted
    frame = make(tmp_path, classes, confidence=confidence)
    assert len(frame) > 20
    transform = utm_grid(classes.shape).transform
    for geometry, value in zip(frame.geometry, frame.confidence, strict=True):
        inside = rasterize([geometry], classes.shape, transform=transform) == 1
        own = confidence[inside & (confidence != 255)]
        mean = own.mean() / 100 if own.size else np.nan
        assert value == pytest.approx(mean, abs=0.0005001, nan_ok=True)


@pytest.mark.parametrize("rows", [1, 2, 7, 50])
def test_polygons_do_not_depend_on_the_strips_they_are_traced_in(tmp_path, monkeypatch, rows):
    classes = blobs(120, 40)
    confidence = np.random.default_rng(1).integers(0, 101, classes.shape)
    columns = ["class_id", "area_m2", "confidence"]
    whole = make(tmp_path, classes, confidence=confidence)
    trace_in_strips(monkeypatch, rows)
    strips = make(tmp_path, classes, confidence=confidence)
    assert_same_polygons(whole, strips, columns)
    simple = make(tmp_path, classes, confidence=confidence, simplify_m=3)
    assert shapely.coverage_is_valid(simple.geometry.to_numpy())


def test_memory_for_polygons_does_not_grow_with_the_height(tmp_path, monkeypatch):
    trace_in_strips(monkeypatch, 50)
    peaks = []
    for height in (300, 1200):
        classes = np.tile(blobs(300, 60), (height // 300, 1)).astype(np.uint8)
        grid = utm_grid(classes.shape)
        paths = [write_raster(tmp_path / name, classes, grid, 255) for name in ("a.tif", "b.tif")]
        frames = Polygons(*paths, LEGEND, grid, source="scene.tif")
        write_vector(frames, tmp_path / "warm.gpkg", LEGEND)
        tracemalloc.start()
        write_vector(frames, tmp_path / f"{height}.gpkg", LEGEND)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(read(tmp_path / "1200.gpkg")) > 3.9 * len(read(tmp_path / "300.gpkg")) > 500
    assert peaks[1] < 1.5 * peaks[0]


def test_a_mistake_in_tracing_is_not_called_one_of_writing(tmp_path):
    def frames():
        yield make(tmp_path, RING)
        raise ValueError("shapes differ")

    with pytest.raises(ValueError, match=r"^shapes differ"):
        write_vector(frames(), tmp_path / "map.gpkg", LEGEND)
    assert not (tmp_path / "map.gpkg").exists()


def test_a_working_raster_that_is_cut_off_is_one_line(tmp_path):
    classes = blobs(300, 300)
    make(tmp_path, classes)
    raster = tmp_path / "classes.tif"
    os.truncate(raster, raster.stat().st_size // 2)
    frames = Polygons(
        raster, tmp_path / "confidence.tif", LEGEND, utm_grid(classes.shape), source="scene.tif"
    )
    with pytest.raises(OutputError, match=r"classes\.tif"):
        write_vector(frames, tmp_path / "map.gpkg", LEGEND)
    assert not (tmp_path / "map.gpkg").exists()


def test_a_scene_without_any_polygon_gives_an_empty_frame(tmp_path):
    for value in (0, 255):
        frame = make(tmp_path, np.full((3, 4), value), simplify_m=5)
        assert frame.columns.tolist() == [*COLUMNS, "geometry"]
        assert len(frame) == 0
        assert frame.crs.to_epsg() == 32633


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_a_single_row_or_column(tmp_path, shape):
    frame = make(tmp_path, np.ones(shape), simplify_m=1)
    assert frame.area_m2.tolist() == [4.0 * shape[0] * shape[1]]


def test_more_classes_than_a_byte_holds(tmp_path):
    count = 300
    names = tuple(f"class {i}" for i in range(count))
    legend = Legend(tuple(range(count)), names, ((9, 9, 9),) * count, 65535, "uint16")
    frame = make(tmp_path, np.array([[0, 255, 256, 299, 65535]]), legend=legend)
    assert sorted(frame.class_name) == ["class 255", "class 256", "class 299"]


def area_on_the_ground(frame, pieces=4096):
    """Of the first polygon, whose edges are straight in its coordinate system."""
    geometry = frame.geometry[:1]
    longest = max(np.ptp(geometry.total_bounds[::2]), np.ptp(geometry.total_bounds[1::2]))
    fine = shapely.segmentize(geometry.to_numpy(), longest / pieces)
    lon_lat = geopandas.GeoSeries(fine, crs=frame.crs).to_crs("EPSG:4326")[0]
    return abs(Geod(ellps="WGS84").geometry_area_perimeter(lon_lat)[0])


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (3857, Affine(20_000, 0, -4e6, 0, -20_000, 4e6)),  # the equator in the middle
        (3413, Affine(12_000, 0, -2.4e6, 0, -12_000, 2.4e6)),
        (32632, Affine(5_000, 0, -500_000, 0, -5_000, 6e6)),
        (4326, Affine(0.0125, 0, 10, 0, -0.0125, 62)),
    ],
)
def test_areas_of_large_scenes_are_those_of_the_ground(tmp_path, crs, transform):
    classes = np.zeros((400, 400))
    classes[1] = 1  # along an edge: long and thin
    frame = make(tmp_path, classes, Grid(400, 400, transform, CRS.from_epsg(crs)))
    assert frame.area_m2[0] == pytest.approx(area_on_the_ground(frame), rel=1e-3)


@pytest.mark.parametrize("crs", [4326, 3857, 32632])
def test_an_empty_map_has_no_polygons(tmp_path, crs):
    grid = Grid(4, 4, Affine(0.001, 0, 10, 0, -0.001, 60), CRS.from_epsg(crs))
    frame = make(tmp_path, np.zeros((4, 4)), grid)
    assert frame.empty
    assert [*frame.columns] == [*COLUMNS, "geometry"]


def test_what_lies_beyond_a_projection_has_an_area_all_the_same(tmp_path):
    disk = CRS.from_proj4("+proj=geos +h=35785831 +lon_0=0 +sweep=y +ellps=WGS84")
    grid = Grid(60, 60, Affine(200_000, 0, -6e6, 0, -200_000, 6e6), disk)
    frame = make(tmp_path, np.ones((60, 60)), grid)
    assert frame.area_m2.tolist() == [pytest.approx(1.44e14)]


@pytest.mark.parametrize(("pixel", "decimals"), [(0.5, 7), (0.05, 8), (0.01, 9)])
def test_geojson_of_fine_pixels_keeps_their_outlines(tmp_path, pixel, decimals):
    classes = np.random.default_rng(0).integers(0, 4, (40, 40))
    grid = Grid(40, 40, Affine(pixel, 0, 691_000, 0, -pixel, 5.3e6), CRS.from_epsg(32632))
    paths = (tmp_path / "classes.tif", tmp_path / "confidence.tif")
    frames = Polygons(
        write_raster(paths[0], classes.astype(np.uint8), grid, 255),
        write_raster(paths[1], np.full((40, 40), 80, np.uint8), grid, 255),
        LEGEND, grid, source="scene.tif",
    )  # fmt: skip
    assert frames.decimals == decimals
    write_vector(frames, tmp_path / "map.geojson", LEGEND)
    back = geopandas.read_file(tmp_path / "map.geojson")
    assert back.is_valid.all()
    areas = back.to_crs(32632).area
    np.testing.assert_allclose(areas, back.area_m2, rtol=0.1)


def test_area_is_geodesic_in_degrees_and_true_in_web_mercator_and_feet(tmp_path):
    classes = np.ones((4, 4))
    degrees = Grid(4, 4, Affine(0.001, 0, 10, 0, -0.001, 60), CRS.from_epsg(4326))
    frame = make(tmp_path, classes, degrees)
    assert frame.area_m2[0] == pytest.approx(area_on_the_ground(frame), rel=1e-9)

    mercator = Grid(4, 4, Affine(100, 0, 1.1e6, 0, -100, 8.4e6), CRS.from_epsg(3857))
    frame = make(tmp_path, classes, mercator)
    assert frame.area_m2[0] == pytest.approx(area_on_the_ground(frame), rel=1e-9)
    assert frame.area_m2[0] < 0.3 * frame.geometry[0].area

    feet = Grid(4, 4, Affine(3, 0, 6e6, 0, -3, 2e6), CRS.from_epsg(2229))
    frame = make(tmp_path, classes, feet)
    assert frame.area_m2[0] == pytest.approx(144 * (1200 / 3937) ** 2, rel=1e-9)


def test_without_a_crs_polygons_lie_where_qgis_draws_the_raster(tmp_path):
    frame = make(tmp_path, RING, Grid(5, 4, Affine.identity()))
    assert frame.crs is None
    assert frame.area_m2.isna().all()
    assert frame.total_bounds.tolist() == [0, -4, 5, 0]


def test_rotated_grids_and_gcps_place_pixel_corners(tmp_path):
    turned = Affine.translation(5e5, 5e6) @ Affine.rotation(30) @ Affine.scale(2, -2)
    frame = make(tmp_path, np.array([[0, 1]]), Grid(2, 1, turned, UTM))
    expected = shapely.Polygon([turned @ corner for corner in [(1, 0), (1, 1), (2, 1), (2, 0)]])
    assert frame.geometry[0].symmetric_difference(expected).area < 1e-6
    assert frame.area_m2[0] == pytest.approx(4)

    gcps = tuple(
        GroundControlPoint(row=row, col=col, x=10 + col / 1000, y=50 - row / 1000)
        for row in (0, 4)
        for col in (0, 5)
    )
    grid = Grid(5, 4, Affine.identity(), CRS.from_epsg(4326), gcps)
    frame = make(tmp_path, RING, grid)
    assert frame.total_bounds == pytest.approx([10, 49.996, 10.005, 50], abs=1e-9)
    assert frame[frame.class_id == 1].area_m2.item() == pytest.approx(12 * 71.7 * 111.2, rel=0.01)


def test_simplified_polygons_leave_no_gap_and_no_overlap(tmp_path):
    classes = 1 + blobs(150, 130) % 3  # no background: the polygons tile the scene
    plain = make(tmp_path, classes)
    simple = make(tmp_path, classes, simplify_m=4)
    geometry = simple.geometry.to_numpy()
    assert len(simple) == len(plain)
    assert shapely.is_valid(geometry).all()
    assert shapely.get_num_coordinates(geometry).sum() < 0.6 * sum(
        shapely.get_num_coordinates(plain.geometry)
    )
    union = shapely.union_all(geometry)
    assert union.area == pytest.approx(shapely.area(geometry).sum(), rel=1e-9)
    assert sum(len(part.interiors) for part in shapely.get_parts(union)) == 0
    assert shapely.coverage_is_valid(geometry)
    assert simple.area_m2.to_numpy() == pytest.approx(shapely.area(geometry))
    assert simple.confidence.tolist() == plain.confidence.tolist()


def test_simplified_polygons_beside_background_do_not_overlap(tmp_path):
    simple = make(tmp_path, blobs(150, 130), simplify_m=3)
    geometry = simple.geometry.to_numpy()
    assert shapely.is_valid(geometry).all()
    assert shapely.union_all(geometry).area == pytest.approx(shapely.area(geometry).sum(), rel=1e-9)


@pytest.mark.parametrize("slope", [0.1, 0.3, 0.5, 0.7, 1.0])
def test_a_staircase_becomes_nearly_straight(tmp_path, slope):
    row, column = np.mgrid[:60, :60]
    classes = np.where(row < slope * column + 10.2, 1, 2)
    stairs, simple = (
        shapely.intersection(*make(tmp_path, classes, simplify_m=metres).geometry)
        for metres in (0, 6)
    )
    ends = shapely.get_coordinates(shapely.line_merge(stairs))[[0, -1]]
    assert simple.length == pytest.approx(np.hypot(*(ends[1] - ends[0])), rel=0.03)
    assert stairs.length > 1.08 * simple.length


def test_simplifying_without_a_crs_counts_in_pixels(tmp_path):
    places = (Affine.identity(), None), (Affine(1, 0, 0, 0, -1, 0), UTM)
    pixels, metres = (
        make(tmp_path, blobs(40, 40), Grid(40, 40, *place), simplify_m=2).geometry.to_numpy()
        for place in places
    )
    assert shapely.equals_exact(pixels, metres, 1e-9).all()


@pytest.mark.parametrize("suffix", VECTOR_SUFFIXES)
@pytest.mark.parametrize("empty", [False, True])
def test_every_format_can_be_read_back(tmp_path, suffix, empty):
    frame = make(tmp_path, np.zeros((3, 3)) if empty else RING)
    parts = [frame] if empty else [frame.iloc[:1], frame.iloc[1:]]
    files = write_vector(parts, tmp_path / f"a map{suffix}", LEGEND)
    assert files[0] == tmp_path / f"a map{suffix}"
    assert sorted(tmp_path.glob("a map*")) == sorted(files)
    if suffix == ".geojsonl" and empty:
        assert files[0].read_bytes() == b""
        return
    back = read(files[0])
    assert len(back) == len(frame)
    assert back.crs.to_epsg() == (4326 if "json" in suffix else 32633)
    if empty and suffix == ".geojson":  # has no schema
        return
    assert back.columns.tolist() == [*COLUMNS, "geometry"]
    order = ["class_id", "area_m2", "confidence"]
    back, frame = back.sort_values(order), frame.sort_values(order)
    assert back[COLUMNS].to_numpy().tolist() == frame[COLUMNS].to_numpy().tolist()
    exact = back.to_crs(frame.crs).geometry.to_numpy()
    assert shapely.area(exact) == pytest.approx(frame.area_m2.to_numpy(), rel=0.02)
    assert back.class_id.dtype.kind == "i"


def test_geoparquet_says_where_all_its_parts_lie(tmp_path):
    frame = make(tmp_path, RING)
    path = write_vector([frame.iloc[:1], frame.iloc[1:]], tmp_path / "map.parquet", LEGEND)[0]
    about = json.loads(parquet.read_metadata(path).metadata[b"geo"])
    assert about["columns"]["geometry"]["bbox"] == frame.total_bounds.tolist()
    assert read(path).total_bounds.tolist() == frame.total_bounds.tolist()


@pytest.mark.parametrize("suffix", VECTOR_SUFFIXES)
def test_every_format_takes_polygons_without_a_crs_and_warns(tmp_path, suffix, caplog):
    frame = make(tmp_path, RING, Grid(5, 4, Affine.identity()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = write_vector([frame], tmp_path / f"map{suffix}", LEGEND)[0]
    assert "map" + suffix + " has no coordinate system" in caplog.text
    assert ("take them for degrees (EPSG:4326)" in caplog.text) == ("json" in suffix)
    back = read(path)
    assert back.total_bounds.tolist() == [0, -4, 5, 0]
    assert back.area_m2.isna().all()


def test_geojson_is_what_rfc_7946_says(tmp_path):
    frame = make(tmp_path, RING)
    path = write_vector([frame], tmp_path / "map.geojson", LEGEND)[0]
    collection = json.loads(path.read_text(encoding="utf-8"))
    assert "crs" not in collection
    for feature in collection["features"]:
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.exterior.is_ccw
        assert not any(ring.is_ccw for ring in polygon.interiors)
        points = shapely.get_coordinates(polygon)
        assert np.abs(points - [15.0, 45.15]).max() < 0.01
        assert (points == np.round(points, 7)).all()


def geojson_of(tmp_path, classes, grid):
    (path,) = write_vector([make(tmp_path, classes, grid)], tmp_path / "map.geojson", LEGEND)
    return geopandas.read_file(path).sort_values("class_id").geometry


@pytest.mark.parametrize("west", [-180 - 1e-10, -180 + 1e-10, -180.0000001, 180 + 3e-14])
def test_what_begins_at_the_antimeridian_is_whole(tmp_path, west):
    grid = Grid(5, 4, Affine(1, 0, west, 0, -1, 2), CRS.from_epsg(4326))
    for shape in geojson_of(tmp_path, RING, grid):
        assert shape.is_valid
        assert shape.geom_type == "Polygon"
        assert -180 <= shape.bounds[0] < shape.bounds[2] <= -175


def test_neighbours_keep_their_border_where_one_is_cut(tmp_path):
    """Three large cells of a polar scene; the antimeridian goes through the one in the middle."""
    grid = Grid(3, 1, Affine(4e5, 0, -21e5, 0, -3e5, 16.5e5), CRS.from_epsg(3413))
    shapes = geojson_of(tmp_path, np.array([[1, 2, 3]]), grid)
    assert shapes.geom_type.tolist() == ["Polygon", "MultiPolygon", "Polygon"]
    assert shapes.is_valid.all()
    for one, other in combinations(shapes, 2):
        assert one.intersection(other).area < 1e-6 * min(one.area, other.area)


# the same 8 x 4 pixels around 180 degrees, with a hole; then what does not cross it
@pytest.mark.parametrize(
    ("crs", "transform", "boxes"),
    [
        ("EPSG:4326", Affine(1, 0, 176, 0, -1, 2), [(177, -1, 180, 2), (-180, -1, -177, 2)]),
        ("EPSG:4326", Affine(1, 0, -184, 0, -1, 2), [(177, -1, 180, 2), (-180, -1, -177, 2)]),
        ("EPSG:3832", Affine(1e5, 0, 29e5, 0, -1e5, 2e5), [(177, -1, 180, 2), (-180, -1, -177, 2)]),
        ("EPSG:4326", Affine(1, 0, 172, 0, -1, 2), [(173, -1, 179, 2)]),
        ("EPSG:4326", Affine(60, 0, -240, 0, -1, 2), [(-180, -1, 180, 2)]),
        ("EPSG:3857", Affine(5e6, 0, -2e7, 0, -1e5, 2e5), [(-135, -1, 135, 2)]),
    ],
)
def test_geojson_is_cut_at_the_antimeridian(tmp_path, crs, transform, boxes):
    classes = np.zeros((4, 8), int)
    classes[:3, 1:7] = 1
    classes[1, 2:6] = 2
    grid = Grid(8, 4, transform, CRS.from_string(crs))
    (path,) = write_vector([make(tmp_path, classes, grid)], tmp_path / "map.geojson", LEGEND)
    around, inside = geopandas.read_file(path).sort_values("class_id").geometry
    parts = sorted((part.bounds for part in shapely.get_parts(around)), reverse=True)
    assert np.array(parts) == pytest.approx(np.array(boxes), abs=2)
    assert around.is_valid
    assert around.area == pytest.approx(18 / 4 * inside.area - inside.area, rel=0.01)
    assert not around.intersects(inside.buffer(-0.1))


def test_texts_that_a_shapefile_cuts_are_said(tmp_path, caplog):
    legend = replace(LEGEND, names=("background", "ü" * 200, "road", "water"))
    frame = make(tmp_path, RING, legend=legend)
    write_vector([frame], tmp_path / "map.shp", legend)
    assert caplog.messages == ["map.shp: texts are cut after 254 bytes"]


def test_a_shapefile_has_all_columns_under_their_whole_names(tmp_path):
    write_vector([make(tmp_path, RING)], tmp_path / "map.shp", LEGEND)
    assert read(tmp_path / "map.shp").columns.tolist() == [*COLUMNS, "geometry"]


def test_what_lies_around_a_pole_is_not_cut(tmp_path):
    grid = Grid(5, 4, Affine(1e5, 0, -25e4, 0, -1e5, 2e5), CRS.from_epsg(3413))
    (path,) = write_vector([make(tmp_path, RING, grid)], tmp_path / "map.geojson", LEGEND)
    assert {*geopandas.read_file(path).geom_type} == {"Polygon"}


def test_feature_lines_are_the_features_of_the_geojson(tmp_path):
    frame = make(tmp_path, RING, Grid(5, 4, Affine.identity()))
    collection = json.loads(
        write_vector([frame], tmp_path / "map.geojson", LEGEND)[0].read_text(encoding="utf-8")
    )
    stream = io.StringIO()
    write_features([frame], stream)
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == collection["features"]
    assert collection["features"][0]["properties"]["area_m2"] is None


def test_names_survive_quotes_emoji_and_sql(tmp_path):
    names = ("background", 'l\'eau, "bleue"', "🌳 <b>&amp;</b>", "'); DROP TABLE layer_styles;--")
    legend = Legend((0, 1, 2, 3), names, COLOURS)
    frame = make(tmp_path, np.array([[1, 2, 3]]), legend=legend)
    for suffix in VECTOR_SUFFIXES:
        path = write_vector([frame], tmp_path / f"map{suffix}", legend)[0]
        assert sorted(read(path).class_name) == sorted(names[1:])
    assert style_of(tmp_path / "map.gpkg")[0] == dict(zip(names[1:], COLOURS[1:], strict=True))


def style_of(path: Path) -> tuple[dict[str, tuple[int, ...]], sqlite3.Row]:
    """The colours that QGIS would use: its own query, then category -> symbol -> colour."""
    database = sqlite3.connect(path)
    database.row_factory = sqlite3.Row
    layer, column = database.execute(
        "SELECT table_name, column_name FROM gpkg_geometry_columns"
    ).fetchone()
    row = database.execute(
        "SELECT * FROM layer_styles WHERE f_table_schema='' AND f_table_name=? "
        "AND f_geometry_column=? AND useAsDefault",
        (layer, column),
    ).fetchone()
    database.close()
    renderer = ET.fromstring(row["styleQML"]).find("renderer-v2")
    assert renderer.get("type") == "categorizedSymbol"
    assert renderer.get("attr") == "class_name"
    colours = {
        symbol.get("name"): symbol.find("layer/Option/Option[@name='color']").get("value")
        for symbol in renderer.findall("symbols/symbol")
    }
    return {
        category.get("value"): tuple(map(int, colours[category.get("symbol")].split(",")[:3]))
        for category in renderer.findall("categories/category")
    }, row


def test_a_geopackage_opens_in_qgis_with_the_legends_colours(tmp_path):
    path = write_vector([make(tmp_path, RING)], tmp_path / "map.gpkg", LEGEND)[0]
    colours, row = style_of(path)
    assert colours == dict(zip(NAMES[1:], COLOURS[1:], strict=True))
    assert row["update_time"]
    literals = ET.fromstring(row["styleSLD"]).iter("{http://www.opengis.net/ogc}Literal")
    assert [literal.text for literal in literals] == list(NAMES[1:])
    assert {tuple(layer) for layer in pyogrio.list_layers(path)} == {
        ("map", "Polygon"),
        ("layer_styles", None),
    }
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    kinds = dict(database.execute("SELECT table_name, data_type FROM gpkg_contents"))
    database.close()
    assert kinds == {"map": "features", "layer_styles": "attributes"}


@pytest.mark.parametrize("stem", ["a.b (1) ü", "layer_styles", "gpkg_contents", "x'y\"z|w"])
def test_any_file_name_makes_a_geopackage_with_its_style(tmp_path, stem):
    path = write_vector([make(tmp_path, RING)], tmp_path / f"{stem}.gpkg", LEGEND)[0]
    assert len(pyogrio.read_dataframe(path, layer=0)) == 3
    assert style_of(path)[0]["water"] == COLOURS[3]


@pytest.mark.parametrize("suffix", VECTOR_SUFFIXES)
def test_a_file_that_exists_is_replaced(tmp_path, suffix):
    path = tmp_path / f"map{suffix}"
    write_vector([make(tmp_path, blobs(30, 30))], path, LEGEND)
    write_vector([make(tmp_path, RING)], path, LEGEND)
    assert len(read(path)) == 3


@pytest.mark.parametrize("suffix", VECTOR_SUFFIXES)
def test_a_write_that_fails_is_one_line_and_leaves_nothing(tmp_path, suffix):
    frame = make(tmp_path, blobs(150, 150))
    out = tmp_path / "out"
    out.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(OutputError) as caught:
            write_vector([frame], out / f"map{suffix}", LEGEND)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert list(out.iterdir()) == []
    with pytest.raises(OutputError, match="check that the folder exists"):
        write_vector([frame], tmp_path / "missing" / f"map{suffix}", LEGEND)


@pytest.mark.parametrize(
    ("crs", "unit"), [('LOCAL_CS["site",UNIT["foot",0.3048]]', 0.3048), ("EPSG:4978", 1.0)]
)
def test_local_and_geocentric_systems_are_refused_for_geojson_only(tmp_path, crs, unit):
    grid = Grid(5, 4, Affine(1, 0, 0, 0, -1, 0), CRS.from_user_input(crs))
    frame = make(tmp_path, RING, grid)
    assert frame.area_m2.max() == pytest.approx(12 * unit**2)
    for suffix in VECTOR_SUFFIXES:
        if "json" in suffix:
            with pytest.raises(OutputError, match=r"write \.gpkg instead"):
                write_vector([frame], tmp_path / f"map{suffix}", LEGEND)
            assert not (tmp_path / f"map{suffix}").exists()
        else:
            assert len(read(write_vector([frame], tmp_path / f"map{suffix}", LEGEND)[0])) == 3


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    frame = make(tmp_path, RING)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'segearth-cli\[parquet\]'"):
        require_package("map.parquet")
    with pytest.raises(UsageError):
        write_vector([frame], tmp_path / "map.parquet", LEGEND)
    require_package("map.gpkg")
