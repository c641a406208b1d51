"""What a reader of data tells people: a count, what it is of, and some names."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

NO_CAPTION = "pictures without a caption, trained as unconditional"
NO_LABEL = "pictures without a label, trained as unconditional"

UNLABELLED = 'maps with class 255 beside few others, which most likely means "not labelled": set data.map_void=255'
FEW_CLASSES = 32  # of a map, beside which 255 looks like that


def looks_unlabelled(classes: Collection[int]) -> bool:
    """Whether 255 among the classes that occur in maps most likely means that nobody labelled these pixels."""
    others = set(classes) - {255}
    return 255 in classes and len(others) <= FEW_CLASSES and max(others, default=0) < 128


@dataclass(frozen=True)
class Finding:
    """Something that may not be as its owner thinks.

    Attributes:
        what: e.g. "pictures without a caption, trained as unconditional".
        names: of all of them; empty = it is a statement about the whole set.
    """

    what: str
    names: tuple[str, ...]

    def line(self, most: int = 2) -> str:
        """`pictures without a caption: 3 (a.png, b.png, ...)`."""
        if not self.names:
            return self.what
        return f"{self.what}: {len(self.names)} ({', '.join(self.names[:most])}{', ...' * (len(self.names) > most)})"


def by_kind(what: str, files: Iterable[tuple[str, str]]) -> list[Finding]:
    """A finding for each kind of file, the most frequent first.

    Args:
        what: with a `{}` for the kind.
        files: (kind, name) of each.
    """
    kinds: dict[str, list[str]] = {}
    for kind, name in files:
        kinds.setdefault(kind, []).append(name)
    return [Finding(what.format(kind), tuple(names)) for kind, names in sorted(kinds.items(), key=lambda one: (-len(one[1]), one[0]))]
