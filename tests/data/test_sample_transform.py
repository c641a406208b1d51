"""From a record's bytes to a sample: what of the config decides how a picture, a mask and a map look."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.data.config import DataConfig
from ldm.data.image_dataset import IndexedDataset
from ldm.data.open import open_dataset
from ldm.data.prepare import Preparation, prepare_sources
from ldm.data.record import Record
from ldm.data.sample_transform import SampleTransform
from ldm.data.sources.folder import FolderSource
from ldm.data.transforms import Placement, fitted, fitted_boxes, fitted_levels, fitted_map

RAMP = np.linspace(-1000, 3000, 64).reshape(8, 8).round()


def transform_of(**config: object) -> SampleTransform:
    how = DataConfig(**({"train": "it", "size": 8, "channels": 1} | config))  # type: ignore[arg-type]
    masks = {"has_masks": False, "has_maps": False}
    return SampleTransform(config=how, split="val", seed=0, label_names=(), map_names=(), **masks)


def tiff(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "TIFF")
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "suffix, content", [("tif", tiff(RAMP.astype(np.float32))), ("npy", npy(RAMP)), ("png", npy(RAMP.astype(np.int32)))]
)
def test_levels_map_deep_pictures_and_arrays_alike(suffix: str, content: bytes) -> None:
    """An array is known by its content, too."""
    record = Record(key="it", suffix=suffix, image=content)
    found = transform_of(levels=(-1000, 3000))(record, 0, 0).image
    assert_close(found[0], torch.from_numpy((RAMP + 1000) / 2000 - 1).float(), atol=0.5 / 127.5, rtol=0)
    with pytest.raises(UserError, match="it: .*go from -1000 to 3000"):
        transform_of()(record, 0, 0)


@pytest.mark.parametrize("levels", [(3, 3), (4095, 0), (0, float("nan")), (0, float("inf"))])
def test_levels_are_two_numbers_black_before_white(levels: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="data.levels must be two numbers"):
        DataConfig(train="it", size=8, levels=levels)


def test_what_decides_how_a_record_looks_is_in_the_digest() -> None:
    """The latent cache is built anew where that changes."""
    plain = transform_of()
    for changes in ({"levels": (0, 4095)}, {"map_void": 255}, {"background": (0, 0, 0)}):
        assert replace(plain, config=replace(plain.config, **changes)).digest != plain.digest
    assert replace(plain, config=replace(plain.config, workers=3)).digest == plain.digest


@pytest.mark.parametrize("what", ["mask", "map"])
def test_a_mask_or_map_of_another_size_is_refused(what: str) -> None:
    files = {}
    for name, size in (("image", (8, 8)), (what, (9, 7))):
        buffer = io.BytesIO()
        Image.new("L", size, 255).save(buffer, "PNG")
        files[name] = buffer.getvalue()
    transform = replace(transform_of(), has_masks=True, has_maps=True)
    with pytest.raises(UserError, match=f"it: its {what} is 9x7, the picture 8x8; they must be of one size"):
        transform(Record(key="it", suffix="png", **files), 0, 0)


VOID = np.array([[255, 255, 2, 2], [255, 0, 0, 2], [1, 1, 0, 0], [1, 1, 0, 255]], np.uint8).repeat(4, 0).repeat(4, 1)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Three pictures with classes 0 to 2, and 255 where nobody labelled."""
    (tmp_path / "in/maps").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (16, 16), (80 * number, 0, 0)).save(tmp_path / f"in/{number}.png")
        Image.fromarray(VOID).save(tmp_path / f"in/maps/{number}.png")
    return tmp_path / "in"


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_class_may_mean_unknown_and_is_none_to_be_learnt(labelled: Path, tmp_path: Path, is_prepared: bool) -> None:
    place = labelled
    if is_prepared:
        place = tmp_path / "out"
        prepare_sources({"train": FolderSource(labelled)}, place, Preparation(), lambda records, count, split: records)

    def opened(void: int | None) -> IndexedDataset:
        return open_dataset(DataConfig(train=str(place), size=16, map_void=void), "train", 0)

    data = opened(255)
    assert data.facts.map_names == data.transform.map_names == ("class 0", "class 1", "class 2")
    assert torch.equal(data.sample(1, 0).map, torch.from_numpy(np.where(VOID == 255, -1, VOID.astype(int))))
    assert len(opened(None).facts.map_names) == 256 and opened(None).sample(1, 0).map.max() == 255
    assert len(opened(7).facts.map_names) == 256


def test_a_void_class_is_a_class() -> None:
    with pytest.raises(UserError, match="data.map_void must be"):
        DataConfig(train="it", size=8, map_void=-1)


@pytest.mark.parametrize("height, width", [(37, 90), (128, 64), (8, 700), (900, 8)])
def test_pictures_maps_masks_and_boxes_are_cut_alike_at_any_shape(height: int, width: int) -> None:
    """Beyond 32 times as long as wide only the middle is scaled, so that a line of a million pixels is not a picture of a million lines."""
    size, short = 16, min(height, width)
    top, left = (height - short) / 2, (width - short) / 2
    levels = torch.zeros(3, height, width, dtype=torch.uint8)
    levels[:, round(top) : round(top + short), round(left + short / 2) : round(left + short)] = 255  # the right half of the middle
    place = Placement.of((height, width), (size, size))
    image = fitted_levels(levels, place, torch.zeros(3, 1, 1))
    assert_close(image, fitted(levels.float() / 127.5 - 1, place), rtol=0, atol=0)
    bright = (image[0] > 0).float()
    assert (bright[:, : size // 2 - 2] == 0).all() and (bright[:, size // 2 + 2 : -2] == 1).all()
    classes = fitted_map(levels[0], place)
    assert ((classes == 255).float() - bright).abs().sum(1).max() <= 3
    box = [(left + short / 2) / width, top / height, (left + short) / width, (top + short) / height]
    found = fitted_boxes(torch.tensor([[4.0, *box], [5.0, 0.0, 0.0, 0.01, 0.01]]), place)
    assert_close(found, torch.tensor([[4.0, 0.5, 0.0, 1.0, 1.0]]), atol=1.6 / size, rtol=0)


def test_a_line_of_a_million_pixels_is_a_small_picture() -> None:
    levels = torch.zeros(1, 1, 1_000_000, dtype=torch.uint8)
    levels[..., 499_000:501_000] = 255
    place = Placement.of((1, 1_000_000), (64, 64))
    assert_close(fitted_levels(levels, place, torch.zeros(1, 1, 1)), torch.ones(1, 64, 64))
    assert fitted_map(levels[0], place).float().mean() == 255
