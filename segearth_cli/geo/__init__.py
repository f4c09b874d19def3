"""Rasters, vectors, tiling and sensors: numpy, rasterio and geopandas; never torch."""
