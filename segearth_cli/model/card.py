"""``segearth.json``: how a model is meant to run, and where it comes from."""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from segearth_cli.errors import ModelError
from segearth_cli.model.files import read_json
from segearth_cli.options import ATTENTIONS, SENSORS, SceneOptions
from segearth_cli.plain import is_finite, is_whole

CARD = "segearth.json"
_WORD = re.compile(r"[^\W_]+")
_SMALL_WORDS = frozenset({"a", "an", "and", "at", "in", "of", "on", "or", "the", "with"})
AnyScene = TypeVar("AnyScene", bound=SceneOptions)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelCard:
    """What ``segearth.json`` says: how a model is meant to run and where it comes from.

    The defaults are the paper's optical settings; ``for_sensor`` gives those of the sensor.
    """

    name: str
    sensor: str = "optical"
    attention: str = "segearth"
    modulated_blocks: int = 1
    global_bias: float = 0.3
    logit_scale: float = 50.0
    window: int = 224  # pixels; 0 = the whole scene at once
    stride: int = 112  # pixels
    gsd_m: tuple[float, float] | None = None  # finest and coarsest pixels it was made for
    speckle: int = 0  # side of the Lee filter that its radar images went through; 0 = none
    radar_db: tuple[float, float] | None = None  # decibels it saw as black and white, calibrated
    polarisation: str = ""  # that its radar images had, such as VH
    words: tuple[str, ...] = ()  # all that its text tower has read, one by one; none: any
    description: str = ""
    licence: str = ""
    made_by: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)  # all other keys

    def __post_init__(self) -> None:
        """Refuse a card that no model can run by."""
        wrong = [
            f"{name} is {value!r}"
            for name, value, right in (
                ("name", self.name, isinstance(self.name, str) and bool(self.name)),
                ("sensor", self.sensor, self.sensor in SENSORS),
                ("attention", self.attention, self.attention in ATTENTIONS),
                ("modulated_blocks", self.modulated_blocks, is_whole(self.modulated_blocks, 1)),
                ("global_bias", self.global_bias, is_finite(self.global_bias)),
                (
                    "logit_scale",
                    self.logit_scale,
                    is_finite(self.logit_scale) and self.logit_scale > 0,
                ),
                ("window", self.window, is_whole(self.window, 0)),
                ("stride", self.stride, is_whole(self.stride, 1)),
                (
                    "speckle",
                    self.speckle,
                    self.speckle == 0 or (is_whole(self.speckle, 3) and self.speckle % 2 == 1),
                ),
                ("gsd_m", self.gsd_m, self.gsd_m is None or _is_range(self.gsd_m)),
                ("polarisation", self.polarisation, isinstance(self.polarisation, str)),
                (
                    "words",
                    self.words,
                    isinstance(self.words, list | tuple)
                    and all(isinstance(word, str) for word in self.words),
                ),
                *(
                    (key, getattr(self, key), isinstance(getattr(self, key), str))
                    for key in ("description", "licence", "made_by")
                ),
                ("radar_db", self.radar_db, self.radar_db is None or _is_span(self.radar_db)),
            )
            if not right
        ]
        if wrong:
            raise ModelError(f"the model card is wrong: {', '.join(wrong)}; correct {CARD}")

    @classmethod
    def for_sensor(cls, name: str, sensor: str, **known: Any) -> "ModelCard":
        """A card with the paper's settings for the sensor, but for what is ``known``."""
        settings: dict[str, Any] = {"attention": "sclip", "modulated_blocks": 2}
        return cls(name, sensor, **({**settings, **known} if sensor == "sar" else known))

    @classmethod
    def read(cls, path: Path) -> "ModelCard":
        """The card in the file; keys that it does not know are kept in ``extra``.

        One that looks like a misspelt key of its own is warned of.
        """
        content = read_json(path)
        known = {f.name for f in fields(cls)} - {"extra"}
        for key in content.keys() - known:
            for meant in get_close_matches(key, known - content.keys(), n=1, cutoff=0.8):
                logger.warning("%s: %r is no setting, and has no effect; %r is", path, key, meant)
        card: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in content.items()
            if key in known
        }
        card.setdefault("name", path.parent.name)
        try:
            return cls(**card, extra={k: v for k, v in content.items() if k not in known})
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error

    def radar_read(self, options: AnyScene) -> AnyScene:
        """The options of a scene, where they are silent as the model's radar images were read."""
        speckle = self.speckle if options.speckle is None else options.speckle
        return replace(
            options, speckle=speckle, radar_db=self.radar_db, polarisation=self.polarisation
        )

    def unread(self, names: Iterable[str]) -> list[str]:
        """Names of which the model's text tower has not read a single word."""
        known = set(self.words) - _SMALL_WORDS
        parts = {n: {*n.casefold().split(), *_WORD.findall(n.casefold())} for n in names}
        return [name for name, words in parts.items() if known and known.isdisjoint(words)]

    def to_json(self) -> str:
        """The file's content."""
        content = asdict(self)
        extra = content.pop("extra")
        return json.dumps({**content, **extra}, indent=2, ensure_ascii=False) + "\n"


def _is_range(value: object) -> bool:
    return _is_pair(value) and 0 < value[0] <= value[1]


def _is_span(value: object) -> bool:
    return _is_pair(value) and value[0] < value[1]


def _is_pair(value: object) -> TypeGuard[tuple[float, float]]:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(is_finite, value))
