"""Where the conditioners' weights stand in CompVis's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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

TRANSFORMER, TABLE = "transformer.", "embedding.weight"
_WITHOUT_NOTHING = Form(
    lambda mine: (mine[:-1],), lambda theirs, shape: torch.cat([theirs[0], theirs[0].new_zeros(1, shape[1])])
)  # a table whose last row, for "nothing", the peer's has not


@dataclass(frozen=True)
class StoredPart:
    """Weights of a conditioner: what our names and the peer's start with, and the map of the rest."""

    ours: str
    theirs: str
    keys: KeyMap

    def give(self, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `KeyMap.give`; of all conditioners' tensors."""
        given = self.keys.give({name.removeprefix(self.ours): tensor for name, tensor in mine.items() if name.startswith(self.ours)})
        return {self.theirs + name: tensor for name, tensor in given.items()}

    def take(self, theirs: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """See `KeyMap.take`; of what the peer's file has of its conditioner."""
        for name, tensor in theirs.items():
            if not name.startswith(self.theirs):
                raise UserError(f"{where}{name}, of shape {tuple(tensor.shape)}, has no place in the conditioner that the config describes")
        inside = {name.removeprefix(self.theirs): tensor for name, tensor in theirs.items()}
        return {self.ours + name: tensor for name, tensor in self.keys.take(inside, where + self.theirs).items()}

    def notes(self, theirs: Mapping[str, Tensor], where: str) -> list[str]:
        """See `KeyMap.notes`; of what the peer's file has of its conditioner."""
        return self.keys.notes((name.removeprefix(self.theirs) for name in theirs), where + self.theirs)


def has_nothing(config: ClassLabelConfig, theirs: Mapping[str, Tensor]) -> bool:
    """Whether a file's table of classes has a row for "nothing", as cin256-v2's has."""
    return TABLE not in theirs or len(theirs[TABLE]) != config.classes


def transformer_size(config: BertScratchConfig | BoxesConfig) -> tuple[int, int]:
    """Number of tokens that a conditioner's transformer knows, and the most that it reads at once."""
    if isinstance(config, BertScratchConfig):
        return WORDS, config.max_tokens
    return config.vocabulary, 3 * config.max_boxes + 2


def stored_part(name: str, config: ConditionerConfig, width: int, *, with_nothing: bool = True) -> StoredPart | None:
    """A conditioner's weights in CompVis's dialect; None = it has none.

    Args:
        name: the conditioner's.
        config: its config.
        width: of the tokens that the network attends to.
        with_nothing: whether the peer's table of classes has a row for "nothing".
    """
    ours = f"parts.{name}."
    if isinstance(config, (BertScratchConfig, BoxesConfig)):
        return StoredPart(f"{ours}encoder.", TRANSFORMER, transformer_keys(config, *transformer_size(config), "compvis"))
    if isinstance(config, ClassLabelConfig):
        form = SAME if with_nothing else _WITHOUT_NOTHING
        entry = Entry("table.weight", torch.Size((config.classes + 1, width)), (TABLE,), form)
        return StoredPart(ours, "", KeyMap((entry,), (Hint(TABLE, "n_classes or embed_dim"),)))
    if isinstance(config, SemanticMapConfig) and config.channels is not None:
        shape = torch.Size((config.channels, config.classes, 1, 1))
        entry = Entry("mix.weight", shape, ("channel_mapper.weight",), SAME)
        return StoredPart(ours, "", KeyMap((entry,), (Hint("channel_mapper", "in_channels or out_channels"),)))
    return None
