"""A class label, added to the time embedding or attended to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ldm.conditioning.conditioner import Conditioner, ConditionerConfig, Examples, check_names, context_of
from ldm.conditioning.control import Choice, Control
from ldm.core.condition import Condition
from ldm.core.embedding import embedding
from ldm.core.errors import UserError, unknown
from ldm.core.family import kind
from ldm.data.batch import Batch
from ldm.data.facts import LABELS, DataFacts


@kind("class_label")
@dataclass(frozen=True, kw_only=True)
class ClassLabelConfig(ConditionerConfig):
    """
    Attributes:
        num_classes: labels are 0 to num_classes - 1; None = as many as the training data has.
        names: their names, if they have any.
        how: "embed" = a vector added to the time embedding; "attend" = one token for cross-attention.
        width: of the vector, for "embed".
    """

    reads: ClassVar[str] = LABELS
    num_classes: int | None = None
    names: tuple[str, ...] = ()
    how: Literal["embed", "attend"] = "embed"
    width: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.num_classes is not None and self.num_classes < 1) or self.width < 1:
            raise UserError(f"num_classes and width must be at least 1, got {self.num_classes}, {self.width}")
        if self.names and len(self.names) != self.num_classes:
            raise UserError(f"{len(self.names)} label names for {self.num_classes} classes")

    @property
    def classes(self) -> int:
        """num_classes, once it is known.

        Raises:
            UserError: it was left open, and there was no training data to take it from.
        """
        if self.num_classes is None:
            raise UserError("class_label needs num_classes: only training can infer it, from its data")
        return self.num_classes

    @property
    def is_open(self) -> bool:
        """See `ConditionerConfig.is_open`."""
        return self.num_classes is None

    def fitted(self, facts: DataFacts) -> ConditionerConfig:
        """See `ConditionerConfig.fitted`."""
        super().fitted(facts)
        if self.num_classes is None and not facts.label_names:
            most = max(facts.scan_labels(), default=None)
            there = "" if most is None else f", the largest is {most}"
            raise UserError(f"class_label: the data's labels are numbers without names{there}: set its num_classes")
        if self.num_classes in (None, len(facts.label_names)) and not self.names:
            return replace(self, num_classes=len(facts.label_names), names=facts.label_names)
        check_names("class_label", self.names, facts.label_names)
        return self

    def build(self, *, context_width: int | None, latent_channels: int) -> ClassLabel:
        """See `ConditionerConfig.build`."""
        return ClassLabel(self, context_of("class_label", context_width) if self.how == "attend" else self.width)


class ClassLabel(Conditioner[Tensor]):
    """A learned row of a table per class, and one for no class. Its input: (B,) int64; -1 is the null input."""

    def __init__(self, config: ClassLabelConfig, width: int) -> None:
        super().__init__(config)
        self.config = config
        self.uses_tokens = config.how == "attend"
        self.vector_width = None if self.uses_tokens else width
        self.table = embedding(config.classes + 1, width, std=1.0 if self.uses_tokens else 0.02)  # the last row: no class

    @property
    def controls(self) -> dict[str, Control]:
        return {"": Choice(count=self.config.classes, names=self.config.names)}

    def forward(self, value: Tensor, latent_size: tuple[int, int]) -> Condition:
        """Vector (B, width) or tokens (B, 1, context width).

        Raises:
            UserError: a label outside -1 to num_classes - 1.
        """
        wrong = value[(value < -1) | (value >= self.config.classes)]
        if len(wrong):
            raise UserError(f"label {int(wrong[0])} is outside 0 to {self.config.classes - 1} (-1 = none)")
        rows = self.table(value.to(self.device) % (self.config.classes + 1))  # -1: the last
        return Condition(tokens=rows[:, None]) if self.uses_tokens else Condition(vector=rows)

    def null(self, count: int, latent_size: tuple[int, int]) -> Tensor:
        return torch.full((count,), -1)

    def of_batch(self, batch: Batch, facts: DataFacts) -> Tensor | None:
        """The records' labels, by their names where model and data have some; None = no record has one."""
        if not (batch.labels >= 0).any():
            return None
        if not facts.label_names or facts.label_names == self.config.names:
            return batch.labels
        named = {int(label): self.index_of(facts.label_names[label]) for label in batch.labels.unique() if label >= 0}
        return torch.tensor([named.get(label, -1) for label in batch.labels.tolist()])

    def of_user(self, value: Any) -> Tensor:
        """A class by name or number; see `label_index`."""
        return torch.tensor([self.index_of(value)])

    def examples(self, batch: Batch, facts: DataFacts, count: int, prompts: tuple[str, ...], latent_size: tuple[int, int]) -> Examples:
        """The classes one after the other."""
        value = torch.arange(count) % self.config.classes
        return Examples(value=value, words=tuple(self.config.names[i] if self.config.names else str(i) for i in value.tolist()))

    def check(self, facts: DataFacts) -> None:
        """See `Conditioner.check`."""
        for name in facts.label_names:
            self.index_of(name)
        if not facts.label_names:
            facts.check_labels(self.config.classes)

    def index_of(self, label: str | int) -> int:
        """The index of a label that the user names; see `label_index`."""
        return label_index(label, self.config.names, self.config.classes)


def label_index(label: str | int, names: tuple[str, ...], classes: int) -> int:
    """The index of a label that the user names, by its name or, where no name is a number, by its number.

    Args:
        names: of the classes; empty = they have none.
        classes: how many there are.

    Raises:
        UserError: a number outside the classes, or a name that no class has.
    """
    text = str(label)
    if text in names:
        return names.index(text)
    if any(name.isdigit() for name in names):  # a number means a name here
        raise unknown("label", text, names)
    if text.lstrip("-").isdigit():
        if 0 <= int(text) < classes:
            return int(text)
        raise UserError(f"label {text} is outside 0 to {classes - 1}")
    if names:
        raise unknown("label", text, names)
    raise UserError(f"unknown label {text!r}: this model's labels have no names, give a number from 0 to {classes - 1}")
