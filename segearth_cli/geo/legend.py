"""What the values of a class raster mean."""

from dataclasses import dataclass

from segearth_cli.geo.virtual import Colour


@dataclass(frozen=True)
class Legend:
    """What the values of a class raster mean: 0 is background, 1..K the classes."""

    values: tuple[int, ...]
    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    nodata: int = 255
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        """Refuse a legend that a raster cannot carry."""
        if self.values != tuple(range(len(self.values))):
            raise ValueError("the values of a legend are 0, 1, ..., K")
        if not len(self.values) == len(self.names) == len(self.colours):
            raise ValueError("a legend has one name and one colour per value")
        if len(self.values) > self.nodata:
            raise ValueError(f"{len(self.values)} values do not fit beside nodata {self.nodata}")
