"""The network: torch and open_clip; never rasterio."""
