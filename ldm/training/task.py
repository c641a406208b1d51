"""What the engine asks of a stage of training, and gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ldm.core.distributed import World
from ldm.data.image_dataset import ImageDataset
from ldm.training.ema import Ema
from ldm.training.parallel import SharedGradients

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Numbers for the log, and plain lines about them; see `MeasuredOn`. `samples`: what the sample grid shows, in words, if in any."""

    metrics: dict[str, float] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    samples: str = ""


@dataclass(frozen=True, kw_only=True)
class MeasuredOn:
    """What an evaluation measures, so that numbers of training pictures are never taken for held-out ones.

    Attributes:
        pictures: in a line, "held-out" or "training".
        prefix: of the metrics' names.
    """

    pictures: str
    prefix: str

    @staticmethod
    def of(held_out: ImageDataset | None) -> MeasuredOn:
        """None = there are no held-out pictures, and training pictures stand in for them."""
        return MeasuredOn(pictures="training", prefix="train_eval") if held_out is None else MeasuredOn(pictures="held-out", prefix="val")


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a task needs to make the gradients of one step."""

    step: int
    world: World
    autocast_dtype: torch.dtype | None
    scaler: torch.amp.GradScaler
    batch_size: int  # global; losses are sums over samples divided by it
    accumulate: int
    shared: dict[str, SharedGradients]  # by group

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast_to(self.world.device, self.autocast_dtype)

    @property
    def micro_batches(self) -> int:
        """At most, and on a process with fewer samples as many: where weights are shared out, all processes compute together."""
        return max(1, min(self.accumulate, self.batch_size // self.world.size))

    def forward(self, group: str, work: Callable[[], T], *, is_last: bool) -> T:
        """What is computed with a group's weights, to be sent backward; see `SharedGradients.forward`."""
        return self.shared[group].forward(work, is_last=is_last)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of the global batch's loss, of which this is the process's share; scaled where fp16 needs it."""
        self.scaler.scale(loss * self.world.size).backward()


def autocast_to(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


class Task(Protocol):
    """A stage of training: its modules, its data, its loss."""

    trained: dict[str, nn.Module]  # saved in the training state
    averaged: dict[str, Ema[Any]]  # averages of some of them, by the same names
    groups: dict[str, list[nn.Parameter]]  # one optimizer each
    data_digest: str  # of the training data, which must not change between sittings
    lost: list[tuple[int, str]]  # what of it could not be had, see `ImageDataset.lost`; a resumed run must lose the same
    places: dict[int, tuple[int, int]]  # of what reads it, see `ImageDataset.places`

    def describe(self) -> dict[str, int]:
        """Parameters per part."""

    def batches(self, first_step: int) -> Iterator[Any]:
        """This process's share of the global batch of step first_step, first_step + 1, ..."""

    def names(self, batch: Any) -> tuple[str, ...]:
        """Names of the samples in a batch."""

    def accumulate(self, batch: Any, now: Pass) -> dict[str, Tensor]:
        """Adds this process's share of the step's gradients; returns its share of the numbers to log, `loss` among them."""

    def evaluate(self, autocast: AbstractContextManager[Any]) -> Evaluation:
        """The same on all processes, which all call it, as they do what follows."""

    def sample_grid(self, autocast: AbstractContextManager[Any]) -> Tensor:
        """(3, H, W) in [0, 1]: the fixed-seed sample grid."""

    def save(self, folder: Path, step: int, steps: int) -> None:
        """Writes the loadable checkpoint, from the first process."""
