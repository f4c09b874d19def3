"""Labels of small scenes: as values of pixels, as polygons and as points."""

import geopandas
import numpy as np
import rasterio
import shapely
from rasterio.features import shapes

from segearth_cli.choose import decided, terms


def truth(height=100, width=130):
    """Values 0, 1 and 2 in blocks that no symmetry maps onto each other."""
    labels = np.zeros((1, height, width), np.uint8)
    labels[:, 10:40, 20:90], labels[:, 50:95, 5:30] = 1, 2
    return labels


def predicted(pixels, space, setting):
    """The value of the map at each of a scene's labelled pixels, by its logits alone."""
    found, probability = decided(terms(pixels, space, setting.global_bias), space, setting.queries)
    return np.where(probability < setting.threshold, 0, found)


def vector_of(labels, scene, kind, names=("other", "house", "road")):
    """The blocks as polygons, or every pixel as a point."""
    with rasterio.open(scene) as src:
        place, crs = src.transform, src.crs
    if kind == "points":
        rows, columns = np.indices(labels.shape[1:]).reshape(2, -1)
        xs, ys = place * (columns + 0.5, rows + 0.5)
        geometry, values = shapely.points(xs, ys), labels.ravel()
    else:
        found = [(shapely.geometry.shape(g), int(v)) for g, v in shapes(labels[0], transform=place)]
        geometry, values = zip(*found, strict=True)
    return geopandas.GeoDataFrame(
        {"class_name": [names[value] for value in values]}, geometry=list(geometry), crs=crs
    )
