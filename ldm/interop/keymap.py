"""One network's tensors under a peer's names and in its shapes: without it each format would repeat the renaming and its checks.

A dialect is a peer's naming: `compvis` (CompVis's and Stability's code, and tools that read its files) or `diffusers`. A network's tables
have the names of the modules within each block; a `Place` has the names of one block. O outputs, I inputs, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.interop.foreign_file import error_text

CHECKED_AT_ONCE = 1 << 20  # numbers: a check needs a copy of them
DIVERGED = "the file comes from a run that diverged"
REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Dialect = Literal["compvis", "diffusers"]


@dataclass(frozen=True)
class Form:
    """How a tensor of ours is stored in the peer's file.

    Attributes:
        give: our tensor to the peer's one or several; from a tensor on the meta device, the peer's shapes.
        take: the inverse: the peer's tensors and our shape to our tensor.
    """

    give: Callable[[Tensor], tuple[Tensor, ...]]
    take: Callable[[tuple[Tensor, ...], torch.Size], Tensor]


SAME = Form(lambda mine: (mine,), lambda theirs, shape: theirs[0])
LINEAR = Form(lambda mine: (mine.flatten(1) if mine.ndim == 4 else mine,), lambda theirs, shape: theirs[0].reshape(shape))
"""A 1x1 convolution (O, I, 1, 1) as a linear layer (O, I)."""
CONV_1D = Form(lambda mine: (mine.flatten(2) if mine.ndim == 4 else mine,), lambda theirs, shape: theirs[0].reshape(shape))
"""A 1x1 convolution (O, I, 1, 1) over a sequence: (O, I, 1)."""


@dataclass(frozen=True)
class Row:
    """A module's name within its block, ours and in each dialect; a tuple where one module of ours is several of theirs."""

    ours: str
    compvis: str | tuple[str, ...]
    diffusers: str | tuple[str, ...]
    compvis_form: Form = SAME
    diffusers_form: Form = SAME

    def in_dialect(self, dialect: Dialect) -> tuple[tuple[str, ...], Form]:
        names, form = (self.compvis, self.compvis_form) if dialect == "compvis" else (self.diffusers, self.diffusers_form)
        return (names,) if isinstance(names, str) else names, form


@dataclass(frozen=True)
class Place:
    """A block: the table of its modules, and its name here and in each dialect."""

    table: tuple[Row, ...]
    ours: str
    compvis: str
    diffusers: str


@dataclass(frozen=True)
class Entry:
    """One tensor of ours, and the peer's tensors with the same numbers."""

    ours: str
    shape: torch.Size
    theirs: tuple[str, ...]
    form: Form


@dataclass(frozen=True)
class Unused:
    """Tensors of a peer's file that are passed over.

    Attributes:
        starts: prefix of their names.
        reason: why they are not needed.
        shapes: of each, by the rest of its name; None = any name and shape after the prefix, for networks that no config describes.
    """

    starts: str
    reason: str
    shapes: Mapping[str, tuple[int, ...]] | None = None

    def covers(self, name: str) -> bool:
        return name.startswith(self.starts) and (self.shapes is None or name.removeprefix(self.starts) in self.shapes)

    def check(self, name: str, tensor: Tensor, where: str) -> None:
        """Raises UserError for another shape, or NaN."""
        if self.shapes is not None:
            check_shape(tensor, self.shapes[name.removeprefix(self.starts)], f"{where}{name}")
        check_unread(tensor, f"{where}{name}")


@dataclass(frozen=True)
class Hint:
    """The config key that sets the shape of tensors whose peer's name contains `part`; for error messages."""

    part: str
    key: str


