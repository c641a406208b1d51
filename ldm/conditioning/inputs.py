"""Conditions as values, before any network encodes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ConditionInputs:
    """What each conditioner reads, for B images.

    A conditioner's value is of a type of its own: a Tensor (B, ...), B texts, or a tuple or dict of those. Each has a null
    value, see `Conditioner.null`, so a row is made unconditional by changing values.

    Attributes:
        count: B.
        values: by the conditioner's name; one that is not there is unconditional.
    """

    count: int
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            assert rows_in(value) == self.count, f"{rows_in(value)} rows of {name} for {self.count} images"

    def beside(self, values: Mapping[str, Any]) -> ConditionInputs:
        """With more values, which replace those of the same name."""
        return replace(self, values={**self.values, **values})

    def part(self, start: int, stop: int) -> ConditionInputs:
        """Rows start to stop."""
        values = {name: part_of(value, start, stop) for name, value in self.values.items()}
        return ConditionInputs(count=len(range(self.count)[start:stop]), values=values)


def rows_in(value: Any) -> int:
    """B of a conditioner's value."""
    if isinstance(value, dict):
        return rows_in(next(iter(value.values())))
    return rows_in(value[0]) if _is_compound(value) else len(value)


def part_of(value: Any, start: int, stop: int) -> Any:
    """Rows start to stop of a conditioner's value."""
    if isinstance(value, dict):
        return {name: part_of(part, start, stop) for name, part in value.items()}
    return type(value)(*(part_of(part, start, stop) for part in value)) if _is_compound(value) else value[start:stop]


def where(rows: Tensor, null: Any, value: Any) -> Any:
    """`null` where rows, (B,) bool, is True, else `value`; tensors may differ in sizes that broadcast."""
    if isinstance(value, dict):
        return {name: where(rows, null[name], part) for name, part in value.items()}
    if isinstance(value, Tensor):
        chosen = rows.to(value.device).reshape(-1, *[1] * (value.ndim - 1))
        return torch.where(chosen, null.to(value), value)
    if _is_compound(value):
        return type(value)(*(where(rows, n, v) for n, v in zip(null, value, strict=True)))
    return tuple(n if is_null else v for is_null, n, v in zip(rows.tolist(), null, value, strict=True))


def _is_compound(value: Any) -> bool:
    """Whether it is a named tuple of values, not one of texts."""
    return isinstance(value, tuple) and hasattr(value, "_fields")
