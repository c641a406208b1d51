"""Pictures of any shape in images of any height and width: what each `data.fit` keeps, and that masks, maps and boxes follow."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.core.random import generator
from ldm.data.config import Augment, DataConfig, Fit
from ldm.data.random_masks import random_mask
from ldm.data.record import Record
from ldm.data.sample_transform import SampleTransform
from ldm.data.transforms import UNKNOWN, Placement, augmented

FITS: tuple[Fit, ...] = ("centre", "random", "pad", "stretch")
BOX = (0.4, 0.3, 0.6, 0.7)  # left, top, right, bottom
GREY = (128, 128, 128)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def record(height: int, width: int, suffix: str = "png") -> Record:
    """A black picture with a white rectangle at BOX, which is its mask, its map's class 1 and its only box."""
    left, top, right, bottom = BOX
    mask = np.zeros((height, width), np.uint8)
    mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 255
    image = png(np.stack([mask] * 3, 2))
    if suffix == "npy":
        buffer = io.BytesIO()
        np.save(buffer, np.stack([mask] * 3, 2))
        image = buffer.getvalue()
    return Record(key="it", suffix=suffix, image=image, mask=png(mask), map=png(mask // 255), boxes=((1, *BOX),))


def transform(**config: object) -> SampleTransform:
    return SampleTransform(
        config=DataConfig(train="it", **{"size": (24, 40), "background": GREY, **config}),  # type: ignore[arg-type]
        split="train",
        seed=0,
        label_names=(),
        map_names=("other", "rectangle"),
        has_masks=True,
        has_maps=True,
        has_boxes=True,
    )


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("height, width", [(48, 80), (60, 60), (90, 50), (50, 120)])
def test_masks_maps_and_boxes_lie_on_what_the_picture_shows(fit: Fit, height: int, width: int) -> None:
    sample = transform(fit=fit)(record(height, width), 0, 3)
    white = sample.image[0] > 0.5
    assert sample.image.shape == (3, 24, 40) and white.any() and sample.mask is not None and sample.map is not None
    for other in (sample.mask[0] > 0, sample.map == 1):
        assert (other != white).sum() <= 2 * (24 + 40) * 0.4  # but for its border
    rows, columns = white.any(1).nonzero()[:, 0], white.any(0).nonzero()[:, 0]
    seen = [columns[0] / 40, rows[0] / 24, (columns[-1] + 1) / 40, (rows[-1] + 1) / 24]
    assert sample.boxes is not None and sample.boxes[0, 1:].tolist() == pytest.approx([float(side) for side in seen], abs=1.6 / 24)


@pytest.mark.parametrize("suffix", ["png", "npy"])
def test_a_padded_picture_is_whole_and_lies_on_the_background(suffix: str) -> None:
    """With an empty mask and an unknown class around it; arrays have no colours, so theirs is black."""
    sample = transform(fit="pad")(record(80, 40, suffix), 0, 0)  # in 24x40: 24x12, in the middle
    inside = torch.zeros(24, 40, dtype=torch.bool)
    inside[:, 14:26] = True
    ground = 128 / 127.5 - 1 if suffix == "png" else -1.0
    assert_close(sample.image[:, ~inside], torch.full((3, int((~inside).sum())), ground))
    assert sample.map is not None and sample.mask is not None
    assert torch.equal(sample.map == UNKNOWN, ~inside) and not sample.mask[0][~inside].any()
    assert (sample.mask[0] > 0).sum() == pytest.approx(0.2 * 0.4 * inside.sum(), abs=8)


def test_stretching_scales_each_side_by_itself() -> None:
    place = Placement.of((10, 30), (20, 15), "stretch")
    assert (place.scaled, place.corner) == ((20, 15), (0, 0))


def test_a_random_part_is_anywhere_and_the_same_for_one_seed_epoch_and_sample() -> None:
    """In one direction, as the picture just covers the image in the other."""
    corners = [Placement.of((24, 60), (24, 40), "random", generator("random", draw)).corner for draw in range(400)]
    assert {row for row, _ in corners} == {0} and {column for _, column in corners} == {-place for place in range(21)}
    read = transform(fit="random")
    picture = record(24, 120)
    for epoch, index in ((0, 0), (0, 1), (1, 0)):
        assert torch.equal(read(picture, epoch, index).image, read(picture, epoch, index).image)
    places = {tuple(read(picture, epoch, 0).boxes.flatten().tolist()) for epoch in range(8)}  # type: ignore[union-attr]
    assert len(places) > 3
    held_out = replace(read, split="val")
    assert torch.equal(held_out(picture, 0, 5).image, read(picture, 0, 5).image)  # an evaluation sees what training sees


def test_the_digest_is_that_of_old_where_nothing_is_new() -> None:
    """Latent caches of squares are not built again, those of another fit or shape are."""
    assert transform(size=40, background=(255, 255, 255)).digest.startswith("71f81aaf85c7dfb6")  # as before there were rectangles
    square = transform(size=40)
    digests = {transform(fit=fit).digest for fit in FITS} | {square.digest, transform(size=(40, 24)).digest}
    assert len(digests) == len(FITS) + 2


def test_rectangles_are_augmented_with_their_masks_and_boxes() -> None:
    """A box around a rectangle that was moved, zoomed and turned, in pixels of one size."""
    mask = torch.zeros(1, 90, 150)
    mask[:, 40:55, 60:90] = 1
    boxes = torch.tensor([[2.0, 60 / 150, 40 / 90, 90 / 150, 55 / 90]])
    augment = Augment(flip=0.5, shift=0.1, zoom=(0.8, 1.2), rotate=30)
    for draw in range(12):
        _, moved, _, seen = augmented(mask, mask, None, boxes, augment, torch.zeros(1, 1, 1), generator("boxes", draw))
        assert moved is not None and moved.shape == mask.shape and seen is not None
        rows, columns = moved[0].any(1).nonzero()[:, 0], moved[0].any(0).nonzero()[:, 0]
        around = [columns[0] / 150, rows[0] / 90, (columns[-1] + 1) / 150, (rows[-1] + 1) / 90]
        assert seen[0, 1:].tolist() == pytest.approx([float(side) for side in around], abs=2.6 / 90)


def test_an_opaque_rectangle_is_mirrored_at_its_edges_however_far_it_is_turned() -> None:
    image = torch.ones(3, 16, 96)
    turned, *_ = augmented(image, None, None, None, Augment(rotate=45), None, generator("turn"))
    assert_close(turned, image)


def test_random_masks_have_the_picture_s_shape() -> None:
    masks = torch.stack([random_mask((16, 48), None, generator("mask", draw)) for draw in range(200)])
    assert masks.shape == (200, 1, 16, 48) and masks.flatten(1).any(1).all()
    assert masks.mean((0, 1)).min() > 0.05  # nowhere is never painted


@pytest.mark.parametrize("size", [0, (16, 0)])
def test_a_size_without_pixels_is_refused(size: int | tuple[int, int]) -> None:
    with pytest.raises(UserError, match="data.size must be at least 1 pixel a side, got"):
        DataConfig(train="it", size=size)
