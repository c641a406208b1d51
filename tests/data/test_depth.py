"""`data.depth: 16`: grey pictures and arrays keep their numbers, and 8 bits are as ever."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.data.config import DataConfig
from ldm.data.image_dataset import IndexedDataset
from ldm.data.latent_cache import LatentCache
from ldm.data.open import open_dataset
from ldm.data.sample_transform import SampleTransform

SIDE = 256


def all_numbers() -> np.ndarray:
    """(256, 256) uint16: each number of 16 bits once."""
    return np.arange(2**16, dtype=np.uint16).reshape(SIDE, SIDE)


def opened(folder: Path, size: int = SIDE, depth: int = 16, channels: int = 1, levels: tuple[float, float] | None = None) -> IndexedDataset:
    config = DataConfig(train=str(folder), size=size, channels=channels, depth=depth, levels=levels)  # type: ignore[arg-type]
    data = open_dataset(config, "train", 0)
    assert isinstance(data, IndexedDataset)
    return data


def numbers(image: torch.Tensor, black: float = 0, white: float = 65535) -> np.ndarray:
    found: np.ndarray = np.rint((image.double().numpy() + 1) / 2 * (white - black) + black)
    return found


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_every_number_of_16_bits_is_kept(tmp_path: Path, name: str) -> None:
    Image.fromarray(all_numbers()).save(tmp_path / name)
    image = opened(tmp_path).sample(0, 0).image
    assert image.dtype == torch.float32 and np.array_equal(numbers(image)[0], all_numbers())
    assert len(opened(tmp_path, depth=8).sample(0, 0).image.unique()) == 256


def test_every_number_of_an_array_of_two_channels_is_kept(tmp_path: Path) -> None:
    array = np.stack([all_numbers(), all_numbers()[::-1]], axis=-1)
    np.save(tmp_path / "a.npy", array)
    image = opened(tmp_path, channels=2).sample(0, 0).image
    assert np.array_equal(numbers(image).transpose(1, 2, 0), array)


def test_levels_are_black_and_white_of_16_bits_too(tmp_path: Path) -> None:
    Image.fromarray(all_numbers()).save(tmp_path / "a.png")
    image = opened(tmp_path, levels=(1000, 5095)).sample(0, 0).image
    assert np.array_equal(numbers(image, 1000, 5095)[0], all_numbers().clip(1000, 5095))


def test_pictures_of_8_bits_and_1_among_them_are_as_at_8(tmp_path: Path) -> None:
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "a.png")
    Image.fromarray(np.eye(16) > 0).save(tmp_path / "b.png")
    deep, plain = opened(tmp_path, 16), opened(tmp_path, 16, depth=8)
    for index in range(2):
        torch.testing.assert_close(deep.sample(index, 0).image, plain.sample(index, 0).image, rtol=0, atol=2e-7)


@pytest.mark.parametrize("mode, what", [("RGB", "is RGB"), ("LA", "has transparency"), ("P", "is P")])
def test_what_pillow_would_read_in_8_bits_is_refused(tmp_path: Path, mode: str, what: str) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=f"a.png: {what}; data.depth=16 takes grey picture files"):
        opened(tmp_path, 8).sample(0, 0)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="has NaN or infinity"):
        opened(tmp_path, 8).sample(0, 0)


def test_caches_of_8_bits_stay_and_those_of_16_are_others(tmp_path: Path) -> None:
    """The digest is that of a config without the key."""
    how = SampleTransform(
        config=DataConfig(train="", size=16), split="train", seed=0, label_names=(), map_names=(), has_masks=False, has_maps=False
    )
    assert how.digest == "8bd77150a0b8cf5eda133c18d8c360817d80c2b5741aedc0d19bedfae543c063"
    assert how.digest != replace(how, config=DataConfig(train="", size=16, depth=16)).digest


def test_a_latent_cache_keeps_pixels_of_16_bits(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    Image.fromarray(all_numbers()).save(folder / "a.png")
    data = opened(folder)
    cache = LatentCache.open_or_build(
        tmp_path / "cache",
        data,
        lambda images: (images[:, :, :1, :1], images[:, :, :1, :1]),
        first_stage_digest="",
        views=1,
        keeps_pixels=True,
        batch_size=1,
        processes=World(0, 1, torch.device("cpu")),
    )
    assert torch.equal(cache.item(0, 0)[0].image, data.sample(0, 0).image)
