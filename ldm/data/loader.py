"""Batches in the order of steps: read in place, or ahead of time by worker processes (threads would fight training for the interpreter)."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ldm.core.errors import UserError
from ldm.data.batch import Batch, Sample
from ldm.data.order import GlobalOrder
from ldm.data.unreadable import UnreadableReport

S = TypeVar("S")
Unreadable = dict[str, str]
SampleOf = Callable[[int, int], Sample]  # of (index, epoch)


class _Steps(Dataset[S | UserError], Generic[S]):
    """A process's share of the global batch by step."""

    def __init__(self, share: Callable[[int], S]) -> None:
        self.share = share

    def __getitem__(self, step: int) -> S | UserError:
        """An error is returned, to be raised by the caller: a worker process would wrap it in a traceback."""
        try:
            return self.share(step)
        except UserError as error:
            return error


def steps_in_order(share: Callable[[int], S], first_step: int, workers: int) -> Iterator[tuple[int, S]]:
    """(step, share of its global batch) from first_step on, without end.

    Args:
        share: reads it; what it gives may have a method `pin_memory`.
        first_step: see above.
        workers: processes that read ahead, into pinned memory where there is a GPU; 0 = none.
    """
    steps = _Steps(share)
    found: Iterator[S | UserError] = (steps[step] for step in count(first_step))
    if workers:
        loader = DataLoader(
            steps,
            batch_size=None,
            sampler=count(first_step),
            num_workers=workers,
            multiprocessing_context=start_method(),
            pin_memory=torch.cuda.is_available(),
        )
        found = iter(loader)
    for step, batch in zip(count(first_step), found, strict=False):
        if isinstance(batch, UserError):
            raise batch
        yield step, batch


@dataclass(frozen=True)
class ShareOfRecords:
    """Reads the share [start, stop) of a step's global batch, and says which records could not be read so far."""

    sample: SampleOf
    unreadable: UnreadableReport
    order: GlobalOrder
    start: int
    stop: int

    def __call__(self, step: int) -> tuple[Batch, Unreadable]:
        batch = Batch.of([self.sample(index, epoch) for index, epoch in self.order.indices(step)[self.start : self.stop]])
        return batch, dict(self.unreadable.records)


def start_method() -> str:
    """How worker processes start: by fork, which copies nothing, on Linux. Windows has no fork, and macOS's libraries do not survive it."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin" else "spawn"


def report_unreadable(unreadable: UnreadableReport, reported: int) -> int:
    """Prints what could not be read, if there are more than the `reported` records; returns how many there are now."""
    if len(unreadable.records) > reported:
        tqdm.write(unreadable.line())
    return len(unreadable.records)
