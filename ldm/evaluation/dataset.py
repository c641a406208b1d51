"""What both evaluations share: the pictures, brought to size as in training, their features, and the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoints.model import AutoencoderSpec, LatentDiffusionSpec
from ldm.core.distributed import ALONE, World
from ldm.core.errors import UserError
from ldm.core.settings import Size
from ldm.data.buckets import Buckets, sizes_of
from ldm.data.config import DataConfig, Depth, Fit
from ldm.data.image_dataset import IndexedDataset
from ldm.data.open import open_dataset
from ldm.data.sample_transform import Split
from ldm.data.stream import is_remote
from ldm.evaluation.settings import MOST
from ldm.metrics.features import SHOWN_AS, Features, cached_features
from ldm.metrics.report import Metric

AT_ONCE = 16  # pictures a batch
DATA_SEED = 0  # of the part of each picture that `fit: random` keeps; nothing else is drawn
FITS: Mapping[Fit, str] = {
    "centre": "scaled until it covers the size, its centre kept",
    "random": "scaled until it covers the size, a random part kept, the same in every evaluation",
    "pad": "scaled until it fits into the size, laid on the background",
    "stretch": "each side scaled by itself",
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pictures are brought to size: as the model's training did, without augmentation."""

    size: Size
    buckets: Buckets | None = None
    channels: int
    background: tuple[int, int, int]
    fit: Fit = "centre"
    depth: Depth = 8
    levels: tuple[float, float] | None = None
    map_void: int | None = None

    @staticmethod
    def of(spec: LatentDiffusionSpec | AutoencoderSpec, background: tuple[int, int, int] | None = None) -> Preprocessing:
        """As the training of a model brought its pictures to size.

        Args:
            spec: of the model.
            background: that transparent pictures are laid on; None = as in training.
        """
        return Preprocessing(
            size=spec.size,
            buckets=spec.buckets,
            fit=spec.fit,
            channels=spec.first_stage.image_channels,
            background=background or spec.background,
            depth=spec.depth,
            levels=spec.levels,
            map_void=spec.map_void if isinstance(spec, LatentDiffusionSpec) else None,
        )

    @property
    def smallest(self) -> tuple[int, int]:
        """(height, width) of the images with the shortest side."""
        return min(sizes_of(self.size, self.buckets), key=min)

    def plain(self) -> dict[str, object]:
        """For the JSON."""
        return {
            "size": self.size if isinstance(self.size, int) else list(self.size),
            **({} if self.buckets is None else {"buckets": [list(size) for size in self.buckets.sizes]}),
            "channels": self.channels,
            "background": list(self.background),
            "depth": self.depth,
            "levels": self.levels and list(self.levels),
            "fit": f"{self.fit}: {FITS[self.fit]}; antialiased; no augmentation",
            "inception_sees": SHOWN_AS,
        }


