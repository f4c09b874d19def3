"""Every options dataclass: validated once, in ``__post_init__``; imports nothing heavy.

Messages about values call a setting as the command line does: ``--min-area`` is ``min_area``.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path, PurePath

from segearth_cli.errors import UsageError
from segearth_cli.names import file_meant, is_path, plain_label, plain_name
from segearth_cli.typed import Typed

BLENDS = ("smooth", "mean")
ATTENTIONS = ("segearth", "sclip", "clearclip", "maskclip", "gem", "vanilla")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEFAULT_BACKGROUND = ("background",)
UNCLASSIFIED = "unclassified"  # value 0 of a map without a background
BACKGROUND_NAMES = frozenset({"background", "other", "others", "clutter"})
SENSORS = ("optical", "sar")
SENSOR_CHOICES = ("auto", *SENSORS)
SAR_UNITS = ("auto", "power", "amplitude", "decibels")
RASTER_SUFFIXES = (".tif", ".tiff")
STAC_SUFFIX = ".stac.json"
VECTOR_SUFFIXES = (".gpkg", ".geojson", ".geojsonl", ".fgb", ".parquet", ".shp")
OUTPUT_SUFFIXES = (*RASTER_SUFFIXES, *VECTOR_SUFFIXES, ".png")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def _at_least(*bounds: tuple[str, float | None, int]) -> None:
    """Refuse values below their least ones; ``None`` is no value."""
    for option, value, least in bounds:
        _require(
            value is None or value >= least, f"{option} is {value}; it must be {least} or more"
        )


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{option} is {value!r}; choose one of {', '.join(choices)}")


@dataclass(frozen=True)
class ModelOptions(Typed):
    """Which model runs and how; ``None`` means the model folder's own setting."""

    model: str = "auto"
    attention: str | None = None
    modulated_blocks: int | None = None
    upsampler: str = "auto"
    global_bias: float | None = None
    logit_scale: float | None = None
    window: int | None = None  # pixels; 0 = the whole scene at once
    stride: int | None = None  # pixels
    blend: str = "smooth"  # of overlapping windows
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None  # windows
    exact: bool = False  # no approximation for speed

    def __post_init__(self) -> None:
        """Refuse values that no model can run with."""
        super().__post_init__()
        _one_of("--blend", self.blend, BLENDS)
        if self.attention is not None:
            _one_of("--attention", self.attention, ATTENTIONS)
        _one_of("--precision", self.precision, PRECISIONS)
        _at_least(
            ("--modulated-blocks", self.modulated_blocks, 1),
            ("--window", self.window, 0),
            ("--stride", self.stride, 1),
            ("--batch-size", self.batch_size, 1),
        )
        _require(
            not (self.window and self.stride) or self.stride <= self.window,
            f"--stride {self.stride} exceeds --window {self.window}: pixels would be skipped",
        )
        _require(
            self.window != 0 or self.stride is None,
            f"--window 0 takes all at once, without a step: leave --stride {self.stride} out",
        )
        _require(
            self.logit_scale is None or 0 < self.logit_scale < math.inf,
            f"--logit-scale is {self.logit_scale}; it must be a positive number",
        )
        _require(
            not self.exact or self.precision in ("auto", "fp32"),
            f"--exact and --precision {self.precision} exclude each other; give one",
        )
        _require(
            self.global_bias is None or math.isfinite(self.global_bias),
            f"--global-bias is {self.global_bias}; it must be a number",
        )

    @property
    def precision_wanted(self) -> str:
        """The number format, which ``exact`` decides where nobody else does."""
        return "fp32" if self.exact else self.precision


def no_box(bbox: tuple[float, float, float, float]) -> str:
    """What is wrong with a ``--bbox`` whose sides are in another order."""
    return (
        f"--bbox {','.join(f'{value:.10g}' for value in bbox)} is no box: give "
        "left,bottom,right,top, with left below right (but across 180 degrees) and bottom below top"
    )


