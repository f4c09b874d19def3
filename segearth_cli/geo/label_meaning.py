"""What labels stand for: the values of rasters, and what points and polygons are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from segearth_cli.errors import UsageError
from segearth_cli.names import is_number, listed, plain_label, plain_name
from segearth_cli.options import BACKGROUND_NAMES, LabelOptions
from segearth_cli.scores import IGNORED

_MOST_NAMED = 8  # unknown values


@dataclass(frozen=True)
class LabelMeaning:
    """The class values that labels stand for; ``None`` for labels that say nothing.

    Attributes:
        names: of the classes, by value.
        values: by every name and synonym of the classes (see `plain_label`).
        said: what the options say, by a label's value or name (see `plain_label`).
        rest: for all other labels, and where no point or polygon lies, if the options say it.
        of_map: whether the classes are those of a map that is measured: what points and polygons
            are called may be its values, and what it does not know is its background, or says
            nothing. Otherwise (``tune``) that is refused.
    """

    names: Mapping[int, str]
    values: Mapping[str, int | None]
    said: Mapping[str, int | None] = field(default_factory=dict)
    rest: int | None = None
    of_map: bool = False

    def explained(self, options: LabelOptions) -> LabelMeaning:
        """The same, with what the options say.

        Raises:
            UsageError: they name a class that there is not.
        """
        pairs = [(old, self._value_of(new)) for old, new in options.label_values]
        said = {plain_label(str(old)): new for old, new in pairs if old is not None}
        silent = {plain_label(str(old)): None for old in options.ignore}
        rest = next((new for old, new in pairs if old is None), None)
        return replace(self, said={**said, **silent}, rest=rest)

    def _value_of(self, new: int | str) -> int:
        known = {**self.values, **{plain_label(name): value for value, name in self.names.items()}}
        value = known.get(plain_label(new)) if isinstance(new, str) else new
        if value is None or value not in self.names:
            raise UsageError(f"--label-values: there is no class {new}; there are {self.shown}")
        return value

    @property
    def shown(self) -> str:
        """The classes for a person to read."""
        return ", ".join(f"{value} {name}" for value, name in sorted(self.names.items()))

    @property
    def has_background(self) -> bool:
        """Whether value 0 is everything else."""
        return plain_name(self.names.get(0, "")) in BACKGROUND_NAMES

    @property
    def others(self) -> int | None:
        """The value for names that are not known, where these are not refused."""
        return 0 if self.rest is None and self.of_map and self.has_background else self.rest

    @cached_property
    def numbers(self) -> dict[str, int | None]:
        """Values for numbers that nobody explains: 0 says nothing where its name does not."""
        is_silent = self.values.get(plain_label(self.names.get(0, "")), 0) is None
        return {str(value): None if is_silent and value == 0 else value for value in self.names}

    @cached_property
    def words(self) -> dict[str, int | None]:
        """What the options say by name."""
        return {old: value for old, value in self.said.items() if not is_number(old)}

    @cached_property
    def by_tag(self) -> dict[str, int | None]:
        """Values for what a raster calls its own values, which may be numbers, too."""
        return {**self.values, **self.words}

    @cached_property
    def by_text(self) -> dict[str, int | None]:
        """Values for what points and polygons are called."""
        numbers = self.numbers if self.of_map and not self._are_numbers_said else {}
        return {**self.values, **numbers, **self.said}

    @property
    def _are_numbers_said(self) -> bool:
        """Whether the options give a class to a label's number: others are not the map's then."""
        return any(value is not None for old, value in self.said.items() if is_number(old))

    def of_texts(self, texts: Sequence[str], path: str) -> dict[str, int | None]:
        """Values for what points and polygons are called.

        Raises:
            UsageError: they are called what is not known, and that is refused.
        """
        values = self._taken(texts, self.by_text)
        unknown = [text for text in texts if text not in values]
        if self._are_numbers_said and self.rest is None:
            numbers = {text: plain_label(text) for text in texts}
            unknown += [t for t, n in numbers.items() if is_number(n) and n not in self.by_text]
        if unknown:
            raise self._refusal(unknown, path)
        return values

    def _taken(
        self, names: Iterable[str], known: Mapping[str, int | None]
    ) -> dict[str, int | None]:
        """Values for names, without those that are refused."""
        takes_others = self.of_map or self.rest is not None
        plain = {name: plain_label(name) for name in names}
        return {
            n: known.get(p, self.others) for n, p in plain.items() if takes_others or p in known
        }

    def of_raster(
        self, named: Mapping[int, str], nodata: float | None, path: str
    ) -> Callable[[list[int]], list[int | None]]:
        """Values for those of a raster, as a function that refuses what nobody has explained.

        They are the options', else those of the same name where the raster names its own; where
        neither says more, the classes' own.

        Args:
            named: what the raster calls its values.
            nodata: the raster's.
            path: the raster's.

        Raises:
            UsageError: the options speak of names that it does not have, or contradict each other.
        """
        codes: dict[int, int | None] = {} if self.rest is not None else {IGNORED: None}
        if named:
            values = self._taken(named.values(), self.by_tag)
            codes |= {code: values[name] for code, name in named.items() if name in values}
        elif all(value is None for value in self.said.values()):
            codes |= {int(number): value for number, value in self.numbers.items()}
        codes |= self._said_of(named, path)
        if nodata is not None and float(nodata).is_integer():
            codes[int(nodata)] = None

        def classes_of(found: list[int]) -> list[int | None]:
            unknown = sorted(set(found) - codes.keys()) if self.rest is None else []
            if any(code in named for code in unknown):
                raise self._refusal([own for code, own in named.items() if code not in codes], path)
            if unknown:
                numbers = [*map(str, unknown)]
                few = len(unknown) <= _MOST_NAMED
                raise UsageError(
                    f"{path} holds {listed(numbers)}, which {'are' if numbers[1:] else 'is'} none "
                    f"of the classes {self.shown}; say --label-values {numbers[0]}=CLASS"
                    + (f" or --ignore {','.join(numbers)}" if few else ",...,*=CLASS")
                )
            return [codes.get(code, self.rest) for code in found]

        return classes_of

    def _said_of(self, named: Mapping[int, str], path: str) -> dict[int, int | None]:
        """What the options say of a raster's values by number; beside a map names must be its own.

        Without one there may be other rasters, which have them.
        """
        codes = {int(old): value for old, value in self.said.items() if is_number(old)}
        plain = {code: plain_label(name) for code, name in named.items()}
        lost = self.unused(named.values())
        if self.of_map and named and lost:
            raise UsageError(f"{path} has no class {lost[0]}; it has {', '.join(named.values())}")
        for code in codes.keys() & plain.keys():
            if self.words.get(plain[code], codes[code]) != codes[code]:
                raise UsageError(
                    f"--label-values and --ignore give {code} of {path} two meanings, once as "
                    f"{plain[code]}; give one"
                )
        return codes

    def unused(self, names: Iterable[str]) -> list[str]:
        """What the options call labels, and none of these is called."""
        return sorted({*self.words} - {*map(plain_label, names)})

    def called(self, names: Iterable[str], known: Mapping[str, int | None]) -> list[str]:
        """Classes of labels of these names without those that say nothing; unknown ones as named.

        Args:
            names: of labels.
            known: `by_tag` or `by_text`.
        """
        own: dict[str, str] = {}
        for name in names:
            own.setdefault(plain_label(name), " ".join(name.split()))
        found = {shown: known.get(plain, shown) for plain, shown in own.items()}
        return [
            self.names[value] if isinstance(value, int) else shown
            for shown, value in found.items()
            if value is not None
        ]

    def _refusal(self, unknown: Sequence[str], path: str) -> UsageError:
        called = listed([repr(name) for name in unknown])
        return UsageError(
            f"{path} has labels of {called}, which are none of the classes "
            f"{', '.join(self.names.values())}; add them to --classes or to the words of "
            "--background, or say --label-values or --ignore"
        )