@dataclass(frozen=True, kw_only=True)
class DrawnFrom:
    """Pictures of a split, in its order.

    Attributes:
        place: as the user named it.
        split: "train", "val", or "all" of what has no such split.
        data: the whole of it.
        count: how many are taken, from the first.
    """

    place: str
    split: str
    data: IndexedDataset
    count: int

    def by_size(self, numbers: Sequence[int]) -> dict[tuple[int, int], list[int]]:
        """Numbers of pictures by (height, width); beyond `count` it is the first again. All those of one size lie together."""
        found: dict[tuple[int, int], list[int]] = {}
        for number in numbers:
            found.setdefault(self.data.size_of(number % self.count), []).append(number)
        return found

    def groups(self, numbers: Sequence[int]) -> Iterator[list[int]]:
        """The same, at most AT_ONCE of one size at a time."""
        for some in self.by_size(numbers).values():
            for first in range(0, len(some), AT_ONCE):
                yield some[first : first + AT_ONCE]

    def images(self, numbers: Sequence[int]) -> Tensor:
        """(B, C, H, W) in [-1, 1], of pictures of one size."""
        return torch.stack([self.data.sample(number, 0).image for number in numbers])

    def batches(self, world: World = ALONE) -> Iterator[Tensor]:
        """(B, C, H, W) in [-1, 1], each of one size, in the order of `groups`; each process has its own, see `World.in_turn`."""
        return map(self.images, list(self.groups(range(self.count)))[world.rank :: world.size])

    def in_order(self, rows: Tensor) -> Tensor:
        """(count, ...): what was computed of the `batches` of all processes in turn, in the order of the pictures."""
        return in_order(rows, self.groups(range(self.count)))

    def features(self, network: Features, what: str, world: World = ALONE) -> Tensor:
        """(count, D), from the user's cache if data, transform and network are the same; else each process computes some."""
        key, unreadable = (self.data.digest, self.data.transform_digest, network.digest), self.data.unreadable.records

        def made() -> Tensor:
            return self.in_order(network.of(self.batches(world), self.count, what, world))

        return cached_features(key, self.count, made, unreadable, world)

    def plain(self) -> dict[str, object]:
        """For the JSON."""
        return {
            "place": self.place,
            "split": self.split,
            "pictures": self.count,
            "of": len(self.data),
            "unreadable": len(self.data.unreadable.records),
            "digest": self.data.digest,
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """An evaluation.

    Attributes:
        about: what was evaluated and how, for the JSON.
        metrics: in the order of the table.
        attribution: which stage is the limit, for the JSON; its "line" is for people too.
        remarks: what makes the numbers mean less, for people.
    """

    about: dict[str, Any]
    metrics: list[Metric]
    attribution: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def in_order(rows: Tensor, groups: Iterable[Sequence[int]]) -> Tensor:
    """(N, ...) rows in the order of their numbers, from those of groups of numbers, one group behind the other."""
    numbers = torch.tensor([number for group in groups for number in group])
    return rows[numbers.argsort()]


def training_images(place: str, how: Preprocessing, count: int | None = None) -> DrawnFrom:
    """The training split of a place, or all of a folder without splits.

    Args:
        place: as a config's data.train.
        how: see Preprocessing.
        count: how many, at most; None = all, MOST at most.

    Raises:
        UserError: nothing there, or fewer than 2.
    """
    return _drawn(place, "train", DataConfig(train=place, **_keys(how)), count)


def held_out_images(place: str, how: Preprocessing, shared: bool, count: int | None = None) -> DrawnFrom:
    """The held-out split of a place.

    Args:
        place: as a config's data.val.
        how: see Preprocessing.
        shared: whether the same place is trained on, so that only a stored split is held out; else all of a folder without splits.
        count: see training_images.

    Raises:
        UserError: nothing there, no such split, or fewer than 2.
    """
    return _drawn(place, "val", DataConfig(train=place if shared else "", val=place, **_keys(how)), count)


def _keys(how: Preprocessing) -> dict[str, Any]:
    return {name: getattr(how, name) for name in ("size", "buckets", "fit", "channels", "background", "depth", "levels", "map_void")}


def _drawn(place: str, split: Split, config: DataConfig, count: int | None) -> DrawnFrom:
    if is_remote(place):
        raise UserError(f"{place}: evaluation reads pictures more than once: fetch the shards and name their folder")
    data = open_dataset(config, split, DATA_SEED)
    assert isinstance(data, IndexedDataset)
    taken = min(len(data), count or MOST)
    if taken < 2:
        raise UserError(f"{place}: {taken} picture{'s' * (taken != 1)} in split {split}; a distance between sets needs at least 2")
    return DrawnFrom(place=place, split=split if data.source.split == split else "all", data=data, count=taken)


def in_training_set(held_out: DrawnFrom, training: DrawnFrom) -> list[str]:
    """The held-out pictures whose very bytes are in the training set too."""
    trained = set(training.data.source.image_checksums) - {""}
    sums = held_out.data.source.image_checksums[: held_out.count]
    return [held_out.data.source.name_of(index) for index, digest in enumerate(sums) if digest in trained]
