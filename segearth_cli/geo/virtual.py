"""GDAL virtual rasters (VRT) as XML: the chosen bands of a scene, the labels of a class raster.

They let GDAL do while reading what rasterio has no call for: expanding a colour table, the
amplitude of complex values, masks that survive warping, category names.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from segearth_cli.geo.grid import Grid

_GDAL_TYPES = {
    "bool": "Byte",
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "uint64": "UInt64",
    "int64": "Int64",
    "float16": "Float32",  # GDAL knows halves from 3.11 on
    "float32": "Float32",
    "float64": "Float64",
    "complex_int16": "CInt16",
    "complex64": "CFloat32",
    "complex128": "CFloat64",
}
_ALPHA = {"ColorInterp": "Alpha"}
_MASK = {"dataType": "Byte"}
_ABOVE_0 = {0: 0, 1e-6: 255}
_INSIDE = 1 - 1e-6  # of a limit

Colour = tuple[int, int, int]


class VirtualRaster:
    """A VRT, built band by band; ``text`` is what ``rasterio.open`` takes."""

    def __init__(self, path: str, grid: Grid) -> None:
        """``path`` is where bands are taken from: a name that GDAL knows, absolute or virtual."""
        self._path = path
        self._grid = grid
        size = {"rasterXSize": str(grid.width), "rasterYSize": str(grid.height)}
        self._root = ET.Element("VRTDataset", size)
        wkt = grid.crs.to_wkt(version="WKT2_2019") if grid.crs else ""
        if grid.gcps:
            points = ET.SubElement(self._root, "GCPList", {"Projection": wkt} if wkt else {})
            for number, p in enumerate(grid.gcps, 1):
                place = {"Pixel": p.col, "Line": p.row, "X": p.x, "Y": p.y, "Z": p.z or 0.0}
                ET.SubElement(
                    points,
                    "GCP",
                    {"Id": str(number), **{k: repr(float(v)) for k, v in place.items()}},
                )
            return
        if wkt:
            ET.SubElement(self._root, "SRS").text = wkt
        if not grid.transform.is_identity:
            geotransform = ",".join(repr(float(v)) for v in grid.transform.to_gdal())
            ET.SubElement(self._root, "GeoTransform").text = geotransform

    @property
    def text(self) -> str:
        """The XML."""
        return ET.tostring(self._root, encoding="unicode")

    def tag(self, tags: dict[str, str]) -> None:
        """Add dataset tags."""
        metadata = ET.SubElement(self._root, "Metadata")
        for name, value in tags.items():
            ET.SubElement(metadata, "MDI", {"key": name}).text = value

    def add_band(
        self,
        source_band: int | str,
        dtype: str,
        nodata: float | None = None,
        description: str = "",
        colours: Sequence[Colour] = (),
        categories: Sequence[str] = (),
        path: str | None = None,
        bits: str | None = None,
        masked: bool = False,
        scale: tuple[float, float] = (1.0, 0.0),
        unit: str = "",
    ) -> None:
        """Add a band as it is, with what labels it; maybe from another ``path``, on this grid.

        ``bits`` are those in use, as GDAL's NBITS; ``masked`` takes the band's mask too. What is
        measured is the value times ``scale``, plus its second number, in a ``unit``.
        """
        band = self._band(_GDAL_TYPES[dtype])
        if bits:
            structure = ET.SubElement(band, "Metadata", {"domain": "IMAGE_STRUCTURE"})
            ET.SubElement(structure, "MDI", {"key": "NBITS"}).text = bits
        if description:
            ET.SubElement(band, "Description").text = description
        if nodata is not None:
            ET.SubElement(band, "NoDataValue").text = _number(nodata)
        if unit:
            ET.SubElement(band, "UnitType").text = unit
        if scale != (1.0, 0.0):
            ET.SubElement(band, "Offset").text = _number(scale[1])
            ET.SubElement(band, "Scale").text = _number(scale[0])
        if colours:
            ET.SubElement(band, "ColorInterp").text = "Palette"
            table = ET.SubElement(band, "ColorTable")
            for colour in colours:
                parts = {f"c{i}": str(v) for i, v in enumerate((*colour, 255), 1)}
                ET.SubElement(table, "Entry", parts)
        if categories:
            names = ET.SubElement(band, "CategoryNames")
            for category in categories:
                ET.SubElement(names, "Category").text = category
        self._source(band, "SimpleSource", source_band, path)
        if masked:
            mask = ET.SubElement(ET.SubElement(band, "MaskBand"), "VRTRasterBand", _MASK)
            self._source(mask, "SimpleSource", f"mask,{source_band}", path)

    def add_floats(self, source_band: int, nodata: float | None) -> None:
        """Add a band in float32, NaN where it has its own ``nodata``."""
        band = self._band("Float32")
        ET.SubElement(band, "NoDataValue").text = _number(math.nan)
        source = self._source(band, "ComplexSource", source_band)
        if nodata is not None:
            ET.SubElement(source, "NODATA").text = _number(nodata)

    def add_amplitude(self, source_band: int, dtype: str, nodata: float | None = None) -> None:
        """Add the absolute value of a complex band, float32; ``nodata`` is the band's own."""
        band = self._band("Float32", subClass="VRTDerivedRasterBand")
        ET.SubElement(band, "PixelFunctionType").text = "mod"
        transfer = "CFloat64" if dtype == "complex128" else "CFloat32"
        ET.SubElement(band, "SourceTransferType").text = transfer
        ET.SubElement(band, "NoDataValue").text = _number(
            math.nan if nodata is None else abs(nodata)
        )
        self._source(band, "SimpleSource", source_band)

    def add_colour(self, source_band: int, component: int) -> None:
        """Add one component of a band's colour table: 1 red, 2 green, 3 blue, 4 alpha."""
        band = self._band("Byte", **(_ALPHA if component == 4 else {}))
        source = self._source(band, "ComplexSource", source_band)
        ET.SubElement(source, "ColorTableComponent").text = str(component)

    def add_alpha(self, source_band: int | str, dtype: str = "uint8", mask: str = "") -> None:
        """Add an alpha band, from a band or a mask (``"mask,1"``), 0 where ``mask`` is 0 too."""
        derived = {"subClass": "VRTDerivedRasterBand"} if mask else {}
        band = self._band(_GDAL_TYPES[dtype], **_ALPHA, **derived)
        if mask:
            ET.SubElement(band, "PixelFunctionType").text = "mul"
            self._looked_up(band, mask, {0: 0, 1: 1})
        self._source(band, "SimpleSource", source_band)

    def add_opaque(self, *source_bands: int | str) -> None:
        """Add an alpha band that is 255 where all of some bands and masks are above 0."""
        self._add_looked_up_alpha("mul", source_bands, _ABOVE_0)

    def add_alpha_within(self, source_bands: Sequence[int], limit: float) -> None:
        """Add an alpha band that is 255 where any band lies between minus and plus the limit."""
        table = {-limit: 0, -limit * _INSIDE: 255, limit * _INSIDE: 255, limit: 0}
        self._add_looked_up_alpha("sum", source_bands, table)

    def _add_looked_up_alpha(
        self, function: str, source_bands: Sequence[int | str], table: Mapping[Any, int]
    ) -> None:
        derived = {} if len(source_bands) == 1 else {"subClass": "VRTDerivedRasterBand"}
        band = self._band("Byte", **_ALPHA, **derived)
        if derived:
            ET.SubElement(band, "PixelFunctionType").text = function
        for source_band in source_bands:
            self._looked_up(band, source_band, table)

    def add_alpha_where_not(
        self, nodata: Mapping[int, float | None], masks: Sequence[int | str] = ()
    ) -> None:
        """Add an alpha band: 0 where all bands have their nodata values, or a mask is 0, else 255.

        Warping masks that GDAL makes of nodata values (``"mask,1"``) is not the same every time.
        """
        band = self._band("Byte", **_ALPHA)
        for source_band, value in nodata.items():
            self._painted(band, 255, source_band, value)
        for mask in masks:
            opaque = VirtualRaster(self._path, self._grid)
            opaque.add_opaque(mask)
            self._painted(band, 0, 1, 255, opaque.text)

    def _painted(
        self,
        band: ET.Element,
        value: int,
        source_band: int,
        but: float | None,
        path: str | None = None,
    ) -> None:
        """Let a band have a value but where a source has another one."""
        source = self._source(band, "ComplexSource", source_band, path)
        ET.SubElement(source, "ScaleOffset").text = str(value)
        ET.SubElement(source, "ScaleRatio").text = "0"
        if but is not None:
            ET.SubElement(source, "NODATA").text = _number(but)

    def add_lookup(self, source_band: int, table: Mapping[Any, int]) -> None:
        """Add a uint8 band whose values come from a table, constant beyond its ends."""
        self._looked_up(self._band("Byte"), source_band, table)

    def _looked_up(
        self, band: ET.Element, source_band: int | str, table: Mapping[Any, int]
    ) -> None:
        source = self._source(band, "ComplexSource", source_band)
        ET.SubElement(source, "LUT").text = ",".join(f"{k!r}:{v}" for k, v in table.items())

    def _band(self, gdal_type: str, **attributes: str) -> ET.Element:
        interpretation = attributes.pop("ColorInterp", None)
        number = len(self._root.findall("VRTRasterBand")) + 1
        band = ET.SubElement(
            self._root, "VRTRasterBand", {"dataType": gdal_type, "band": str(number), **attributes}
        )
        if interpretation:
            ET.SubElement(band, "ColorInterp").text = interpretation
        return band

    def _source(
        self, band: ET.Element, kind: str, source_band: int | str, path: str | None = None
    ) -> ET.Element:
        source = ET.SubElement(band, kind)
        ET.SubElement(source, "SourceFilename", {"relativeToVRT": "0"}).text = path or self._path
        ET.SubElement(source, "SourceBand").text = str(source_band)
        return source


def _number(value: Any) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return repr(int(value)) if float(value).is_integer() else repr(float(value))
