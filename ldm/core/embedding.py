"""Tables of learned vectors."""

from __future__ import annotations

import torch
from torch import nn


def embedding(rows: int, width: int, std: float = 1.0) -> nn.Embedding:
    """(rows, width) of normal numbers.

    On the meta device none are drawn: there `normal_` loads torch's compiler, which takes longer than to draw a picture.
    """
    table: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)
    if not table.weight.is_meta:
        nn.init.normal_(table.weight, std=std)
    return table
