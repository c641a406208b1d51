"""Inception's features of pictures, and those of a data set kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable

import safetensors.torch
import torch
from einops import repeat
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from ldm.core.errors import UserError
from ldm.core.files import write_file
from ldm.core.precision import whole_float32
from ldm.pretrained.cache import cache_folder
from ldm.pretrained.inception import fid_inception
from ldm.pretrained.table import TABLE

SHOWN_AS = "8-bit RGB (grey shown three times), scaled to 299 x 299 as TensorFlow 1 did, without antialiasing"


class InceptionFeatures:
    """Pictures (B, C, H, W) in [-1, 1], C = 1 or 3, to (B, 2048) float32 on the CPU."""

    def __init__(self, device: torch.device, progress: bool = True) -> None:
        memory_format = torch.channels_last if device.type == "cpu" else torch.contiguous_format  # 1.6 times as fast on two cores
        self.network, self.device = fid_inception(progress).to(device).to(memory_format=memory_format), device
        self.digest = TABLE["fid-inception"].sha256

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        with whole_float32():  # a GPU's shortcut is not what others measured
            return self.network(levels(images).to(self.device)).float().cpu()

    def of(self, batches: Iterable[Tensor], count: int, what: str) -> Tensor:
        """(count, 2048) of all batches, with a progress bar that says what they are."""
        found = []
        with tqdm(total=count, desc=f"Inception, {what}", unit="picture", dynamic_ncols=True) as bar:
            for images in batches:
                found.append(self(images))
                bar.update(len(images))
        return torch.cat(found)


def levels(images: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1], clipped to it, as RGB pictures (B, 3, H, W) uint8: what a PNG of them would hold.

    Raises:
        UserError: neither grey nor RGB.
    """
    if images.shape[1] not in (1, 3):
        raise UserError(f"Inception sees grey and RGB pictures only, these have {images.shape[1]} channels: FID and its kin do not apply")
    eight_bit = _eight_bit(images).to(torch.uint8)
    return eight_bit if images.shape[1] == 3 else repeat(eight_bit, "b 1 h w -> b c h w", c=3)


def as_shown(images: Tensor) -> Tensor:
    """Pictures in [-1, 1], clipped to it, with the values that an 8-bit file of them holds; scaling to size leaves others."""
    return _eight_bit(images) / 127.5 - 1


def _eight_bit(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round()


def cached_features(key: tuple[object, ...], count: int, make: Callable[[], Tensor], lost: dict[str, str]) -> Tensor:
    """(count, D) features from `$LDM_CACHE/features` (or `~/.cache/ldm/features`), made and kept if they are not there.

    Args:
        key: all that they depend on besides how pictures are shown to Inception: digests of data, transform and extractor.
        count: of pictures.
        make: computes them, and adds to `lost` what of the pictures it cannot read.
        lost: kept beside them, and brought back with them.
    """
    digest = hashlib.sha256(repr((SHOWN_AS, count, *key)).encode()).hexdigest()
    path = cache_folder().parent / "features" / f"{digest}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            found, then_lost = file.get_tensor("features"), json.loads((file.metadata() or {}).get("lost", "{}"))
        if len(found) == count:
            lost |= then_lost
            return found
    except (OSError, SafetensorError):
        pass  # none yet, or cut short: made below
    made = make()
    write_file(path, safetensors.torch.save({"features": made}, metadata={"lost": json.dumps(lost)}))
    return made
