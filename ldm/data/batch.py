"""What training reads: one decoded image with all that belongs to it, and several of them stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, kw_only=True)
class Sample:
    """
    Attributes:
        name: what messages call it: its file, or a key and its shard.
        image: (C, H, W) float32 in [-1, 1], of the configured size; without pixels, (C, 0, 0), from a cache that keeps none.
        caption: one of `captions`; "" = none.
        captions: all that the record has.
        label: index into the set's label names; -1 = none.
        mask: (1, H, W) float32 of {0, 1}, 1 = object; None = the set has none.
        map: (H, W) int64 class indices, -1 = unknown; None = the set has none.
        boxes: (K, 5) float32, see `ldm.data.record.Box`, of their visible parts; None = the set has none.
        attributes: see `ldm.data.record.Record`.
    """

    name: str
    image: Tensor
    caption: str
    label: int
    mask: Tensor | None = None
    map: Tensor | None = None
    captions: tuple[str, ...] = ()
    boxes: Tensor | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


def by_size(samples: Sequence[Sample]) -> list[list[int]]:
    """Numbers of samples whose images have one size, in the order of the first of each size."""
    found: dict[torch.Size, list[int]] = {}
    for number, sample in enumerate(samples):
        found.setdefault(sample.image.shape, []).append(number)
    return list(found.values())


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples stacked; B of each. See Sample; boxes are (B, K, 5) with the largest K, class -1 where a sample has fewer."""

    names: tuple[str, ...]
    images: Tensor
    captions: tuple[str, ...]
    labels: Tensor
    masks: Tensor | None = None
    maps: Tensor | None = None
    boxes: Tensor | None = None
    attributes: tuple[Mapping[str, Any], ...] = ()

    @staticmethod
    def of(samples: Sequence[Sample]) -> Batch:
        masks = [s.mask for s in samples if s.mask is not None]
        maps = [s.map for s in samples if s.map is not None]
        boxes = [s.boxes for s in samples if s.boxes is not None]
        return Batch(
            names=tuple(s.name for s in samples),
            images=torch.stack([s.image for s in samples]),
            captions=tuple(s.caption for s in samples),
            labels=torch.tensor([s.label for s in samples]),
            masks=torch.stack(masks) if masks else None,
            maps=torch.stack(maps) if maps else None,
            boxes=pad_sequence(boxes, batch_first=True, padding_value=-1.0) if boxes else None,
            attributes=tuple(s.attributes for s in samples),
        )

    @staticmethod
    def joined(batches: Sequence[Batch]) -> Batch:
        """Some batches of one set as one."""
        if len(batches) == 1:
            return batches[0]
        boxes = [row for batch in batches if batch.boxes is not None for row in batch.boxes]
        masks, maps = ([getattr(b, name) for b in batches if getattr(b, name) is not None] for name in ("masks", "maps"))
        return Batch(
            names=sum((batch.names for batch in batches), ()),
            images=torch.cat([batch.images for batch in batches]),
            captions=sum((batch.captions for batch in batches), ()),
            labels=torch.cat([batch.labels for batch in batches]),
            masks=torch.cat(masks) if masks else None,
            maps=torch.cat(maps) if maps else None,
            boxes=pad_sequence(boxes, batch_first=True, padding_value=-1.0) if boxes else None,
            attributes=sum((batch.attributes for batch in batches), ()),
        )

    def pin_memory(self) -> Batch:
        """The same in memory that a GPU copies from while the host goes on."""
        tensors = ((name, getattr(self, name)) for name in ("images", "labels", "masks", "maps", "boxes"))
        return replace(self, **{name: tensor.pin_memory() for name, tensor in tensors if tensor is not None})

    def part(self, start: int, stop: int) -> Batch:
        """Samples start to stop."""
        return Batch(
            names=self.names[start:stop],
            images=self.images[start:stop],
            captions=self.captions[start:stop],
            labels=self.labels[start:stop],
            masks=None if self.masks is None else self.masks[start:stop],
            maps=None if self.maps is None else self.maps[start:stop],
            boxes=None if self.boxes is None else self.boxes[start:stop],
            attributes=self.attributes[start:stop],
        )
