"""Where half precision must not reach."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A block that autocast leaves alone; on the meta device, which torch.autocast does not know, there is none to leave."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
