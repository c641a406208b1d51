"""Batches in the order of steps: read in place, or ahead of time by worker processes (threads would fight training for the interpreter)."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from itertools import count

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ldm.core.errors import UserError
from ldm.data.batch import Batch, Sample
from ldm.data.order import GlobalOrder
from ldm.data.unreadable import UnreadableReport

Unreadable = dict[str, str]
SampleOf = Callable[[int, int], Sample]  # of (index, epoch)


class _Steps(Dataset[tuple[Batch, Unreadable] | UserError]):
    """A process's share of the global batch by step, with the records that could not be read."""

    def __init__(self, sample: SampleOf, unreadable: UnreadableReport, order: GlobalOrder, part: tuple[int, int]) -> None:
        self.sample, self.unreadable, self.order, self.part = sample, unreadable, order, part

    def __getitem__(self, step: int) -> tuple[Batch, Unreadable] | UserError:
        """An error is returned, to be raised by the caller: a worker process would wrap it in a traceback."""
        start, stop = self.part
        try:
            batch = Batch.of([self.sample(index, epoch) for index, epoch in self.order.indices(step)[start:stop]])
        except UserError as error:
            return error
        return batch, dict(self.unreadable.records)


def steps_in_order(
    sample: SampleOf, unreadable: UnreadableReport, order: GlobalOrder, first_step: int, part: tuple[int, int], workers: int
) -> Iterator[tuple[int, tuple[Batch, Unreadable]]]:
    """(step, (share [start, stop) of its global batch, what could not be read)) from first_step on, without end."""
    steps = _Steps(sample, unreadable, order, part)
    found: Iterator[tuple[Batch, Unreadable] | UserError] = (steps[step] for step in count(first_step))
    if workers:
        loader = DataLoader(steps, batch_size=None, sampler=count(first_step), num_workers=workers, multiprocessing_context=start_method())
        found = iter(loader)
    for step, batch in zip(count(first_step), found, strict=False):
        if isinstance(batch, UserError):
            raise batch
        yield step, batch


def start_method() -> str:
    """How worker processes start: by fork, which copies nothing, on Linux. Windows has no fork, and macOS's libraries do not survive it."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin" else "spawn"


def report_unreadable(unreadable: UnreadableReport, reported: int) -> int:
    """Prints what could not be read, if there are more than the `reported` records; returns how many there are now."""
    if len(unreadable.records) > reported:
        tqdm.write(unreadable.line())
    return len(unreadable.records)
