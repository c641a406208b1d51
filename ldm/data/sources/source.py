"""What every source of records can do."""

from __future__ import annotations

import abc

from ldm.core.errors import UserError
from ldm.data.record import Record

FIRST = 8


class Source(abc.ABC):
    """Records by number.

    Attributes:
        name: for people.
        digest: changes whenever any record may have changed.
        label_names: in the order of their indices; empty = records have no labels, or numbers only.
        map_names: of the map's classes, likewise.
        lost: key -> reason of records that are known to be unreadable without opening them.
        has_captions, has_labels, has_masks, has_maps, has_boxes: whether records have them, as far as the first few and the members' names
            tell.
    """

    name: str
    digest: str
    label_names: tuple[str, ...] = ()
    map_names: tuple[str, ...] = ()
    lost: dict[str, str]
    has_captions: bool = False
    has_labels: bool = False
    has_masks: bool = False
    has_maps: bool = False
    has_boxes: bool = False

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def key(self, index: int) -> str: ...

    def first_records(self) -> list[Record]:
        """The readable ones among the first few; the others are counted when they are used."""
        found = []
        for index in range(min(FIRST, len(self))):
            try:
                found.append(self.record(index))
            except UserError:
                continue
        return found

    @abc.abstractmethod
    def record(self, index: int) -> Record:
        """One record.

        Raises:
            UserError: it cannot be read.
        """
