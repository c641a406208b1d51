"""What a user sets of a conditioner, declared as data: command lines and pages are built from it."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Control(abc.ABC):
    """
    Attributes:
        kind: what the value is: a name for programs.
        script: and its flag, by which a user sets it.
    """

    kind: ClassVar[str]
    script: ClassVar[str] = "scripts/sample.py --cond"

    @property
    @abc.abstractmethod
    def values(self) -> str:
        """The values that it takes, for people."""


@dataclass(frozen=True, kw_only=True)
class Text(Control):
    """A text."""

    kind: ClassVar[str] = "text"
    script: ClassVar[str] = "scripts/txt2img.py --prompt"

    @property
    def values(self) -> str:
        return "a text"


@dataclass(frozen=True, kw_only=True)
class Choice(Control):
    """One of `count` classes, by name or number; names may be empty."""

    kind: ClassVar[str] = "choice"
    script: ClassVar[str] = "scripts/sample.py --label"
    count: int
    names: tuple[str, ...] = ()

    @property
    def values(self) -> str:
        return f"one of {listed(self.names)}" if self.names else f"a class from 0 to {self.count - 1}"


@dataclass(frozen=True, kw_only=True)
class Number(Control):
    """A number from low to high."""

    kind: ClassVar[str] = "number"
    low: float
    high: float

    @property
    def values(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True, kw_only=True)
class Tags(Control):
    """Any number of names at once."""

    kind: ClassVar[str] = "tags"
    names: tuple[str, ...]

    @property
    def values(self) -> str:
        return f"any of {listed(self.names)}, separated by ';'"


@dataclass(frozen=True, kw_only=True)
class ClassMap(Control):
    """An image whose pixels are class indices from 0 to count - 1; count itself = unknown."""

    kind: ClassVar[str] = "class_map"
    script: ClassVar[str] = "scripts/sample.py --map"
    count: int
    names: tuple[str, ...] = ()

    @property
    def values(self) -> str:
        return f"a grey or palette image file of classes 0 to {self.count - 1}"


@dataclass(frozen=True, kw_only=True)
class Mask(Control):
    """An image and a mask of the same size, whose bright pixels are to be painted."""

    kind: ClassVar[str] = "mask"
    script: ClassVar[str] = "scripts/inpaint.py --mask"

    @property
    def values(self) -> str:
        return "an image and a mask (scripts/inpaint.py)"


@dataclass(frozen=True, kw_only=True)
class ImageControl(Control):
    """An image file."""

    kind: ClassVar[str] = "image"
    script: ClassVar[str] = "scripts/upscale.py --image"
    channels: int

    @property
    def values(self) -> str:
        return "an image file"


@dataclass(frozen=True, kw_only=True)
class BoxList(Control):
    """1 to `most` boxes of classes 0 to count - 1: [class, left, top, right, bottom], the corners as shares of the image from 0 to 1."""

    kind: ClassVar[str] = "boxes"
    script: ClassVar[str] = "scripts/sample.py --boxes"
    count: int
    most: int

    @property
    def values(self) -> str:
        return f"a JSON file of 1 to {self.most} boxes [class, left, top, right, bottom]"


SHOWN_NAMES = 12


def listed(names: tuple[str, ...]) -> str:
    """Names in a row, cut where they are many."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
