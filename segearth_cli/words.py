"""Classes by their words: what vocabularies and datasets have in common; imports nothing."""


class Words:
    """Synonyms per class, its name first, as prompts see them."""

    classes: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each class: its first synonym."""
        return tuple(synonyms[0] for synonyms in self.classes)

    @property
    def queries(self) -> tuple[str, ...]:
        """Every prompt word, class by class."""
        return tuple(word for synonyms in self.classes for word in synonyms)

    @property
    def query_class(self) -> tuple[int, ...]:
        """Index of the class that each query belongs to."""
        return tuple(index for index, synonyms in enumerate(self.classes) for _ in synonyms)
