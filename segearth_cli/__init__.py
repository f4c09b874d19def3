"""Open-vocabulary segmentation of remote-sensing images from the command line."""

__version__ = "0.1.0"
