"""The training set's latents, encoded once: memory-mapped moments of some augmented views of every picture.

The means and stds are kept, not draws: each use samples the posterior anew. Beside them lie masks, maps and, where a condition needs them,
the views' pixels. Captions are chosen anew at each use. The key is (first stage, data, transform): when any changes, it is
built anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.core.errors import UserError
from ldm.core.files import new_folder, recover_folder, write_file
from ldm.data.batch import Sample
from ldm.data.checksum import checksum
from ldm.data.facts import ATTRIBUTES, CAPTIONS, LABELS, MAPS, MASKS, PIXELS
from ldm.data.image_dataset import IndexedDataset
from ldm.data.sample_transform import SampleTransform

STORED = frozenset((PIXELS, CAPTIONS, LABELS, MASKS, MAPS, ATTRIBUTES))  # boxes change with augmentation
FORMAT = 3  # of what is stored; a cache of another is built anew
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(B, C, H, W) in [-1, 1] to the raw latents' mean and std."""


class LatentCache:
    """Opened by `open_or_build`."""

    def __init__(self, folder: Path, meta: dict[str, Any], transform: SampleTransform) -> None:
        self._folder, self._meta, self._transform = folder, meta, transform
        self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in meta["arrays"]}
        self.views: int = meta["views"]
        self.count: int = meta["count"]

    def __reduce__(self) -> tuple[type[LatentCache], tuple[Path, dict[str, Any], SampleTransform]]:
        """For worker processes that do not share this one's memory: they map the files themselves."""
        return LatentCache, (self._folder, self._meta, self._transform)

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
        progress: bool,
    ) -> LatentCache:
        """The cache of `data` in a folder; built if it is not there or was made of something else.

        Args:
            folder: replaced as a whole when the cache is built.
            data: a training set.
            encode: the frozen first stage.
            first_stage_digest: of its weights.
            views: view v is the picture as it is in epoch v.
            keeps_pixels: whether the views' pixels are kept too; otherwise samples have none.
            batch_size: pictures encoded at once.
            progress: whether to show a bar.

        Raises:
            UserError: there is a folder of that name which is no cache.
        """
        recover_folder(folder)
        if folder.exists() and not (folder / "meta.json").is_file():
            raise UserError(f"{folder} is not a cache of latents, and one would replace it; move it, or train in another --run-dir")
        key = hashlib.sha256(
            repr((FORMAT, first_stage_digest, data.digest, data.transform_digest, len(data), views, keeps_pixels)).encode()
        ).hexdigest()
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            if meta["key"] == key:
                return LatentCache(folder, meta, data.transform)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass  # none yet, or not one of ours: built below
        with new_folder(folder) as new:
            _build(new, key, data, encode, views, keeps_pixels, batch_size, progress)
        return LatentCache(folder, json.loads((folder / "meta.json").read_text(encoding="utf-8")), data.transform)

    def item(self, index: int, epoch: int) -> tuple[Sample, Tensor, Tensor]:
        """A sample as one of its views, with mean and std of its raw latent, float32.

        Raises:
            UserError: what is stored is not what was written.
        """
        row = index * self.views + epoch % self.views

        def array(name: str) -> Tensor:
            values = np.array(self._arrays[name][row])
            if checksum(values.tobytes()) != self._meta["checksums"][name][row]:
                place = self._folder / f"{name}.npy"
                raise UserError(f"{place}: row {row} is not what was written there (checksum); delete {self._folder}, it is built anew")
            return torch.from_numpy(values)

        name, captions, label, attributes = self._meta["rows"][index]
        sample = Sample(
            name=name,
            image=_in_range(array("image")) if "image" in self._arrays else torch.zeros(self._meta["channels"], 0, 0),
            caption=self._transform.caption_of(tuple(captions), epoch, index),
            captions=tuple(captions),
            label=label,
            mask=array("mask").float() if "mask" in self._arrays else None,
            map=array("map").long() if "map" in self._arrays else None,
            attributes=attributes,
        )
        return sample, array("mean"), array("std")


def _in_range(stored: Tensor) -> Tensor:
    """Pixels in [-1, 1], of levels of 8 bits or, of deeper pictures, of themselves."""
    return stored.float() / 127.5 - 1 if stored.dtype == torch.uint8 else stored


def _build(
    folder: Path, key: str, data: IndexedDataset, encode: Encode, views: int, keeps_pixels: bool, batch_size: int, progress: bool
) -> None:
    total = len(data) * views
    arrays: dict[str, np.memmap] = {}
    checksums: dict[str, list[str]] = {}  # of each row
    rows: list[tuple[str, tuple[str, ...], int, Mapping[str, Any]]] = []  # one a picture

    def store(name: str, start: int, values: Tensor) -> None:
        if name not in arrays:
            dtype = np.dtype(str(values.dtype).removeprefix("torch."))
            path = folder / f"{name}.npy"
            arrays[name] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(total, *values.shape[1:]))
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here; later, in the memory-map, it would kill the process
                with open(path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        arrays[name][start : start + len(values)] = values.numpy()
        checksums.setdefault(name, []).extend(checksum(row.tobytes()) for row in values.numpy())

    for start in tqdm(range(0, total, batch_size), desc="encoding", unit="batch", disable=not progress, mininterval=1.0):
        samples = [data.sample(row // views, row % views) for row in range(start, min(start + batch_size, total))]
        images = torch.stack([s.image for s in samples])
        mean, std = encode(images)
        store("mean", start, mean.float())
        store("std", start, std.float())
        if keeps_pixels:
            store("image", start, images if data.config.depth > 8 else ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
        if data.transform.has_masks:
            store("mask", start, torch.stack([s.mask for s in samples if s.mask is not None]).to(torch.uint8))
        if data.transform.has_maps:
            store("map", start, torch.stack([s.map for s in samples if s.map is not None]).to(torch.int32))
        rows += [(s.name, s.captions, s.label, s.attributes) for row, s in enumerate(samples, start) if row % views == 0]
    for array in arrays.values():
        array.flush()
    meta = {
        **{"key": key, "channels": data.config.channels, "views": views, "count": len(data)},
        **{"arrays": sorted(arrays), "checksums": checksums, "rows": rows},
    }
    write_file(folder / "meta.json", json.dumps(meta))
