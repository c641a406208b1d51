"""The training set's latents, encoded once: memory-mapped moments of some augmented views of every picture.

The means and stds are kept, not draws: each use samples the posterior anew. Beside them lie masks, maps and, where a condition needs them,
the views' pixels. Captions are chosen anew at each use. The key is (first stage, data, transform): when any changes, it is
built anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.data.array_cache import ArrayCache, Part, Processes, Span, open_or_build
from ldm.data.array_shard import Row
from ldm.data.batch import Sample
from ldm.data.facts import ATTRIBUTES, CAPTIONS, LABELS, MAPS, MASKS, PIXELS
from ldm.data.image_dataset import IndexedDataset
from ldm.data.loader import read_ahead
from ldm.data.sample_transform import SampleTransform
from ldm.data.unreadable import UnreadableReport

STORED = frozenset((PIXELS, CAPTIONS, LABELS, MASKS, MAPS, ATTRIBUTES))  # boxes change with augmentation
FORMAT = 4  # of what is stored; a cache of another is built anew
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(B, C, H, W) in [-1, 1] to the raw latents' mean and std."""


class LatentCache:
    """Opened by `open_or_build`. Row `index * views + view` of its arrays is a view of a picture."""

    def __init__(self, arrays: ArrayCache, transform: SampleTransform) -> None:
        self._arrays, self._transform = arrays, transform
        self.views: int = arrays.about["views"]
        self.count: int = arrays.about["count"]

    @staticmethod
    def open_or_build(
        folder: Path,
        data: IndexedDataset,
        encode: Encode,
        *,
        first_stage_digest: str,
        views: int,
        keeps_pixels: bool,
        batch_size: int,
        processes: Processes,
    ) -> LatentCache:
        """The cache of `data` in a folder; built if it is not there or was made of something else, by all processes together.

        Args:
            folder: see `ldm.data.array_cache.open_or_build`.
            data: a training set.
            encode: the frozen first stage.
            first_stage_digest: of its weights.
            views: view v is the picture as it is in epoch v.
            keeps_pixels: whether the views' pixels are kept too; otherwise samples have none.
            batch_size: pictures encoded at once.
            processes: each of them calls this; the first shows a bar of its share.

        Raises:
            UserError: there is a folder of that name which is no cache, or too much of the data cannot be read.
        """

        def key() -> str:
            what = (FORMAT, first_stage_digest, data.digest, data.transform_digest, len(data), views, keeps_pixels)
            return hashlib.sha256(repr(what).encode()).hexdigest()

        def read(spans: Sequence[Span]) -> Iterator[Part]:
            found = read_ahead(_ReadViews(data, views), spans, data.config.workers)
            is_hidden = processes.rank > 0 or not spans
            for some in tqdm(found, desc="encoding", unit="batch", total=len(spans), disable=is_hidden, mininterval=1.0):
                data.unreadable.add_all(some.unreadable)
                yield Part(_rows_of(some, encode, keeps_pixels, data.config.depth), some.unreadable)

        about = {"views": views, "count": len(data), "channels": data.config.channels}
        arrays = open_or_build(folder, key, len(data) * views, batch_size, read, about, processes, data.unreadable.add_all)
        return LatentCache(arrays, data.transform)

    def item(self, index: int, epoch: int) -> tuple[Sample, Tensor, Tensor]:
        """A sample as one of its views, with mean and std of its raw latent, float32.

        Raises:
            UserError: what is stored is not what was written.
        """
        name, text, arrays = self._arrays.row(index * self.views + epoch % self.views)
        captions, label, attributes = json.loads(text)
        sample = Sample(
            name=name,
            image=_in_range(arrays["image"]) if "image" in arrays else torch.zeros(self._arrays.about["channels"], 0, 0),
            caption=self._transform.caption_of(tuple(captions), epoch, index),
            captions=tuple(captions),
            label=label,
            mask=arrays["mask"].float() if "mask" in arrays else None,
            map=arrays["map"].long() if "map" in arrays else None,
            attributes=attributes,
        )
        return sample, arrays["mean"], arrays["std"]


def _in_range(stored: Tensor) -> Tensor:
    """Pixels in [-1, 1], of levels of 8 bits or, of deeper pictures, of themselves."""
    return stored.float() / 127.5 - 1 if stored.dtype == torch.uint8 else stored


@dataclass(frozen=True, kw_only=True)
class _Views:
    """Views that were read, as they pass from a worker process: tensors of many are a few files in shared memory, not one each.

    Attributes:
        texts: (name, what is known of it) of each.
        groups: views of one size, stacked, each group with their numbers among these.
        unreadable: see `ldm.data.array_cache.Part`.
    """

    texts: Sequence[tuple[str, str]]
    groups: Sequence[tuple[Sequence[int], Mapping[str, Tensor]]]
    unreadable: Mapping[str, str]


@dataclass(frozen=True)
class _ReadViews:
    """Reads the views of a span of rows."""

    data: IndexedDataset
    views: int

    def __call__(self, span: Span) -> _Views:
        unreadable = UnreadableReport(len(self.data), 1.0)  # how much is too much is asked of all together
        samples = [self.data.sample(row // self.views, row % self.views, unreadable) for row in range(*span)]
        by_size: dict[torch.Size, list[int]] = {}
        for number, sample in enumerate(samples):
            by_size.setdefault(sample.image.shape, []).append(number)
        groups = [(numbers, _stacked([samples[number] for number in numbers])) for numbers in by_size.values()]
        texts = [(sample.name, json.dumps((sample.captions, sample.label, dict(sample.attributes)))) for sample in samples]
        return _Views(texts=texts, groups=groups, unreadable=unreadable.records)


def _stacked(samples: Sequence[Sample]) -> dict[str, Tensor]:
    arrays = {"image": [sample.image for sample in samples]}
    arrays["mask"] = [sample.mask.to(torch.uint8) for sample in samples if sample.mask is not None]
    arrays["map"] = [sample.map.to(torch.int32) for sample in samples if sample.map is not None]
    return {name: torch.stack(some) for name, some in arrays.items() if some}


def _rows_of(views: _Views, encode: Encode, keeps_pixels: bool, depth: int) -> list[Row]:
    found: dict[int, Mapping[str, Any]] = {}
    for numbers, stacked in views.groups:
        images = stacked["image"]
        mean, std = encode(images)
        arrays = {"mean": mean.float(), "std": std.float(), **stacked}
        if not keeps_pixels:
            del arrays["image"]
        elif depth == 8:
            arrays["image"] = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        for place, number in enumerate(numbers):
            found[number] = {name: array[place] for name, array in arrays.items()}
    return [Row(name, text, found[number]) for number, (name, text) in enumerate(views.texts)]
