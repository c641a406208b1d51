"""A data set as training reads it: samples of one size, in batches by step."""

from __future__ import annotations

import abc
from collections.abc import Iterator

import numpy as np

from ldm.core.errors import UserError
from ldm.core.settings import height_width, in_pixels
from ldm.data.batch import Batch, Sample
from ldm.data.bucket_order import BucketOrder
from ldm.data.config import DataConfig
from ldm.data.facts import DataFacts
from ldm.data.findings import UNLABELLED, Finding, looks_unlabelled
from ldm.data.loader import ShareOfRecords, report_unreadable, steps_in_order
from ldm.data.order import GlobalOrder, Order
from ldm.data.sample_transform import SampleTransform, Split
from ldm.data.sources.picture_sizes import picture_sizes
from ldm.data.sources.source import Source
from ldm.data.unreadable import UnreadableReport

Share = tuple[Batch, tuple[int, ...]]
"""A process's share of a global batch, and its samples' places in it."""


class ImageDataset(abc.ABC):
    """
    Attributes:
        name: for people.
        digest: changes whenever the records may have changed.
        count: of samples; None = not known before all have been read.
        transform: how records become samples; it has the names of labels and map classes.
        unreadable: what could not be read.
        lost: (epoch, shard) of each remote shard that could not be had in training; a resumed run must lose the same.
        places: (turn, offset) of each reader of a stream of which this process is a part, by its number, behind the batch that was given
            last; where it is put before the first batch is where it begins. Empty where the step says all.
        facts: what it can teach.
        findings: what its owner may not expect.
        credits: see `Source.credits`.
    """

    name: str
    digest: str
    count: int | None
    transform: SampleTransform
    unreadable: UnreadableReport
    lost: list[tuple[int, str]]
    places: dict[int, tuple[int, int]]
    facts: DataFacts
    findings: tuple[Finding, ...] = ()
    credits: tuple[str, ...] = ()

    @abc.abstractmethod
    def batches(self, batch_size: int, first_step: int, part: tuple[int, int]) -> Iterator[Share]:
        """The share [start, stop) of the global batches of steps first_step, first_step + 1, ..., without end: a function of the step,
        or of `places`.

        Args:
            batch_size: of the global batch.
            first_step: see above.
            part: see above.
        """

    @abc.abstractmethod
    def some(self, limit: int | None) -> Iterator[Sample]:
        """The first samples, all of them once if limit is None, as in epoch 0."""

    @property
    def description(self) -> str:
        return "a stream of pictures" if self.count is None else f"{self.count} pictures"

    @property
    def card(self) -> str:
        """For the card of a model that is trained on it: what it is, and whose pictures they are."""
        return f"- Data: {self.name}, {self.description}.\n" + "".join(f"- Pictures of {credit}.\n" for credit in self.credits)


class IndexedDataset(ImageDataset):
    """Samples by number, from a local source. A record that cannot be read is counted, and the next readable one stands in for it."""

    _bucket_of: np.ndarray | None = None  # (count,), where the config has buckets

    def __init__(self, source: Source, config: DataConfig, split: Split, seed: int) -> None:
        self.source, self.config, self.seed, self.lost, self.places = source, config, seed, [], {}
        self.name, self.count, self.findings, self.credits = source.name, len(source), source.findings, source.credits
        if config.map_void is None and looks_unlabelled(source.map_classes):
            self.findings += (Finding(UNLABELLED, (source.name,)),)
        map_names = _known(source.map_names, source.map_classes, config.map_void)
        self.transform = SampleTransform(
            config=config,
            split=split,
            seed=seed,
            label_names=source.label_names,
            map_names=map_names,
            has_masks=source.has_masks,
            has_maps=source.has_maps,
            has_boxes=source.has_boxes,
        )
        self.facts = DataFacts(
            has=source.conditions,
            label_names=source.label_names,
            map_names=map_names,
            scan=source.attribute_facts,
            scan_labels=source.label_numbers,
        )
        self.transform_digest = self.transform.digest
        if config.buckets is not None:
            self._bucket_of = config.buckets.nearest(picture_sizes(source))
        self.unreadable = UnreadableReport(len(source) + len(source.unreadable), config.max_lost)
        for key, reason in source.unreadable.items():
            self.unreadable.add(key, reason)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def digest(self) -> str:  # type: ignore[override]
        """Found when it is first needed: a folder's files are read for it."""
        return self.source.digest

    def size_of(self, index: int) -> tuple[int, int]:
        """(height, width) of the image of a sample."""
        return height_width(self.config.size) if self._bucket_of is None else self.config.sizes[self._bucket_of[index]]

    def order(self, batch_size: int) -> Order:
        """In which training reads it, in global batches of so many; each of them of one size."""
        if self._bucket_of is None:
            return GlobalOrder(len(self), batch_size, self.seed)
        return BucketOrder(self._bucket_of, batch_size, self.seed)

    @property
    def buckets(self) -> str:
        """How many pictures each has, for people; "" = there are none."""
        if self._bucket_of is None:
            return ""
        counts = np.bincount(self._bucket_of, minlength=len(self.config.sizes)).tolist()
        each = (f"{in_pixels(size)} {count:,}" for size, count in zip(self.config.sizes, counts, strict=True))
        return f"pictures in each bucket of {self.name} (height x width): {', '.join(each)}"

    def sample(self, index: int, epoch: int, unreadable: UnreadableReport | None = None) -> Sample:
        """Sample `index` as it is in an epoch.

        Args:
            index, epoch: see above.
            unreadable: where to count what cannot be read; None = with all that the set counts.

        Raises:
            UserError: more records are unreadable than the config allows.
        """
        for step in range(len(self)):
            place = (index + step) % len(self)
            try:
                return self.transform(self.source.record(place), epoch, place, self.size_of(index))
            except UserError as error:
                (self.unreadable if unreadable is None else unreadable).add(self.source.key(place), str(error))
        raise UserError(f"{self.name}: no record can be read")

    def batches(self, batch_size: int, first_step: int, part: tuple[int, int]) -> Iterator[Share]:
        order = self.order(batch_size)
        places = tuple(range(*part))
        reported = 0
        share = ShareOfRecords(self.sample, self.unreadable, order, *part)
        for step, (batch, unreadable) in steps_in_order(share, first_step, self.config.workers):
            self.unreadable.add_all(unreadable)
            yield batch, places
            if order.ends_epoch(step):
                reported = report_unreadable(self.unreadable, reported)

    def some(self, limit: int | None) -> Iterator[Sample]:
        return (self.sample(index, 0) for index in range(min(len(self), limit or len(self))))


def _known(names: tuple[str, ...], classes: tuple[int, ...], void: int | None) -> tuple[str, ...]:
    """The names of a map's classes where one of them means "unknown": up to the largest other one that occurs."""
    if void is None or void >= len(names):
        return names
    largest = max((number for number in classes or range(len(names)) if number != void), default=-1)
    return names[: largest + 1]
