"""Batches in the order of steps: read in place, or ahead of time by worker processes (threads would fight training for the interpreter)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ldm.data.batch import Batch
from ldm.data.open import PictureSet
from ldm.data.order import GlobalOrder

Lost = dict[str, str]


class _Steps(Dataset):
    """A process's share of the global batch by step, with the records that could not be read."""

    def __init__(self, data: PictureSet, order: GlobalOrder, part: tuple[int, int]) -> None:
        self.data, self.order, self.part = data, order, part

    def __getitem__(self, step: int) -> tuple[Batch, Lost]:
        start, stop = self.part
        batch = Batch.of([self.data.sample(index, epoch) for index, epoch in self.order.indices(step)[start:stop]])
        return batch, dict(self.data.losses.lost)


def batches(data: PictureSet, order: GlobalOrder, first_step: int, part: tuple[int, int]) -> Iterator[tuple[Batch, tuple[int, ...]]]:
    """A process's share of the global batch of first_step, first_step + 1, ..., without end.

    Args:
        data: the samples; `data.config.workers` processes read ahead, 0 = none.
        order: which of them a step sees.
        part: [start, stop) of the global batch.

    Yields:
        The share, and its samples' places in the global batch. What could not be read is said in a line at each epoch's end.
    """
    steps = _Steps(data, order, part)
    places = tuple(range(*part))
    told = 0
    for step, (batch, lost) in zip(count(first_step), _in_order(steps, first_step, data.config.workers), strict=False):
        for key, reason in lost.items():
            if key not in data.losses.lost:
                data.losses.add(key, reason)
        yield batch, places
        ends_epoch = order.indices(step)[-1][1] != order.indices(step + 1)[-1][1]
        if ends_epoch and len(data.losses.lost) > told:
            tqdm.write(data.losses.line())
            told = len(data.losses.lost)


def _in_order(steps: _Steps, first_step: int, workers: int) -> Iterator[tuple[Batch, Lost]]:
    if workers == 0:
        return (steps[step] for step in count(first_step))
    ahead = DataLoader(steps, batch_size=None, sampler=count(first_step), num_workers=workers, multiprocessing_context="fork")  # type: ignore[arg-type]
    return iter(ahead)
