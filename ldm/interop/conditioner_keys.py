"""Conditioners' weights in CompVis's files, by kind: without it class, text, layout and semantic models could not be exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ldm.conditioning.bert_scratch import WORDS, BertScratchConfig
from ldm.conditioning.boxes import BoxesConfig
from ldm.conditioning.class_label import ClassLabelConfig
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.conditioning.semantic_map import SemanticMapConfig
from ldm.core.errors import UserError
from ldm.interop.keymap import SAME, Entry, Form, Hint, KeyMap
from ldm.interop.transformer_keys import transformer_keys

Kind = TypeVar("Kind", bound=ConditionerConfig)

TRANSFORMER, TABLE = "transformer.", "embedding.weight"
_WITHOUT_NULL = Form(
    lambda mine: (mine[:-1],), lambda theirs, shape: torch.cat([theirs[0], theirs[0].new_zeros(1, shape[1])])
)  # a table of classes; the peer's lacks the last row, the null class


@dataclass(frozen=True)
class StoredPart:
    """Weights of a conditioner: the prefixes of our names and the peer's, and the key map of the rest."""

    ours: str
    theirs: str
    keys: KeyMap

    def give(self, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `KeyMap.give`; `mine` are the tensors of all conditioners."""
        given = self.keys.give({name.removeprefix(self.ours): tensor for name, tensor in mine.items() if name.startswith(self.ours)})
        return {self.theirs + name: tensor for name, tensor in given.items()}

    def take(self, theirs: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """See `KeyMap.take`; `theirs` are the tensors of the peer's conditioner."""
        for name, tensor in theirs.items():
            if not name.startswith(self.theirs):
                raise UserError(f"{where}{name}, of shape {tuple(tensor.shape)}, has no place in the conditioner that the config describes")
        inside = {name.removeprefix(self.theirs): tensor for name, tensor in theirs.items()}
        return {self.ours + name: tensor for name, tensor in self.keys.take(inside, where + self.theirs).items()}

    def notes(self, theirs: Mapping[str, Tensor], where: str) -> list[str]:
        """See `KeyMap.notes`; `theirs` are the tensors of the peer's conditioner."""
        return self.keys.notes((name.removeprefix(self.theirs) for name in theirs), where + self.theirs)


def of_kind(conditioning: Mapping[str, ConditionerConfig], kind: type[Kind]) -> dict[str, Kind]:
    """The conditioners of one kind, by name."""
    return {name: config for name, config in conditioning.items() if type(config) is kind}


def has_null_class(config: ConditionerConfig, theirs: Mapping[str, Tensor]) -> bool:
    """False for class labels whose table in the file lacks the row of the null class; cin256-v2's has it."""
    match config:
        case ClassLabelConfig():
            return TABLE not in theirs or len(theirs[TABLE]) != config.classes
    return True


def transformer_size(config: BertScratchConfig | BoxesConfig) -> tuple[int, int]:
    """Vocabulary and maximal number of tokens of a conditioner's transformer."""
    match config:
        case BertScratchConfig():
            return WORDS, config.max_tokens
        case BoxesConfig():
            return config.vocabulary, 3 * config.max_boxes + 2


def stored_part(name: str, config: ConditionerConfig, width: int, *, with_null: bool = True) -> StoredPart | None:
    """A conditioner's weights in CompVis's dialect; None = it has none.

    Args:
        name: of the conditioner.
        config: its config.
        width: of the tokens that the network attends to.
        with_null: whether the peer's table of classes has a row for the null class.
    """
    ours = f"parts.{name}."
    match config:
        case BertScratchConfig() | BoxesConfig():
            return StoredPart(f"{ours}encoder.", TRANSFORMER, transformer_keys(config, *transformer_size(config), "compvis"))
        case ClassLabelConfig():
            form = SAME if with_null else _WITHOUT_NULL
            entry = Entry("table.weight", torch.Size((config.classes + 1, width)), (TABLE,), form)
            return StoredPart(ours, "", KeyMap((entry,), (Hint(TABLE, "n_classes or embed_dim"),)))
        case SemanticMapConfig(channels=int(channels)):
            entry = Entry("mix.weight", torch.Size((channels, config.classes, 1, 1)), ("channel_mapper.weight",), SAME)
            return StoredPart(ours, "", KeyMap((entry,), (Hint("channel_mapper", "in_channels or out_channels"),)))
    return None