@dataclass(frozen=True, kw_only=True)
class SceneOptions(Typed):
    """How a raster is read. Lengths are in metres."""

    sensor: str = "auto"
    bands: tuple[str, ...] = ()  # 1-based numbers or band descriptions
    stretch: str = "auto"
    nodata: float | None = None
    gsd: float | None = None  # metres per pixel
    src_crs: str | None = None  # of the scene's coordinates, whatever the file says
    dst_crs: str | None = None
    bbox: tuple[float, float, float, float] | None = None  # left, bottom, right, top
    bbox_crs: str | None = None
    aoi: str | None = None
    sar_unit: str = "auto"  # of a SAR scene's values
    speckle: int | None = None  # pixels a side of the Lee filter's windows; 0: no filter
    radar_db: tuple[float, float] | None = None  # black and white by auto, of calibrated radar
    polarisation: str = ""  # to be taken of several, where no bands are named
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no raster can be read by; bands may be given as numbers."""
        if isinstance(self.bands, Iterable) and not isinstance(self.bands, str | bytes | dict):
            numbers = (str(b) if isinstance(b, Integral) else b for b in self.bands)
            object.__setattr__(self, "bands", tuple(numbers))
        super().__post_init__()
        _one_of("--sensor", self.sensor, SENSOR_CHOICES)
        _one_of("--sar-unit", self.sar_unit, SAR_UNITS)
        _require(
            self.gsd is None or 0 < self.gsd < math.inf,
            f"--gsd is {self.gsd}; it must be a positive number of metres",
        )
        _at_least(("--threads", self.threads, 1))
        _require(
            not self.speckle or (self.speckle >= 3 and self.speckle % 2 == 1),
            f"--speckle is {self.speckle}; give an odd number of pixels such as 7, or 0 for none",
        )
        if self.bbox is not None:
            left, bottom, right, top = self.bbox
            # maybe of degrees, across the antimeridian; sides that were swapped span more
            is_turned = -180 <= right < left <= 180 < left - right
            is_wide = -math.inf < left < right < math.inf or is_turned
            _require(is_wide and -math.inf < bottom < top < math.inf, no_box(self.bbox))
        _require(
            self.bbox is None or self.aoi is None, "--bbox and --aoi exclude each other; give one"
        )


@dataclass(frozen=True)
class SegmentOptions(SceneOptions):
    """What ``segment`` makes of one scene.

    ``classes`` holds a tuple of synonyms per class, the class's name first; ``background`` the
    prompts of the background class, ``None`` for no such class. Lengths are in metres.
    """

    classes: tuple[tuple[str, ...], ...]
    background: tuple[str, ...] | None = DEFAULT_BACKGROUND
    # red, green and blue of each class, None: chosen by its name; or of none
    colours: tuple[tuple[int, int, int] | None, ...] = ()
    threshold: float = 0.0
    min_area: float = 0.0  # square metres
    simplify: float = 0.0  # metres
    outputs: tuple[str, ...] = ()
    probabilities: str | None = None
    stac: bool = False  # a STAC Item beside the first output
    acquired: str | None = None  # when, for that Item
    source_item: str | None = None  # the Item that the scene is of
    overwrite: bool = False
    replace_maps: bool = False  # of segearth's own, and nothing else
    creation_options: tuple[tuple[str, str], ...] = ()
    max_memory: int | None = None  # bytes
    progress: bool = True  # on stderr, where that is a terminal
    model: ModelOptions = field(default_factory=ModelOptions)

    def __post_init__(self) -> None:
        """Refuse what cannot be met, before any work is done."""
        super().__post_init__()
        _require(bool(self.classes), "no classes: name some, for instance --classes building,road")
        for synonyms in (*self.classes, self.background or DEFAULT_BACKGROUND):
            _require(
                len(synonyms) > 0 and all(map(str.strip, synonyms)),
                f"the class {synonyms!r} has a name without letters; leave it out",
            )
        _require(
            0.0 <= self.threshold <= 1.0,
            f"--threshold is {self.threshold}; it must lie between 0 and 1",
        )
        _require(
            self.background is None or len(self.background) > 0,
            "the background has no words; give it some, or None for no background",
        )
        _require(
            len(self.colours) in (0, len(self.classes)),
            f"{len(self.colours)} colours for {len(self.classes)} classes; give one each, or none",
        )
        for colour in filter(None, self.colours):
            _require(
                0 <= min(colour) and max(colour) <= 255,
                f"the colour {colour} is none; red, green and blue are whole numbers from 0 to 255",
            )
        _require(
            self.max_memory is None or self.max_memory >= 1,
            f"--max-memory is {self.max_memory} bytes; give a size such as 2GB",
        )
        for option, value in (("--min-area", self.min_area), ("--simplify", self.simplify)):
            _require(0 <= value < math.inf, f"{option} is {value}; it must be 0 or a larger number")
        self._check_names()

    @property
    def written(self) -> tuple[str, ...]:
        """Everything that is written, the probabilities and the STAC Item too."""
        return tuple(filter(None, (*self.outputs, self.probabilities, self.stac_path)))

    @property
    def stac_path(self) -> str | None:
        """The STAC Item: named as the first file that is written."""
        first = next((n for n in (*self.outputs, self.probabilities) if n and n != "-"), None)
        return f"{PurePath(first).with_suffix('')}{STAC_SUFFIX}" if self.stac and first else None

    def _check_names(self) -> None:
        """Refuse names of outputs that say too little, or the same twice."""
        for output in self.outputs:
            suffix = PurePath(output).suffix.lower()
            _require(
                suffix != ".shp" or output.endswith(suffix),
                f"{output}: GDAL writes shapefiles in lower case; end it with .shp",
            )
            example = "" if suffix else f", for instance '{PurePath(output, '{stem}.gpkg')}'"
            _require(
                output == "-" or suffix in OUTPUT_SUFFIXES,
                f"cannot tell what to write from {output!r}; end it with one of "
                f"{' '.join(OUTPUT_SUFFIXES)}{example}, or - for GeoJSON lines on stdout",
            )
        _require(
            self.probabilities is None or self.probabilities.lower().endswith(RASTER_SUFFIXES),
            f"--probabilities {self.probabilities!r} is a raster; end it with .tif",
        )
        _require(
            not self.stac or self.stac_path is not None,
            "--stac describes files, and none is written; name one with -o",
        )
        names = self.written
        for name in names:
            _require(
                is_path(name),
                f"{name} is no local file; write to one, and copy it there",
            )
        paths = [os.path.abspath(name) for name in names]
        for name, path in zip(names, paths, strict=True):
            _require(paths.count(path) == 1, f"{name} is written twice; name each output once")


ON_ERROR = ("skip", "stop")
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class BatchOptions(Typed):
    """How many scenes are gone through."""

    resume: bool = False  # leave out what is complete and was made with the same settings
    on_error: str = "skip"
    shard: tuple[int, int] = (1, 1)  # the first of one part: all
    engine: str = "local"  # who segments them
    address: str | None = None  # of a Ray cluster that runs; None: one on this machine, for a while

    def __post_init__(self) -> None:
        """Refuse parts that there are not, and clusters that nobody asks."""
        super().__post_init__()
        _one_of("--on-error", self.on_error, ON_ERROR)
        _one_of("--engine", self.engine, ENGINES)
        _require(
            self.address is None or self.engine == "ray",
            f"--address {self.address} is a Ray cluster's; give --engine ray with it",
        )
        part, parts = self.shard
        _require(
            1 <= part <= parts,
            f"--shard {part}/{parts} is no part; the first of {max(parts, 1)} is 1/{max(parts, 1)}",
        )


@dataclass(frozen=True)
class BenchOptions(Typed):
    """What ``bench`` times: a run of ``segment`` whose outputs are thrown away."""

    segment: SegmentOptions
    scene: str | None = None  # None: a synthetic one
    size: tuple[int, int] = (1500, 1200)  # pixels across and down, of the synthetic one
    arch: str | None = None  # of open_clip, with random weights and SimFeatUp
    vector: bool = False  # polygons too

    def __post_init__(self) -> None:
        """Refuse what cannot be timed."""
        super().__post_init__()
        _require(min(self.size) >= 1, f"--size {self.size[0]}x{self.size[1]} has no pixels")


_AS_THE_AUTHORS = ModelOptions(blend="mean")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Typed):
    """A dataset that models are measured on; several values of a setting are compared.

    No value at all means the dataset's own, else the model folder's. ``model`` is how all of them
    run; what the lists name takes the place of its own.
    """

    dataset: str  # a preset's name, or a file
    root: Path
    names: Path | None = None  # the images to be used, a stem a line
    limit: int | None = None  # images
    models: tuple[str, ...] = ("auto",)
    attentions: tuple[str, ...] = ()
    upsamplers: tuple[str, ...] = ("auto",)
    global_biases: tuple[float, ...] = ()
    long_sides: tuple[int, ...] = ()  # pixels; 0 = as they are
    threshold: float | None = None
    model: ModelOptions = _AS_THE_AUTHORS
    scene: SceneOptions = field(default_factory=SceneOptions)
    per_image: bool = False  # scores of every image, too
    maps: Path | None = None  # folder that the images' maps are written into
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuse what nothing can be measured with."""
        super().__post_init__()
        for attention in self.attentions:
            replace(self.model, attention=attention)
        for global_bias in self.global_biases:
            replace(self.model, global_bias=global_bias)
        _require(bool(self.models and self.upsamplers), "name a model and an upsampler")
        _at_least(("--limit", self.limit, 1))
        _at_least(*(("--long-side", side, 0) for side in self.long_sides))
        _require(
            self.threshold is None or 0 <= self.threshold <= 1,
            f"--threshold is {self.threshold}; it must lie between 0 and 1",
        )


