"""Where pixels lie on the ground: grids, windows from boxes, the grid a scene is warped to."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyproj
import rasterio
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.transform import GCPTransformer
from rasterio.warp import calculate_default_transform, transform_bounds
from rasterio.windows import Window

from segearth_cli.errors import SceneError, UsageError
from segearth_cli.geo.failures import GDAL_ERRORS, reason
from segearth_cli.options import no_box

_SAME = 1e-3  # pixels: grids that differ by less are one
_EDGE = 1e-4  # pixels: how far a box may miss a pixel's edge by rounding
_FARTHEST = 1e15  # CRS units
_FINEST = 1e-14  # of the largest coordinate: a pixel's side in float64
_FLATTEST = 1e-9  # sine of the angle between rows and columns
_FINER = 100  # pixels that --gsd may make of one, along a side
TURN = 360.0  # degrees
_GAP = 30.0  # degrees without a scene, where it may be cut
_TORN = 10  # times as coarse as a scene: a projection has torn it apart
_STRETCH = 0.01  # a projection's scale error that is not worth correcting (UTM's is 0.0004)

Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True)
class Grid:
    """A raster's pixels on the ground: an affine transform or GCPs, in ``crs``.

    Without a CRS the coordinates are the transform's own (pixels, for the identity).
    """

    width: int
    height: int
    transform: Affine
    crs: CRS | None = None
    gcps: tuple[GroundControlPoint, ...] = ()

    @property
    def is_north_up(self) -> bool:
        """Whether rows run west to east and columns north to south, by an affine transform."""
        flat = self.transform.b == 0 and self.transform.d == 0
        return not self.gcps and flat and self.transform.a > 0 and self.transform.e < 0

    @property
    def is_in_pixels(self) -> bool:
        """Whether it has no place at all. GIS show such a raster with y minus the row."""
        return self.crs is None and not self.gcps and self.transform.is_identity

    @property
    def is_sound(self) -> bool:
        """Whether neighbouring pixels lie at different, finite places, in float64."""
        if self.gcps:
            return all(math.isfinite(v) for p in self.gcps for v in (p.row, p.col, p.x, p.y))
        a, b, c, d, e, f = self.transform[:6]
        corners = [
            (a * col + b * row + c, d * col + e * row + f)
            for col in (0, self.width)
            for row in (0, self.height)
        ]
        largest = max(abs(v) if math.isfinite(v) else math.inf for xy in corners for v in xy)
        across, down = math.hypot(a, d), math.hypot(b, e)
        return (
            largest < _FARTHEST
            and min(across, down) > largest * _FINEST
            and abs(a * e - b * d) > _FLATTEST * across * down
        )

    def is_same(self, other: "Grid") -> bool:
        """Whether the other grid's pixels are these, up to rounding."""
        if (self.width, self.height, self.crs) != (other.width, other.height, other.crs):
            return False
        if self.gcps or other.gcps:
            own, others = ([(p.row, p.col, p.x, p.y) for p in g.gcps] for g in (self, other))
            return own == others
        cols, rows = np.array([0.0, self.width, 0.0]), np.array([0.0, 0.0, self.height])
        found = np.stack(self.pixels(*other.ground(cols, rows)))
        return float(np.abs(found - np.stack([cols, rows])).max()) < _SAME

    def ground(self, cols: NDArray[Any], rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return x and y (CRS units) of fractional pixel positions (corners are whole numbers)."""
        if self.gcps:
            with _placed_by(self.gcps) as transformer:
                xs, ys = transformer.xy(rows, cols, offset="ul")
            return np.asarray(xs, float), np.asarray(ys, float)
        t = self.transform
        return t.a * cols + t.b * rows + t.c, t.d * cols + t.e * rows + t.f

    def pixels(self, xs: NDArray[Any], ys: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return fractional columns and rows of x and y (CRS units): the inverse of `ground`."""
        if self.gcps:
            with _placed_by(self.gcps) as transformer:
                rows, cols = transformer.rowcol(xs, ys, op=np.asarray)
            return np.asarray(cols, float), np.asarray(rows, float)
        t = ~self.transform
        return t.a * xs + t.b * ys + t.c, t.d * xs + t.e * ys + t.f

    @property
    def ring(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Columns and rows along the grid's edges."""
        return _ring((0.0, 0.0, float(self.width), float(self.height)))

    @property
    def bounds(self) -> Box:
        """Left, bottom, right, top of the smallest box around the grid, in CRS units."""
        xs, ys = self.ground(*self.ring)
        return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())

    @property
    def wrapped_crs(self) -> CRS | None:
        """The CRS for warping: beyond 180 degrees longitudes go on as the grid's do."""
        if self.crs is None or not counts_degrees(self.crs):
            return self.crs
        left, _, right, _ = self.bounds
        beyond = left < -TURN / 2 or right > TURN / 2
        return _around(self.crs, (left + right) / 2) if beyond else self.crs

    @property
    def pixel_area_m2(self) -> float | None:
        """Ground area of the central pixel in square metres; None without a CRS."""
        areas = self.pixel_areas_m2(np.array([self.width / 2]), np.array([self.height / 2]))
        return None if areas is None else float(areas[0])

    def pixel_areas_m2(self, cols: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.float64] | None:
        """Ground areas of pixels at fractional positions in square metres; None without a CRS."""
        if self.crs is None:
            return None
        cols, rows = np.concatenate([cols, cols + 1, cols]), np.concatenate([rows, rows, rows + 1])
        xs, ys = (places.reshape(3, -1) for places in self.ground(cols, rows))
        _, _, unit_area = metres_per_unit(self.crs, xs[0], ys[0])
        if self.gcps:  # differences along a pixel's two edges
            (ax, bx), (ay, by) = xs[1:] - xs[0], ys[1:] - ys[0]
        else:  # the same, without the rounding of large coordinates
            ax, bx, _, ay, by, _ = self.transform[:6]
        return np.asarray(abs(ax * by - bx * ay) * unit_area)

    @property
    def gsd_m(self) -> float | None:
        """Side in metres of a square of the pixel's ground area; None without a CRS."""
        area = self.pixel_area_m2
        return None if area is None else math.sqrt(area)

    def crop(self, window: Window) -> "Grid":
        """Return the grid of a window of whole pixels; without a place it is where GIS show it."""
        col_off, row_off = int(window.col_off), int(window.row_off)
        gcps = tuple(
            GroundControlPoint(
                row=p.row - row_off, col=p.col - col_off, x=p.x, y=p.y, z=p.z, id=p.id, info=p.info
            )
            for p in self.gcps
        )
        t = self.transform
        if self.is_in_pixels and (window.width, window.height) != (self.width, self.height):
            t = Affine(1, 0, 0, 0, -1, 0)
        x, y = t.a * col_off + t.b * row_off + t.c, t.d * col_off + t.e * row_off + t.f
        return replace(
            self,
            width=int(window.width),
            height=int(window.height),
            transform=t if self.gcps else Affine(t.a, t.b, x, t.d, t.e, y),
            gcps=gcps,
        )


def check_same_place(own: Grid, name: str, other: Grid, other_name: str) -> None:
    """Refuse two grids, not both of which have a coordinate system, that cannot be one.

    Raises:
        SceneError: they differ in size or, in coordinates of whatever system, in place.
    """
    if (own.width, own.height) != (other.width, other.height):
        raise SceneError(
            f"{name} has {own.width} x {own.height} pixels and {other_name} {other.width} x "
            f"{other.height}, and not both are placed on the ground; resample one of them"
        )
    have_places = not (own.is_in_pixels or other.is_in_pixels)
    if have_places and not replace(own, crs=other.crs).is_same(other):
        raise SceneError(
            f"{name} and {other_name} lie at different places, and not both have a coordinate "
            "system; give them one, for instance with gdal_edit.py -a_srs"
        )


@contextmanager
def _placed_by(gcps: tuple[GroundControlPoint, ...]) -> Iterator[GCPTransformer]:
    """Pixels to ground and back by GCPs; raises SceneError where these place nothing."""
    try:
        with GCPTransformer(list(gcps)) as transformer:
            yield transformer
    except GDAL_ERRORS as error:
        raise SceneError(
            f"the scene's {len(gcps)} ground control points give it no place: {reason(error)}"
        ) from error


def _ring(box: Box, steps: int = 21) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return x and y along a box's edges, densified: curved edges need more than the corners."""
    left, bottom, right, top = box
    along, up = np.linspace(left, right, steps), np.linspace(bottom, top, steps)
    xs = np.concatenate([along, along, np.full(steps, left), np.full(steps, right)])
    ys = np.concatenate([np.full(steps, bottom), np.full(steps, top), up, up])
    return xs, ys


def parse_crs(text: str, option: str) -> CRS:
    """Read ``EPSG:32633``, its number, WKT or PROJ text.

    Raises UsageError that names the option.
    """
    try:
        with rasterio.Env():  # which keeps PROJ's own lines off stderr
            return CRS.from_user_input(f"EPSG:{text}" if text.isdecimal() else text)
    except (CRSError, ValueError):
        raise UsageError(
            f"{option} is {text!r}, which is no coordinate system; give for instance EPSG:32633"
        ) from None


def is_on_earth(crs: CRS | pyproj.CRS) -> bool:
    """Whether x and y alone are a place: not so in local (site) and geocentric systems."""
    return bool(crs.is_geographic or crs.is_projected)


def counts_degrees(crs: CRS) -> bool:
    """Whether coordinates are longitudes and latitudes in degrees: some count in grads."""
    own = pyproj.CRS.from_wkt(crs.to_wkt())
    return bool(own.is_geographic) and math.isclose(math.degrees(unit_of(own)), 1)


def unit_of(crs: pyproj.CRS) -> float:
    """Return the metres, or radians, of one unit of a CRS's horizontal axes."""
    return float(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else 1.0


def metres_per_unit(
    crs: CRS | pyproj.CRS, xs: NDArray[Any], ys: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the ground metres of one CRS unit along x and along y at places, and their area.

    Exactly the CRS's own unit, unless a projection stretches lengths there by more than 1 % (Web
    Mercator away from the equator); degrees are measured on the CRS's ellipsoid. The area is less
    than the product where x and y are not at right angles on the ground (a sinusoidal projection).
    """
    crs = pyproj.CRS.from_user_input(crs)
    unit = unit_of(crs)
    geod = crs.get_geod() or pyproj.Geod(ellps="WGS84")
    unit_m = unit * geod.a if crs.is_geographic else unit
    usual = np.full(len(xs), unit_m)
    if not is_on_earth(crs):
        return usual, usual, usual**2
    step = 1e-3 if crs.is_geographic else 100.0 / unit
    lon, lat = degrees(crs, np.stack([xs, xs + step, xs]), np.stack([ys, ys, ys + step]))
    is_inside = np.isfinite(lon).all(axis=0) & np.isfinite(lat).all(axis=0)  # of the projection
    lon, lat = (np.where(is_inside, values, 0.0) for values in (lon, lat))
    ways = [geod.inv(lon[0], lat[0], lon[end], lat[end]) for end in (1, 2)]
    metres = np.stack([distance for _, _, distance in ways]) / step
    angle = np.radians(ways[0][0] - ways[1][0])
    is_sound = is_inside & (np.isfinite(metres) & (metres > 0)).all(axis=0)
    if crs.is_projected:
        is_sound &= (abs(metres / unit - 1) >= _STRETCH).any(axis=0)
    across, up = np.where(is_sound, metres, usual)
    return across, up, across * up * np.where(is_sound, abs(np.sin(angle)), 1.0)


def degrees(
    crs: pyproj.CRS, xs: NDArray[Any], ys: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return longitudes and latitudes on the CRS's own ellipsoid, not finite where none are."""
    geodetic = crs if crs.is_geographic else crs.geodetic_crs or crs
    if geodetic is not crs:
        try:
            transformer = pyproj.Transformer.from_crs(crs, geodetic, always_xy=True)
        except ProjError:
            return np.full_like(xs, np.nan), np.full_like(ys, np.nan)
        xs, ys = transformer.transform(xs, ys)
    unit = np.degrees(unit_of(geodetic))  # some count in grads
    return xs * unit, ys * unit


def window_of_box(grid: Grid, box: Box, box_crs: CRS | None) -> Window:
    """Return the window of whole pixels that encloses a box, clipped to the grid.

    ``box_crs`` None means the grid's own. Raises SceneError with the grid's bounds when they do
    not meet or nothing relates the two systems, UsageError for a CRS of the box on a grid that has
    none, and for a left beyond the right that is not in degrees.
    """
    if box_crs is not None and grid.crs is None:
        raise UsageError(
            "--bbox-crs cannot be used: the scene has no coordinate system"
            + ("" if grid.is_in_pixels else "; say which with --src-crs")
        )
    of_box = box_crs or grid.crs
    if box[2] < box[0]:  # across the antimeridian, as GeoJSON has it
        if of_box is None or not of_box.is_geographic:
            raise UsageError(no_box(box))
        box = (box[0], box[1], box[2] + TURN, box[3])
    if grid.is_in_pixels and -box[1] > box[3]:  # as GIS show it, and maps of it have it
        box = (box[0], -box[3], box[2], -box[1])
    bounds = grid.bounds
    shown = bounds
    if box_crs is not None and grid.crs is not None and box_crs != grid.crs:
        shown, box = _related(bounds, grid.crs, box, box_crs)
    if grid.crs is not None:
        box = nearest_turn(box, grid.crs, bounds)
    # clipped first: GCP polynomials mean nothing far outside the scene
    inside = (
        max(box[0], bounds[0]),
        max(box[1], bounds[1]),
        min(box[2], bounds[2]),
        min(box[3], bounds[3]),
    )
    if not (inside[0] < inside[2] and inside[1] < inside[3]):
        raise SceneError(_box_apart(shown, box, box_crs, grid.crs))
    cols, rows = grid.pixels(*_ring(inside))
    left, top = (max(0, math.floor(v.min() + _EDGE)) for v in (cols, rows))
    right = min(grid.width, math.ceil(cols.max() - _EDGE))
    bottom = min(grid.height, math.ceil(rows.max() - _EDGE))
    if left >= right or top >= bottom:
        raise SceneError(_box_apart(shown, box, box_crs, grid.crs))
    return Window(left, top, right - left, bottom - top)


def _related(bounds: Box, crs: CRS, box: Box, box_crs: CRS) -> tuple[Box, Box]:
    """Return a grid's bounds in the box's CRS, and the box in the grid's."""
    try:
        if not (is_on_earth(crs) and is_on_earth(box_crs)):
            raise CRSError("a local or geocentric system")
        shown: Box = transform_bounds(crs, box_crs, *bounds, densify_pts=21)
    except GDAL_ERRORS as error:
        raise SceneError(
            "--bbox-crs cannot be used: nothing relates it to the scene's coordinate system; "
            "give --bbox in the scene's own coordinates"
        ) from error
    try:
        return shown, transform_bounds(box_crs, crs, *box, densify_pts=21)
    except GDAL_ERRORS:
        raise SceneError(_box_apart(shown, box, box_crs, crs)) from None


def turns(box: Box) -> list[Box]:
    """Return a box in degrees, and the same a turn of the Earth to the east and to the west.

    One across the antimeridian may have its left beyond its right, as rasterio's
    ``transform_bounds`` has it.
    """
    left, bottom, right, top = box
    if left > right:
        right += TURN
    return [(left + turn, bottom, right + turn, top) for turn in (0.0, TURN, -TURN)]


def nearest_turn(box: Box, crs: CRS, bounds: Box) -> Box:
    """Return a box as it lies nearest to ``bounds``: in degrees the same place has many."""
    if not crs.is_geographic:
        return box
    return max(turns(box), key=lambda own: min(own[2], bounds[2]) - max(own[0], bounds[0]))


def apart(asked: str, bounds: Box) -> str:
    """Return the message that a part of a scene does not lie in it."""
    corners = ",".join(f"{value:.10g}" for value in bounds)
    return f"{asked} does not touch the scene, whose bounds in that coordinate system are {corners}"


def _box_apart(bounds: Box, box: Box, box_crs: CRS | None, crs: CRS | None) -> str:
    hint = ""
    if box_crs is None and crs is not None:
        in_degrees = max(map(abs, box)) <= TURN
        if in_degrees and not crs.is_geographic:
            hint = "; for a box in degrees say --bbox-crs EPSG:4326"
        elif crs.is_geographic and not in_degrees:
            hint = "; for a box in metres say --bbox-crs with its coordinate system"
    return apart("the box", bounds) + hint


def warp_target(grid: Grid, gsd_m: float | None, dst_crs: CRS | None) -> Grid:
    """Return the north-up grid that ``--gsd`` and ``--dst-crs`` ask for.

    Raises UsageError for a scene without a CRS, SceneError where it cannot be projected.
    """
    if grid.crs is None:
        raise UsageError(
            "--gsd and --dst-crs need a scene with a coordinate system, and this one has none; "
            + (
                "give it a place first, for instance with gdal_translate -a_ullr and -a_srs"
                if grid.is_in_pixels
                else "say it with --src-crs, or give it one with gdal_translate -a_srs"
            )
        )
    crs = dst_crs or grid.crs
    if grid.is_north_up and crs == grid.crs:
        start = grid
    else:
        start = _projected(grid, crs)
    if gsd_m is None:
        return start
    left, bottom, right, top = start.bounds
    middle = np.array([(left + right) / 2]), np.array([(bottom + top) / 2])
    metres_x, metres_y, area = (float(found[0]) for found in metres_per_unit(crs, *middle))
    if crs.is_projected:  # square pixels, as the map's users expect
        metres_x = metres_y = math.sqrt(area)
    step_x, step_y = gsd_m / metres_x, gsd_m / metres_y
    if step_x > (right - left) * (1 + _EDGE) or step_y > (top - bottom) * (1 + _EDGE):
        raise SceneError(
            f"--gsd {gsd_m:g} is more than the scene is wide or high: "
            f"{(right - left) * metres_x:.3g} x {(top - bottom) * metres_y:.3g} m; give a smaller "
            "one"
        )
    if start.gsd_m is not None and gsd_m < start.gsd_m / _FINER:
        raise SceneError(
            f"--gsd {gsd_m:g} would make more than {_FINER} x {_FINER} pixels of each pixel, which "
            f"has {start.gsd_m:.3g} m; give a larger one"
        )
    return Grid(
        width=max(1, math.ceil((right - left) / step_x - _EDGE)),
        height=max(1, math.ceil((top - bottom) / step_y - _EDGE)),
        transform=Affine(step_x, 0.0, left, 0.0, -step_y, top),
        crs=crs,
    )


def _projected(grid: Grid, crs: CRS) -> Grid:
    placed: dict[str, Any] = {"gcps": list(grid.gcps)} if grid.gcps else {}
    box = () if grid.gcps else grid.bounds
    try:
        if crs != grid.crs and not (is_on_earth(grid.crs) and is_on_earth(crs)):
            raise CRSError("local and geocentric systems have no place on the map")
        transform, width, height = calculate_default_transform(
            grid.wrapped_crs, _around_grid(crs, grid), grid.width, grid.height, *box, **placed
        )
        target = Grid(int(width), int(height), transform, crs)
        if not (width and height) or (target.gsd_m or 0.0) > _TORN * (grid.gsd_m or math.inf):
            raise CRSError(
                f"its pixels would be more than {_TORN} times as coarse, as where it lies on both "
                "sides of that system's edge or around a pole"
            )
    except GDAL_ERRORS as error:
        raise SceneError(
            f"the scene cannot be projected to {crs.to_string()}: {reason(error)}"
        ) from error
    return target


def _around_grid(crs: CRS, grid: Grid) -> CRS:
    """Return a CRS; if it counts degrees, such that they go on across a grid's antimeridian."""
    if not counts_degrees(crs):
        return crs
    longitudes, _ = degrees(pyproj.CRS.from_user_input(grid.crs), *grid.ground(*grid.ring))
    west, east = longitudes.min(), longitudes.max()
    if not (math.isfinite(west) and math.isfinite(east)):
        return crs
    if east - west < TURN / 2 and -TURN / 2 <= west and east <= TURN / 2:
        return crs
    eastward = np.unique(longitudes % TURN)
    gaps = np.diff(eastward, append=eastward[0] + TURN)
    widest = int(gaps.argmax())
    if gaps[widest] < _GAP:  # all around the Earth, or a pole
        return crs
    behind = float(eastward[widest] + gaps[widest] / 2)
    return _around(crs, (behind + TURN / 2) % TURN)


def _around(crs: CRS, longitude: float) -> CRS:
    """Return a CRS that counts degrees from 180 below the longitude to 180 above, to GDAL."""
    flat = pyproj.CRS.from_wkt(crs.to_wkt())
    flat = (flat.sub_crs_list[0] if flat.is_compound else flat).to_2d()
    try:
        wkt = CRS.from_wkt(flat.to_wkt()).to_wkt(version="WKT1_GDAL")
    except CRSError:  # of a rotated pole
        return crs
    # GDAL keeps transformations by authority and name, and would take one for another
    own = re.sub(r',AUTHORITY\["[^"]*","[^"]*"\]\]$', "]", wkt)
    own = re.sub(r'^GEOGCS\["', f'GEOGCS["around {longitude:.10g}: ', own)
    return CRS.from_wkt(f'{own[:-1]},EXTENSION["CENTER_LONG","{longitude:.10g}"]]')
