"""A render, from its order to its pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ldm.web.models import Description
from ldm.web.order import Command, Order

State = Literal["waiting", "loading", "drawing", "done", "cancelled", "failed"]
ENDED = ("done", "cancelled", "failed")


@dataclass
class Render:
    """One call. Fields are written under the lock of `Renders`.

    Attributes:
        session: of the browser's tab that asked for it.
        command: that draws the same, once it is drawn.
        inputs: names of its files beside the pictures, by slot.
        version: grows with each change.
    """

    id: str
    session: str
    order: Order
    model: Description
    command: Command
    python: str
    inputs: dict[str, str]
    state: State = "waiting"
    done: int = 0
    steps: int = 0
    started: float = 0.0
    first_step: float = 0.0
    seconds: float = 0.0
    error: str = ""
    pictures: list[str] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    num_previews: int = 0
    version: int = 0
    is_cancelled: bool = False

    def plain(self, place: int) -> dict[str, Any]:
        """As JSON; place: in the queue, 0 = in none."""
        left = 0.0
        if self.state == "drawing" and self.done > 1:  # the first step came with the model's opening
            left = (time.monotonic() - self.first_step) / (self.done - 1) * (self.steps - self.done)
        return {
            "id": self.id,
            "state": self.state,
            "place": place,
            "done": self.done,
            "steps": self.steps,
            "seconds_left": round(left, 1),
            "seconds": round(self.seconds, 1),
            "error": self.error,
            "pictures": self.pictures,
            "previews": len(self.previews),
            "preview_number": self.num_previews,
            "is_cancelled": self.is_cancelled,
            "order": self.order.model_dump(),
            "inputs": self.inputs,
            "command": self.command.line,
            "python": self.python,
            "version": self.version,
        }

    @property
    def file_names(self) -> Mapping[str, str]:
        """The files that may be asked for, with their kinds."""
        kinds = {"png": "image/png", "json": "application/json", "npy": "application/octet-stream"}
        return {name: kinds[name.rpartition(".")[2]] for name in (*self.pictures, "grid.png", "parameters.json", *self.inputs.values())}