def _check_label_values(
    label_values: tuple[tuple[int | str | None, int | str], ...], ignore: tuple[int | str, ...]
) -> None:
    """Refuse labels that are given two meanings; names are compared as people read them."""
    silent = {plain_label(str(label)) for label in ignore}
    meanings: dict[str, int | str] = {}
    for label, value in label_values:
        name = "*" if label is None else plain_label(str(label))
        meaning = plain_name(value) if isinstance(value, str) else value
        _require(
            name not in silent,
            f"--ignore {label} and --label-values {label}={value} contradict each other; give one",
        )
        _require(
            meanings.setdefault(name, meaning) == meaning,
            f"--label-values gives {'*' if label is None else label} two meanings, "
            f"{meanings[name]} and {value}; give one",
        )


@dataclass(frozen=True, kw_only=True)
class LabelOptions(Typed):
    """What labels mean."""

    column: str | None = None  # of vector labels, that holds the classes
    # a label's value or name (None: all others), and the class that it stands for
    label_values: tuple[tuple[int | str | None, int | str], ...] = ()
    ignore: tuple[int | str, ...] = ()  # values or names of labels that say nothing

    def __post_init__(self) -> None:
        """Refuse labels that are given two meanings."""
        super().__post_init__()
        _check_label_values(self.label_values, self.ignore)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(LabelOptions):
    """Maps that are measured against labels."""

    maps: str  # a class raster, or a folder of them
    labels: str  # class rasters as well, or points or polygons
    classes: tuple[str, ...] = ()  # names of the values 0, 1, ...; none: the map's own
    per_image: bool = False  # scores of every map, too
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuse values that no class raster holds."""
        super().__post_init__()
        for _, value in self.label_values:
            _require(
                not isinstance(value, int) or 0 <= value <= 255,
                f"{value} is no value of a class raster; those are 0 to 255",
            )


@dataclass(frozen=True, kw_only=True)
class TuneOptions(LabelOptions):
    """Labelled scenes that ``tune`` chooses words, lambda and threshold by."""

    segment: SegmentOptions  # all words that may be used, and the settings to begin with
    pairs: tuple[tuple[str, str], ...]  # a scene, and its labels
    samples: int = 2000  # pixels per class and scene

    def __post_init__(self) -> None:
        """Refuse what nothing can be chosen by."""
        super().__post_init__()
        _require(bool(self.pairs), "name labelled scenes, for instance scene.tif=labels.gpkg")
        _at_least(("--samples", self.samples, 1))
        scenes = [scene for scene, _ in self.pairs]
        files = [*map(file_meant, scenes)]
        for scene, file in zip(scenes, files, strict=True):
            _require(
                files.count(file) == 1,
                f"{scene} is named twice, and scenes check each other; join its labels in one file",
            )


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Typed):
    """What both trainings are told: where, how long, how fast."""

    output: Path
    model: str = "auto"
    steps: int | None = None  # None: as many as the epochs take
    epochs: int = 1
    batch_size: int  # crops, of all processes together
    accumulate: int = 1  # parts that a batch is taken in
    crop: int = 224  # pixels a side
    learning_rate: float
    warmup_steps: int = 0
    held_out: float = 0.1  # share of the images that is only measured on
    validate_every: int | None = None  # steps; None: after each epoch
    save_every: int = 500  # steps
    log_every: int = 10  # steps
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    workers: int = 0  # processes that read images
    threads: int | None = None
    resume: bool = False
    overwrite: bool = False
    stop_at: int | None = None  # stop there as if interrupted
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuse what no run can be."""
        super().__post_init__()
        _at_least(
            ("--steps", self.steps, 1),
            ("--epochs", self.epochs, 1),
            ("--batch-size", self.batch_size, 1),
            ("--accumulate", self.accumulate, 1),
            ("--crop", self.crop, 16),
            ("--warmup-steps", self.warmup_steps, 0),
            ("--validate-every", self.validate_every, 1),
            ("--save-every", self.save_every, 1),
            ("--log-every", self.log_every, 1),
            ("--workers", self.workers, 0),
            ("--seed", self.seed, 0),
            ("--threads", self.threads, 1),
            ("--stop-at", self.stop_at, 1),
        )
        _require(
            0 < self.learning_rate < math.inf,
            f"--learning-rate is {self.learning_rate}; it must be a positive number",
        )
        _require(self.seed < 1 << 63, f"--seed is {self.seed}; it must be below 2 ** 63")
        _require(
            0 < self.held_out < 1,
            f"--held-out is {self.held_out}; it must be a share between 0 and 1",
        )
        _require(
            self.batch_size % self.accumulate == 0,
            f"--batch-size {self.batch_size} cannot be taken in {self.accumulate} equal parts",
        )
        _require(
            not (self.resume and self.overwrite),
            "--resume and --overwrite exclude each other; give one",
        )
        _one_of("--precision", self.precision, PRECISIONS)
        if self.steps is not None:
            _require(
                self.epochs == type(self).epochs,
                "--steps and --epochs both say how long to train; give one",
            )
            self.check_warmup(self.steps)

    def check_warmup(self, steps: int) -> None:
        """Refuse a run that ends before its learning rate is reached."""
        _require(
            self.warmup_steps < steps,
            f"--warmup-steps {self.warmup_steps} are not fewer than the run's {steps} steps; give "
            "fewer, or more --steps",
        )


