"""What a data set can teach, known before training: which kinds of conditions, of which names and ranges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ldm.core.errors import UserError

PIXELS, CAPTIONS, LABELS, MASKS, MAPS, BOXES, ATTRIBUTES = "pixels", "captions", "labels", "masks", "maps", "boxes", "attributes"


@dataclass(frozen=True, kw_only=True)
class AttributeFacts:
    """Of one attribute over all records.

    Attributes:
        numbers: (smallest, largest), if every value is a number; else None.
        names: the different values as texts, sorted; of lists and of texts with ";", those of their parts.
    """

    numbers: tuple[float, float] | None
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """
    Attributes:
        has: of PIXELS, CAPTIONS, LABELS, MASKS, MAPS, BOXES and ATTRIBUTES, those that records have.
        label_names, map_names: in the order of their indices; empty = numbers only.
        scan: reads all records' attributes.
        scan_labels: reads all records' labels that are numbers, and gives for each number the first record that has it; of a stream, those
            of the first shard.
        report_classes: is given how many classes the model has; a stream counts records with other labels as unreadable.
    """

    has: frozenset[str]
    label_names: tuple[str, ...] = ()
    map_names: tuple[str, ...] = ()
    scan: Callable[[], Mapping[str, AttributeFacts]] = dict
    scan_labels: Callable[[], Mapping[int, str]] = dict
    report_classes: Callable[[int], object] = int

    @cached_property
    def attributes(self) -> Mapping[str, AttributeFacts]:
        """By column of the table or key of the JSON."""
        return self.scan()

    def check_labels(self, classes: int) -> None:
        """Refuses labels that are no class of a model.

        Raises:
            UserError: a label beyond the last class; with the record.
        """
        self.report_classes(classes)
        for number, name in self.scan_labels().items():
            if number >= classes:
                raise UserError(
                    f"{name}: label {number} is outside 0 to {classes - 1}; classes are counted from 0: mend the labels, or set num_classes"
                )


def parts_of(value: Any) -> tuple[str, ...]:
    """An attribute's value as names: a list's items, a text's parts between ";", else itself."""
    parts = value if isinstance(value, list | tuple) else str(value).split(";")
    return tuple(part for part in (str(item).strip() for item in parts) if part)


def number_of(value: Any) -> float | None:
    """An attribute's value as a number; None if it is none. True and False are names."""
    if isinstance(value, bool) or isinstance(value, list | tuple):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


class AttributeTally:
    """Gathers the facts of attributes, record by record, in the order in which they are first met."""

    def __init__(self, most: int | None = None) -> None:
        """
        Args:
            most: names that one may have, beyond which nothing is gathered any more; None = any number.
        """
        self._most, self._is_beyond = most, False
        self._names: dict[str, set[str]] = {}
        self._numbers: dict[str, tuple[float, float] | None] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """The attributes of a record more."""
        if self._is_beyond:
            return
        for key, value in record.items():
            number = number_of(value)
            low, high = self._numbers.setdefault(key, (float("inf"), float("-inf"))) or (0.0, 0.0)
            self._numbers[key] = None if number is None or self._numbers[key] is None else (min(low, number), max(high, number))
            names = self._names.setdefault(key, set())
            names.update(parts_of(value))
            self._is_beyond |= self._most is not None and len(names) > self._most

    def facts(self) -> dict[str, AttributeFacts] | None:
        """Of all records; None if there were more names than may be."""
        if self._is_beyond:
            return None
        return {key: AttributeFacts(numbers=self._numbers[key], names=tuple(sorted(names))) for key, names in self._names.items()}


def attribute_facts(records: Iterable[Mapping[str, Any]]) -> dict[str, AttributeFacts]:
    """Of the attributes of all records."""
    tally = AttributeTally()
    for record in records:
        tally.add(record)
    return tally.facts() or {}
