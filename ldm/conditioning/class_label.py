"""A class label, added to the time embedding or attended to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ldm.conditioning.conditioner import Conditioner, ConditionerConfig, check_names, context_of, needs
from ldm.conditioning.inputs import ConditionInputs
from ldm.core.condition import Condition
from ldm.core.errors import UserError, unknown
from ldm.core.family import kind


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
            raise UserError("class_label needs num_classes: only training can leave it open, where the data says it")
        return self.num_classes

    @property
    def is_open(self) -> bool:
        """See `ConditionerConfig.is_open`."""
        return self.num_classes is None

    def fitted(self, *, label_names: tuple[str, ...], map_names: tuple[str, ...], has: frozenset[str]) -> ConditionerConfig:
        """See `ConditionerConfig.fitted`."""
        needs("class_label", "labels", has)
        if self.num_classes is None and not label_names:
            raise UserError("class_label: the data's labels are numbers without names: set its num_classes")
        if self.num_classes in (None, len(label_names)) and not self.names:
            return replace(self, num_classes=len(label_names), names=label_names)
        check_names("class_label", self.names, label_names)
        return self

    def build(self, *, context_width: int | None, latent_channels: int) -> ClassLabel:
        """See `ConditionerConfig.build`."""
        return ClassLabel(self, context_of("class_label", context_width) if self.how == "attend" else self.width)


class ClassLabel(Conditioner):
    """A learned row of a table per class, and one for "nothing"."""

    def __init__(self, config: ClassLabelConfig, width: int) -> None:
        super().__init__(config.drop)
        self.config = config
        self.uses_tokens = config.how == "attend"
        self.vector_width = None if self.uses_tokens else width
        self.table = nn.Embedding(config.classes + 1, width)  # the last row: nothing
        nn.init.normal_(self.table.weight, std=1.0 if self.uses_tokens else 0.02)

    def forward(self, inputs: ConditionInputs, latent_size: tuple[int, int]) -> Condition:
        """Vector (B, width) or tokens (B, 1, context width).

        Raises:
            UserError: a label outside -1 to num_classes - 1.
        """
        labels = self.blank(inputs, torch.zeros(inputs.count, dtype=torch.bool)).labels
        assert labels is not None
        wrong = labels[(labels < -1) | (labels >= self.config.classes)]
        if len(wrong):
            raise UserError(f"label {int(wrong[0])} is outside 0 to {self.config.classes - 1} (-1 = none)")
        rows = self.table(labels.to(self.device) % (self.config.classes + 1))  # -1: the last
        return Condition(tokens=rows[:, None]) if self.uses_tokens else Condition(vector=rows)

    def blank(self, inputs: ConditionInputs, rows: Tensor) -> ConditionInputs:
        """Label -1."""
        labels = torch.full((inputs.count,), -1) if inputs.labels is None else inputs.labels
        return replace(inputs, labels=labels.masked_fill(rows.to(labels.device), -1))

    def index_of(self, label: str | int) -> int:
        """The index of a label that the user names; see `label_index`."""
        return label_index(label, self.config.names, self.config.classes)


def label_index(label: str | int, names: tuple[str, ...], classes: int) -> int:
    """The index of a label that the user names, by its name or number.

    Args:
        names: of the classes; empty = they have none.
        classes: how many there are.

    Raises:
        UserError: a number outside the classes, or a name that no class has.
    """
    text = str(label)
    if text in names:
        return names.index(text)
    if text.lstrip("-").isdigit():
        if 0 <= int(text) < classes:
            return int(text)
        raise UserError(f"label {text} is outside 0 to {classes - 1}")
    if names:
        raise unknown("label", text, names)
    raise UserError(f"unknown label {text!r}: this model's labels have no names, give a number from 0 to {classes - 1}")