UPSAMPLED = ("last-input", "output", "maskclip")


@dataclass(frozen=True, kw_only=True)
class UpsamplerOptions(TrainOptions):
    """SimFeatUp's training (paper 3.2, 5.2); the defaults are the paper's."""

    images: tuple[str, ...]
    scene: SceneOptions = field(default_factory=SceneOptions)
    batch_size: int = 8
    learning_rate: float = 1e-3
    kernel: int = 11  # pixels a side of a neighbourhood
    stack: bool = False  # a module per doubling, as FeatUp's
    ratio: int | None = None  # of the upsampling; None: up to the image's pixels
    features: str = "last-input"  # eq. 6, or what FeatUp upsamples
    content_weight: float = 0.1  # gamma of eq. 5; 0: no content retention network
    jitters: int = 5  # views of each crop
    directions: int = 30  # random ones, that features are compared along

    def __post_init__(self) -> None:
        """Refuse what no upsampler can be."""
        super().__post_init__()
        _require(bool(self.images), "name images to train on: files or folders")
        _require(
            self.kernel >= 3 and self.kernel % 2 == 1,
            f"--kernel is {self.kernel}; it must be an odd number from 3 on",
        )
        _require(
            self.ratio is None or (self.ratio >= 2 and self.ratio & (self.ratio - 1) == 0),
            f"--ratio is {self.ratio}; it must be a power of two such as 16",
        )
        _require(
            not (self.stack and self.ratio not in (None, 16)),
            "--stack has four doublings: leave --ratio out",
        )
        _one_of("--features", self.features, UPSAMPLED)
        _at_least(("--jitters", self.jitters, 1))
        _require(
            0 <= self.content_weight < math.inf,
            f"--gamma is {self.content_weight}; it must be 0 or a larger number",
        )