@dataclass(frozen=True)
class KeyMap:
    """All tensors of one network.

    Attributes:
        entries: one per tensor of ours.
        hints: in the order in which they are tried.
        unused: tensors of the peer's that are passed over.
    """

    entries: tuple[Entry, ...]
    hints: tuple[Hint, ...] = ()
    unused: tuple[Unused, ...] = ()

    def give(self, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors by the peer's names and in its shapes."""
        theirs: dict[str, Tensor] = {}
        for entry in self.entries:
            theirs |= dict(zip(entry.theirs, entry.form.give(mine[entry.ours]), strict=True))
        return theirs

    def take(self, theirs: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """The peer's tensors by our names and in our shapes: views where possible.

        Args:
            theirs: all of the network's tensors in the peer's file.
            where: the file and the prefix of the names in it, for errors.

        Raises:
            UserError: a tensor missing, left over, of another shape, not of real numbers, or not finite.
        """
        wanted = {name for entry in self.entries for name in entry.theirs}
        for name in sorted(wanted - theirs.keys()):
            raise UserError(f"{where}{name} is missing{self._key_of(name)}; the file and its config do not belong together")
        for name in sorted(theirs.keys() - wanted):
            passed = self.unused_for(name)
            if passed is None:
                shape = tuple(theirs[name].shape)
                raise UserError(f"{where}{name}, of shape {shape}, has no place in the network that the config describes")
            passed.check(name, theirs[name], where)
        return {entry.ours: self._taken(entry, theirs, where) for entry in self.entries}

    def passed_over(self, theirs: Iterable[str]) -> dict[str, str]:
        """The reasons why tensors of the peer's are passed over, by prefix; only of tensors that exist."""
        names = tuple(theirs)
        return {passed.starts: passed.reason for passed in self.unused if any(passed.covers(name) for name in names)}

    def unused_for(self, name: str) -> Unused | None:
        """The rule by which a peer's tensor is passed over; None = there is none."""
        return next((passed for passed in self.unused if passed.covers(name)), None)

    def notes(self, theirs: Iterable[str], where: str) -> list[str]:
        """Notes for the user on tensors that are passed over, one line per reason; `where` is the prefix of the names in the file."""
        by_reason: dict[str, list[str]] = {}
        for starts, reason in self.passed_over(theirs).items():
            by_reason.setdefault(reason, []).append(f"{where}{starts}{'*' if starts.endswith('.') else ''}")
        return [f"passed over {', '.join(names)}: {reason}" for reason, names in by_reason.items()]

    def _taken(self, entry: Entry, theirs: Mapping[str, Tensor], where: str) -> Tensor:
        shapes = [part.shape for part in entry.form.give(torch.empty(entry.shape, device="meta"))]
        for name, shape in zip(entry.theirs, shapes, strict=True):
            found = theirs[name]
            check_shape(found, shape, f"{where}{name}", self._key_of(name))
            check_numbers(found, f"{where}{name}")
        return entry.form.take(tuple(theirs[name] for name in entry.theirs), entry.shape)

    def _key_of(self, name: str) -> str:
        return next((f" (config key {hint.key})" for hint in self.hints if hint.part in name), "")


def key_map(
    shapes: Mapping[str, torch.Size],
    places: Iterable[Place],
    dialect: Dialect,
    hints: tuple[Hint, ...] = (),
    unused: tuple[Unused, ...] = (),
) -> KeyMap:
    """The key map of a network.

    Args:
        shapes: of all its tensors, by the names in its state dict.
        places: all its blocks.
        dialect: the peer's.
        hints, unused: see KeyMap.
    """
    rows = {_joined(place.ours, row.ours): (place, row) for place in places for row in place.table}
    entries = []
    for name, shape in shapes.items():
        module, _, leaf = name.rpartition(".")
        assert module in rows, f"no table has {name}"
        place, row = rows[module]
        start = place.compvis if dialect == "compvis" else place.diffusers
        names, form = row.in_dialect(dialect)
        entries.append(Entry(name, shape, tuple(f"{_joined(start, their)}.{leaf}" for their in names), form))
    return KeyMap(tuple(entries), hints, unused)


def shapes_of(build: Callable[[], torch.nn.Module]) -> dict[str, torch.Size]:
    """The shapes of a network's tensors, for `key_map`; the network is built on the meta device.

    Raises:
        UserError: the numbers, which come from a foreign config, do not make a network.
    """
    try:
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in build().state_dict().items()}
    except (RuntimeError, TypeError, ValueError, ArithmeticError, MemoryError) as error:
        raise UserError(f"no network can be built from the config ({error_text(error)})") from error


def check_shape(tensor: Tensor, shape: Sequence[int], what: str, key: str = "") -> None:
    """Refuses a tensor of another shape.

    Args:
        tensor: to be checked.
        shape: it must have.
        what: the tensor's name, for the error.
        key: the config key that sets the shape, in brackets, for the error.

    Raises:
        UserError: the shape is another.
    """
    if tensor.shape != tuple(shape):
        raise UserError(f"{what} has shape {tuple(tensor.shape)}, the config requires {tuple(shape)}{key}")


def check_unread(tensor: Tensor, what: str) -> None:
    """Refuses NaN in a tensor that is passed over, because the file is then broken. Any dtype and infinite numbers are accepted.

    Raises:
        UserError: it holds NaN.
    """
    if any(piece.isnan().any() for piece in tensor.flatten().split(CHECKED_AT_ONCE)):
        raise UserError(f"{what} holds NaN: {DIVERGED}")


def check_numbers(tensor: Tensor, what: str) -> None:
    """Refuses weights that are not real floating-point numbers, or not all finite.

    Raises:
        UserError: another dtype; NaN; infinite numbers.
    """
    if tensor.dtype not in REAL:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in REAL)
        raise UserError(f"{what} holds {str(tensor.dtype).removeprefix('torch.')}; weights are of {known}")
    for piece in tensor.flatten().split(CHECKED_AT_ONCE):
        if not piece.isfinite().all():
            raise UserError(f"{what} holds {'NaN' if piece.isnan().any() else 'infinite numbers'}: {DIVERGED}")


def _joined(start: str, name: str) -> str:
    return ".".join(filter(None, (start, name)))
