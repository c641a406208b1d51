"""Networks' features of images, and the cache of a data set's features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import safetensors.torch
import torch
from einops import repeat
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from ldm.core.distributed import ALONE, World
from ldm.core.errors import UserError
from ldm.core.files import write_file
from ldm.core.precision import whole_float32
from ldm.pretrained.cache import cache_folder
from ldm.pretrained.inception import fid_inception
from ldm.pretrained.resnet import ResNetFeatures
from ldm.pretrained.table import TABLE

SEEN = (1, 3)  # channels of pictures
SHOWN_AS = "8-bit RGB (grey shown three times), scaled to 299 x 299 as TensorFlow 1 did, without antialiasing"


class Features:
    """Images (B, C, H, W) in [-1, 1], C = 1 or 3, to features (B, D) float32 on the CPU.

    Args:
        network: takes images (B, 3, H, W) uint8.
        name: of the network, for people.
        digest: of its weights.
        device: that it runs on.
    """

    def __init__(self, network: nn.Module, name: str, digest: str, device: torch.device) -> None:
        memory_format = torch.channels_last if device.type == "cpu" else torch.contiguous_format  # 1.6 times faster on two cores
        self.network, self.name, self.digest, self.device = network.to(device).to(memory_format=memory_format), name, digest, device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        with whole_float32():  # published values were not measured with TF32
            features: Tensor = self.network(levels(images).to(self.device)).float().cpu()
            return features

    def of(self, batches: Iterable[Tensor], count: int, what: str, world: World = ALONE) -> Tensor:
        """(count, D) of all batches, of which each process has its own, see `World.in_turn`; `what` labels the progress bar."""
        found = []
        with tqdm(total=count, desc=f"{self.name}, {what}", unit="picture", dynamic_ncols=True, disable=not world.is_first) as bar:
            for features in world.in_turn(self(images) for images in batches):
                found.append(features)
                bar.update(len(features))
        return torch.cat(found)


class InceptionFeatures(Features):
    """2048 of the Inception v3 of FID."""

    def __init__(self, device: torch.device, progress: bool = True) -> None:
        super().__init__(fid_inception(progress), "Inception", TABLE["fid-inception"].sha256, device)


class ResNet50Features(Features):
    """2048 of Keras' ResNet50: a second opinion, by a network of another kind."""

    def __init__(self, device: torch.device, progress: bool = True) -> None:
        super().__init__(ResNetFeatures(progress), "ResNet50", TABLE["resnet50"].sha256, device)


def levels(images: Tensor) -> Tensor:
    """(B, C, H, W), clipped to [-1, 1], as RGB images (B, 3, H, W) uint8: the values that a PNG would hold.

    Raises:
        UserError: neither grey nor RGB.
    """
    if images.shape[1] not in SEEN:
        raise UserError(
            f"Inception takes grey and RGB pictures only; these have {images.shape[1]} channels, so FID and related metrics do not apply"
        )
    eight_bit = _eight_bit(images).to(torch.uint8)
    return eight_bit if images.shape[1] == 3 else repeat(eight_bit, "b 1 h w -> b c h w", c=3)


def as_shown(images: Tensor) -> Tensor:
    """Images clipped to [-1, 1] and rounded to the values of an 8-bit file, which resizing does not keep."""
    return _eight_bit(images) / 127.5 - 1


def _eight_bit(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round()


def cached_features(
    key: tuple[object, ...], count: int, make: Callable[[], Tensor], unreadable: dict[str, str], world: World = ALONE
) -> Tensor:
    """(count, D) features from `$LDM_CACHE/features` (or `~/.cache/ldm/features`), computed and stored if they are missing.

    Args:
        key: everything that they depend on, except SHOWN_AS: digests of data, transform and extractor.
        count: number of images.
        make: computes them, and adds the records that it cannot read to `unreadable`; all processes call it, if one of them lacks them.
        unreadable: stored with the features, and filled from the cache when they are read.
        world: the processes.
    """
    digest = hashlib.sha256(repr((SHOWN_AS, count, *key)).encode()).hexdigest()
    path = cache_folder().parent / "features" / f"{digest}.safetensors"
    stored = _stored(path, count)
    if not world.any(stored is None) and stored is not None:
        unreadable |= stored[1]
        return stored[0]
    made = make()
    for lost in world.of_all(unreadable):
        unreadable |= lost
    if stored is None:
        write_file(path, safetensors.torch.save({"features": made}, metadata={"lost": json.dumps(unreadable)}))
    return made


def _stored(path: Path, count: int) -> tuple[Tensor, dict[str, str]] | None:
    """So many features and the records that were unreadable; None = missing or truncated."""
    try:
        with safe_open(path, framework="pt") as file:
            found: Tensor = file.get_tensor("features")
            lost = json.loads((file.metadata() or {}).get("lost", "{}"))
    except (OSError, SafetensorError):
        return None
    return (found, lost) if len(found) == count else None
