"""Attributes of an image, several at once: numbers, choices and tags, added to the time embedding as one vector."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm.conditioning.conditioner import Conditioner, ConditionerConfig, Examples
from ldm.conditioning.control import Choice, Control, Number, Tags
from ldm.core.condition import Condition
from ldm.core.errors import UserError, unknown
from ldm.core.family import Family, kind
from ldm.core.random import Streams
from ldm.data.batch import Batch
from ldm.data.facts import ATTRIBUTES, AttributeFacts, DataFacts, number_of, parts_of

FREQUENCIES = 8  # of a number's features: half a period over its range, then twice that, and so on


@dataclass(frozen=True, kw_only=True)
class Attribute(Family, abc.ABC):
    """One attribute: a column of the caption table, or a key of the records' JSON.

    Attributes:
        drop: conditioning dropout probability of this attribute alone, beside the conditioner's own.
    """

    drop: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1:
            raise UserError(f"drop must be a share from 0 to 1, got {self.drop}")

    @property
    @abc.abstractmethod
    def is_open(self) -> bool:
        """See `ConditionerConfig.is_open`."""

    @abc.abstractmethod
    def fitted(self, name: str, facts: AttributeFacts) -> Attribute:
        """The same, with open fields inferred from the training data.

        Raises:
            UserError: values of the data that it does not take.
        """

    @property
    @abc.abstractmethod
    def control(self) -> Control:
        """What a user sets."""

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Of a row of `features`."""

    def check_user(self, name: str, value: Any) -> None:
        """Refuses, by UserError, what a user asks for and no record has, beyond what `features` refuses."""

    @abc.abstractmethod
    def features(self, name: str, value: Any) -> list[float]:
        """A record's or a user's value as numbers.

        Raises:
            UserError: a value that it does not take.
        """


