"""States of releases that wrote one file, `state.pt`, an archive of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = "state.pt"


def read_earlier(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its tensors, on the CPU, and the rest in the form of `Progress`.

    What optimizers remember has names by the weight's number in its group, `optimizers/GROUP/NUMBER/PART`; all else is named as today.

    Raises:
        Exception: of many kinds; the file is damaged, or holds other objects than tensors, numbers and texts, none of which is ever made.
    """
    content = torch.load(path / FILE, map_location="cpu", weights_only=True)
    tensors: dict[str, Tensor] = {}
    texts: dict[str, Any] = {}
    for kind in ("trained", "averaged"):
        for name, module in content[kind].items():
            for key, value in module.items():
                (tensors if isinstance(value, Tensor) else texts)[f"{kind}/{name}/{key}"] = value
    for group, optimizer in content["optimizers"].items():
        for number, parts in optimizer["state"].items():
            tensors |= {f"optimizers/{group}/{number}/{part}": value for part, value in parts.items()}
    lost = [list(place) for place in content.get("lost", ())]
    return tensors, {"data": content["data"], "lost": lost, "scaler": content["scaler"], "texts": texts}