@dataclass(frozen=True, kw_only=True)
class DistillOptions(TrainOptions):
    """AlignEarth's training (paper 4.2, 5.2); the defaults are the paper's."""

    optical: str | None = None  # folders whose files of equal stem are pairs
    sar: str | None = None
    pairs: str | None = None  # or a CSV that names them
    optical_scene: SceneOptions = field(default_factory=lambda: SceneOptions(sensor="optical"))
    sar_scene: SceneOptions = field(default_factory=lambda: SceneOptions(sensor="sar"))
    epochs: int = 20
    batch_size: int = 512
    learning_rate: float = 1e-4
    temperature: float = 0.07  # in the beginning
    regions: int = 7  # a side (K of eq. 12)
    checkpointing: bool = False  # compute activations again instead of keeping them

    def __post_init__(self) -> None:
        """Refuse what names no pairs."""
        super().__post_init__()
        folders = [folder for folder in (self.optical, self.sar) if folder is not None]
        _require(
            self.pairs is None or not folders,
            "--pairs excludes --optical and --sar; give the one or the others",
        )
        _require(
            self.pairs is not None or len(folders) == 2,
            "name the pairs with --optical DIR and --sar DIR, or with --pairs FILE",
        )
        _require(
            0 < self.temperature < math.inf,
            f"--temperature is {self.temperature}; it must be a positive number",
        )
        _at_least(("--regions", self.regions, 1))
