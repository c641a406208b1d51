"""Batches in the order of steps: read in place, or ahead of time by worker processes (threads would fight training for the interpreter)."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ldm.core.errors import UserError
from ldm.data.batch import Batch, Sample
from ldm.data.order import Order
from ldm.data.unreadable import UnreadableReport

S = TypeVar("S")
K = TypeVar("K")
Unreadable = dict[str, str]
SampleOf = Callable[[int, int], Sample]  # of (index, epoch)


class _Read(Dataset[S | UserError], Generic[K, S]):
    """What is read, by its key."""

    def __init__(self, read: Callable[[K], S]) -> None:
        self.read = read

    def __getitem__(self, key: K) -> S | UserError:
        """An error is returned, to be raised by the caller: a worker process would wrap it in a traceback."""
        try:
            return self.read(key)
        except UserError as error:
            return error


def read_ahead(read: Callable[[K], S], keys: Iterable[K], workers: int) -> Iterator[S]:
    """What is read of each key, in order.

    Args:
        read: see above; what it gives may have a method `pin_memory`.
        keys: may be without end.
        workers: processes that read ahead, into pinned memory where there is a GPU; 0 = none.
    """
    data = _Read(read)
    found: Iterable[S | UserError] = (data[key] for key in keys)
    if workers:
        found = DataLoader(
            data,
            batch_size=None,
            sampler=keys,
            num_workers=workers,
            multiprocessing_context=start_method(),
            pin_memory=torch.cuda.is_available(),
        )
    for one in found:
        if isinstance(one, UserError):
            raise one
        yield one


def steps_in_order(share: Callable[[int], S], first_step: int, workers: int) -> Iterator[tuple[int, S]]:
    """(step, share of its global batch) from first_step on, without end; see `read_ahead`."""
    return zip(count(first_step), read_ahead(share, count(first_step), workers), strict=False)


@dataclass(frozen=True)
class ShareOfRecords:
    """Reads the share [start, stop) of a step's global batch, and says which records could not be read so far."""

    sample: SampleOf
    unreadable: UnreadableReport
    order: Order
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
