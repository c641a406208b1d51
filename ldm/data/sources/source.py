"""What every source of records can do."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ldm.core.errors import UserError
from ldm.data.checksum import checksum
from ldm.data.facts import ATTRIBUTES, BOXES, CAPTIONS, LABELS, MAPS, MASKS, PIXELS, AttributeFacts, attribute_facts
from ldm.data.findings import Finding
from ldm.data.record import Record

FIRST = 8


class Source(abc.ABC):
    """Records by number.

    Attributes:
        name: for people.
        split: "train" or "val"; "all" = the place has no splits.
        digest: changes whenever any record may have changed.
        label_names: in the order of their indices; empty = records have no labels, or numbers only.
        map_names: of the map's classes, likewise.
        map_classes: those that occur, in order; empty = not known.
        unreadable: key -> reason of records that are known to be unreadable without opening them.
        findings: what its owner may not expect.
        credits: who made the pictures, where they are from, and under which licence, a line each.
        held_out: number of pictures in the place's own held-out split, where this is its training split.
        has_captions, has_labels, has_masks, has_maps, has_boxes, has_attributes: whether records have them, as far as the
            first few records and the members' names show.
    """

    name: str
    split: str = "all"
    digest: str
    label_names: tuple[str, ...] = ()
    map_names: tuple[str, ...] = ()
    map_classes: tuple[int, ...] = ()
    unreadable: dict[str, str]
    findings: tuple[Finding, ...] = ()
    credits: tuple[str, ...] = ()
    held_out: int = 0
    has_captions: bool = False
    has_labels: bool = False
    has_masks: bool = False
    has_maps: bool = False
    has_boxes: bool = False
    has_attributes: bool = False

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def key(self, index: int) -> str: ...

    def name_of(self, index: int) -> str:
        """What messages call a record: its file, where it has one."""
        return self.key(index)

    @property
    def listing(self) -> str:
        """Changes when other records are there, as far as it can be told without reading them."""
        return hashlib.sha256("\n".join(map(self.key, range(len(self)))).encode(errors="surrogatepass")).hexdigest()

    @property
    def conditions(self) -> frozenset[str]:
        """What of `ldm.data.facts` the records have."""
        there = {
            PIXELS: True,
            CAPTIONS: self.has_captions,
            LABELS: self.has_labels,
            MASKS: self.has_masks,
            MAPS: self.has_maps,
            BOXES: self.has_boxes,
            ATTRIBUTES: self.has_attributes,
        }
        return frozenset(name for name, is_there in there.items() if is_there)

    def attributes(self) -> Iterable[Mapping[str, Any]]:
        """Of all records that have some, undecoded."""
        return ()

    def attribute_facts(self) -> Mapping[str, AttributeFacts]:
        """Of the attributes of all records."""
        return attribute_facts(self.attributes())

    def captions(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(name, captions) of every record that can be read."""
        for index in range(len(self)):
            try:
                yield self.name_of(index), self.record(index).captions
            except UserError:
                continue  # counted when it is used

    def label_numbers(self) -> Mapping[int, str]:
        """The labels that are numbers, each with the first record that has it."""
        return {}

    def stored_sizes(self) -> np.ndarray | None:
        """(count, 2) uint32, height and width of every picture, where they are known without looking at it; see `picture_sizes`."""
        return None

    def first_records(self) -> list[Record]:
        """The readable ones among the first few; the others are counted when they are used."""
        found = []
        for index in range(min(FIRST, len(self))):
            try:
                found.append(self.record(index))
            except UserError:
                continue
        return found

    @property
    def image_checksums(self) -> list[str]:
        """Of every record's image file; "" where it cannot be read."""
        found = []
        for index in range(len(self)):
            try:
                found.append(checksum(self.record(index).image))
            except UserError:
                found.append("")
        return found

    @abc.abstractmethod
    def record(self, index: int) -> Record:
        """One record.

        Raises:
            UserError: it cannot be read.
        """
