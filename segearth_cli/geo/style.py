"""How QGIS and other GIS paint the polygons: legend colours as QML and SLD, kept in a GeoPackage.

QGIS looks for a layer's style in the table ``layer_styles`` of its GeoPackage.
"""

import re
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree as ET

from segearth_cli.geo.legend import Legend

_FILL_ALPHA = 150  # of 255
_OUTLINE_MM = 0.2
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # no XML text

# the columns and types that QGIS itself makes
_CREATE = """CREATE TABLE layer_styles (
  id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
  f_table_catalog TEXT(256), f_table_schema TEXT(256), f_table_name TEXT(256),
  f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
  useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
  update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"""
_REGISTER = """INSERT INTO gpkg_contents (table_name, data_type, identifier, srs_id)
  VALUES ('layer_styles', 'attributes', 'layer_styles', 0)"""
_INSERT = """INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name,
  f_geometry_column, styleName, styleQML, styleSLD, useAsDefault, description, owner)
  VALUES ('', '', ?, ?, ?, ?, ?, 1, 'class colours', '')"""

_DATES = ("UPDATE layer_styles SET update_time = ?", "UPDATE gpkg_contents SET last_change = ?")


def save_default_style(
    path: Path, layer: str, legend: Legend, made: datetime | None = None
) -> None:
    """Add the legend's colours to a layer of a GeoPackage as its default style.

    ``made`` is the time that the table says, instead of now.

    Raises sqlite3.Error when the file cannot be written.
    """
    with closing(sqlite3.connect(path)) as database, database:
        (column,) = database.execute(
            "SELECT column_name FROM gpkg_geometry_columns WHERE table_name = ?", (layer,)
        ).fetchone()
        database.execute(_CREATE)
        database.execute(_REGISTER)
        style = (layer, column, layer[:30], qml(legend), sld(legend, layer))
        database.execute(_INSERT, style)
        if made is not None:
            for update in _DATES:
                database.execute(update, (f"{made:%Y-%m-%dT%H:%M:%S.000Z}",))


def _classes(legend: Legend) -> list[tuple[str, tuple[int, int, int]]]:
    entries = zip(legend.values, legend.names, legend.colours, strict=True)
    return [(_UNPRINTABLE.sub("", name), colour) for value, name, colour in entries if value != 0]


def _darker(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (int(channel * 0.6) for channel in colour)
    return red, green, blue


def qml(legend: Legend) -> str:
    """Return a QGIS 3 style: one category per class name, in its colour, background left out."""
    root = ET.Element("qgis", version="3.22.0", styleCategories="Symbology")
    renderer = ET.SubElement(
        root,
        "renderer-v2",
        type="categorizedSymbol",
        attr="class_name",
        symbollevels="0",
        enableorderby="0",
        forceraster="0",
        referencescale="-1",
    )
    categories = ET.SubElement(renderer, "categories")
    symbols = ET.SubElement(renderer, "symbols")
    for index, (name, colour) in enumerate(_classes(legend)):
        ET.SubElement(
            categories,
            "category",
            type="string",
            render="true",
            value=name,
            label=name,
            symbol=str(index),
        )
        symbols.append(_fill_symbol(str(index), colour))
    ET.SubElement(root, "blendMode").text = "0"
    ET.SubElement(root, "featureBlendMode").text = "0"
    ET.SubElement(root, "layerGeometryType").text = "2"
    doctype = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    return doctype + ET.tostring(root, encoding="unicode")


def _fill_symbol(name: str, colour: tuple[int, int, int]) -> ET.Element:
    symbol = ET.Element(
        "symbol", type="fill", name=name, alpha="1", clip_to_extent="1", force_rhr="0"
    )
    layer = ET.SubElement(
        symbol, "layer", {"class": "SimpleFill", "enabled": "1", "locked": "0", "pass": "0"}
    )
    properties = {
        "color": ",".join(map(str, (*colour, _FILL_ALPHA))),
        "joinstyle": "bevel",
        "offset": "0,0",
        "offset_unit": "MM",
        "outline_color": ",".join(map(str, (*_darker(colour), 255))),
        "outline_style": "solid",
        "outline_width": str(_OUTLINE_MM),
        "outline_width_unit": "MM",
        "style": "solid",
    }
    options = ET.SubElement(layer, "Option", type="Map")
    for key, value in properties.items():
        ET.SubElement(options, "Option", type="QString", name=key, value=value)
    for key, value in properties.items():  # how QGIS before 3.18 spells the same
        ET.SubElement(layer, "prop", k=key, v=value)
    return symbol


def sld(legend: Legend, layer: str) -> str:
    """Return the same style as OGC SLD 1.1, for GeoServer and others."""
    root = ET.Element(
        "StyledLayerDescriptor",
        {
            "version": "1.1.0",
            "xmlns": "http://www.opengis.net/sld",
            "xmlns:se": "http://www.opengis.net/se",
            "xmlns:ogc": "http://www.opengis.net/ogc",
        },
    )
    named = ET.SubElement(root, "NamedLayer")
    ET.SubElement(named, "se:Name").text = layer
    user = ET.SubElement(named, "UserStyle")
    ET.SubElement(user, "se:Name").text = layer
    rules = ET.SubElement(user, "se:FeatureTypeStyle")
    for name, colour in _classes(legend):
        rule = ET.SubElement(rules, "se:Rule")
        ET.SubElement(rule, "se:Name").text = name
        equal = ET.SubElement(ET.SubElement(rule, "ogc:Filter"), "ogc:PropertyIsEqualTo")
        ET.SubElement(equal, "ogc:PropertyName").text = "class_name"
        ET.SubElement(equal, "ogc:Literal").text = name
        symbol = ET.SubElement(rule, "se:PolygonSymbolizer")
        fill = ET.SubElement(symbol, "se:Fill")
        _svg(fill, "fill", _hex(colour))
        _svg(fill, "fill-opacity", f"{_FILL_ALPHA / 255:.2f}")
        stroke = ET.SubElement(symbol, "se:Stroke")
        _svg(stroke, "stroke", _hex(_darker(colour)))
        _svg(stroke, "stroke-width", "1")
    return ET.tostring(root, encoding="unicode")


def _svg(parent: ET.Element, name: str, value: str) -> None:
    ET.SubElement(parent, "se:SvgParameter", name=name).text = value


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