@kind("number")
@dataclass(frozen=True, kw_only=True)
class NumberAttribute(Attribute):
    """A number, as cosines over its range. A record's beyond the range counts as its nearer end; a user's is refused.

    Attributes:
        low, high: the range; None = that of the training data.
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise UserError(f"low must be less than high, got {self.low:g} and {self.high:g}")

    @property
    def is_open(self) -> bool:
        return self.low is None or self.high is None

    def fitted(self, name: str, facts: AttributeFacts) -> NumberAttribute:
        if facts.numbers is None:
            raise UserError(f"attribute {name!r} is a number, but the data has others ({', '.join(facts.names[:5])})")
        low, high = facts.numbers
        return replace(self, low=low if self.low is None else self.low, high=high if self.high is None else self.high)

    @property
    def range(self) -> tuple[float, float]:
        """(low, high).

        Raises:
            UserError: it was left open, and there was no training data to take it from.
        """
        if self.low is None or self.high is None:
            raise UserError("a number needs low and high: only training can infer them, from its data")
        return self.low, self.high

    @property
    def control(self) -> Number:
        low, high = self.range
        return Number(low=low, high=high)

    @property
    def width(self) -> int:
        return FREQUENCIES

    def check_user(self, name: str, value: Any) -> None:
        number, (low, high) = number_of(value), self.range
        if number is not None and not low <= number <= high:
            raise UserError(f"{name} takes a number from {low:g} to {high:g}, the range that the model was trained on, got {number:g}")

    def features(self, name: str, value: Any) -> list[float]:
        number = number_of(value)
        if number is None or not math.isfinite(number):
            raise UserError(f"{name} takes a number, not {value!r}")
        low, high = self.range
        share = min(max((number - low) / (high - low), 0.0), 1.0)
        return [math.cos(math.pi * 2**k * share) for k in range(FREQUENCIES)]


@dataclass(frozen=True, kw_only=True)
class _Named(Attribute, abc.ABC):
    """
    Attributes:
        names: that there are; empty = those of the training data.
    """

    several: ClassVar[str] = ""
    """How several names are written, where a value may have them."""
    names: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        return not self.names

    def fitted(self, name: str, facts: AttributeFacts) -> _Named:
        if not self.names:
            return replace(self, names=facts.names)
        other = next((theirs for theirs in facts.names if theirs not in self.names), None)
        if other is not None:
            raise UserError(f"attribute {name!r} of the data has {other!r}, which is not among its names ({', '.join(self.names)})")
        return self

    @property
    def width(self) -> int:
        return len(self.names)

    def features(self, name: str, value: Any) -> list[float]:
        parts = self._parts(value)
        for part in parts:
            if part not in self.names:
                raise UserError(f"{unknown(name, part, self.names)}{self.several}")
        return [float(known in parts) for known in self.names]

    @abc.abstractmethod
    def _parts(self, value: Any) -> tuple[str, ...]: ...


@kind("choice")
@dataclass(frozen=True, kw_only=True)
class ChoiceAttribute(_Named):
    """One of several names, e.g. a colour, or yes and no."""

    @property
    def control(self) -> Choice:
        return Choice(count=len(self.names), names=self.names)

    def _parts(self, value: Any) -> tuple[str, ...]:
        return (str(value).strip(),)


@kind("tags")
@dataclass(frozen=True, kw_only=True)
class TagsAttribute(_Named):
    """Any number of names at once: a list in JSON, in a table separated by ";"."""

    several: ClassVar[str] = " Several are separated by ';'."

    @property
    def control(self) -> Tags:
        return Tags(names=self.names)

    def _parts(self, value: Any) -> tuple[str, ...]:
        return parts_of(value)


@kind("attributes")
@dataclass(frozen=True, kw_only=True)
class AttributesConfig(ConditionerConfig):
    """
    Attributes:
        fields: by the name of the column or key.
        width: of the vector.
    """

    reads: ClassVar[str] = ATTRIBUTES
    free: ClassVar[tuple[str, ...]] = (*ConditionerConfig.free, "fields.*.drop")
    fields: dict[str, Attribute]
    width: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fields or self.width < 1:
            raise UserError(f"attributes needs at least one field and a width of at least 1, got {len(self.fields)} and {self.width}")

    @property
    def is_open(self) -> bool:
        """See `ConditionerConfig.is_open`."""
        return any(part.is_open for part in self.fields.values())

    def fitted(self, facts: DataFacts) -> AttributesConfig:
        """See `ConditionerConfig.fitted`."""
        super().fitted(facts)
        for name in self.fields:
            if name not in facts.attributes:
                raise unknown("attribute", name, facts.attributes)
        return replace(self, fields={name: part.fitted(name, facts.attributes[name]) for name, part in self.fields.items()})

    def build(self, *, context_width: int | None, latent_channels: int) -> Attributes:
        """See `ConditionerConfig.build`."""
        return Attributes(self)


class Attributes(Conditioner[dict[str, Tensor]]):
    """The sum of a learned vector a feature, for every attribute.

    Its input: by field, (B, 1 + width): 1 and the value's features; all zero is the null input.
    """

    def __init__(self, config: AttributesConfig) -> None:
        super().__init__(config)
        self.config = config
        self.vector_width = config.width
        self.projections = nn.ModuleDict(
            {_module(name): nn.Linear(1 + part.width, config.width, bias=False) for name, part in config.fields.items()}
        )

    @property
    def controls(self) -> dict[str, Control]:
        return {name: part.control for name, part in self.config.fields.items()}

    def forward(self, value: Mapping[str, Tensor], latent_size: tuple[int, int]) -> Condition:
        """Vector (B, width)."""
        parts = [self.projections[_module(name)](features.to(self.device)) for name, features in value.items()]
        return Condition(vector=torch.stack(parts).sum(0))

    def null(self, count: int, latent_size: tuple[int, int]) -> dict[str, Tensor]:
        return {name: torch.zeros(count, 1 + part.width) for name, part in self.config.fields.items()}

    def of_batch(self, batch: Batch, facts: DataFacts) -> dict[str, Tensor]:
        return {name: torch.stack([self._row(name, record) for record in batch.attributes]) for name in self.config.fields}

    def examples(self, batch: Batch, facts: DataFacts, count: int, prompts: tuple[str, ...], latent_size: tuple[int, int]) -> Examples:
        """The records' attributes, those that they have."""
        found = self.of_batch(batch.part(0, count), facts)
        return Examples(value=found, words=tuple(self._words(record) for record in batch.attributes[:count]))

    def of_user(self, value: Mapping[str, Any]) -> dict[str, Tensor]:
        """Values by field; a field that is not there is left open.

        Raises:
            UserError: no such field; a value that it does not take.
        """
        if not isinstance(value, Mapping):
            raise UserError(f"attributes are set one by one: NAME.FIELD=VALUE, with one of {', '.join(self.config.fields)}")
        for name in value:
            if name not in self.config.fields:
                raise unknown("attribute", name, self.config.fields)
            self.config.fields[name].check_user(name, value[name])
        return {name: self._row(name, value)[None] for name in self.config.fields}

    def dropped(self, value: dict[str, Tensor], streams: Streams) -> dict[str, Tensor]:
        """Each attribute by its own probability, apart from the others."""
        kept = {name: streams.uniform(f"drop/attribute/{name}") >= part.drop for name, part in self.config.fields.items()}
        return {name: features * kept[name][:, None] for name, features in value.items()}

    def check(self, facts: DataFacts) -> None:
        """See `Conditioner.check`."""
        for name, part in self.config.fields.items():
            if name in facts.attributes:
                part.fitted(name, facts.attributes[name])

    def _words(self, record: Mapping[str, Any]) -> str:
        there = {name: parts_of(record[name]) for name in self.config.fields if record.get(name) not in (None, "")}
        return ", ".join(f"{name} {'; '.join(parts)}" for name, parts in there.items())

    def _row(self, name: str, record: Mapping[str, Any]) -> Tensor:
        part = self.config.fields[name]
        if record.get(name) in (None, ""):
            return torch.zeros(1 + part.width)
        return torch.tensor([1.0, *part.features(name, record[name])])


def _module(name: str) -> str:
    """A field's name as a module may have it."""
    return f"field_{name.replace('.', '_')}"
