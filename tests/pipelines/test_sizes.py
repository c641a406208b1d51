"""Images of another height and width than those of training, under every condition, and pictures changed by such a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from ldm import LatentDiffusion
from ldm.core.errors import UserError
from ldm.pipelines.canvas import Window
from ldm.pipelines.edit import image_to_image, inpaint

ALL = ("text", "class", "mask", "map", "small")
BOXES = [(1, 0.1, 0.2, 0.5, 0.9)]


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Path]) -> LatentDiffusion:
    return LatentDiffusion.from_pretrained(tiny(*ALL), device="cpu")


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.array(image) for image in images])


def test_every_conditioner_draws_rectangles(model: LatentDiffusion, tiny: Callable[..., Path]) -> None:
    """Picture i depends on (seed, i) only there too."""
    wide = model.at_size(8, 24)
    layout = torch.arange(3).repeat(8, 16)[:, :24]
    small = torch.rand(1, 3, 4, 12) * 2 - 1
    cond = {"text": "a cat", "small": small}
    images = wide.sample(label="dog", layout=layout, cond=cond, num_images=2)
    assert pixels(images).shape == (2, 8, 24, 3)
    assert np.array_equal(pixels(images)[:1], pixels(wide.sample(label="dog", layout=layout, cond=cond, num_images=1)))
    boxed = LatentDiffusion.from_pretrained(tiny("boxes"), device="cpu").at_size(24, 8)
    assert pixels(boxed.sample(boxes=BOXES, num_images=1)).shape == (1, 24, 8, 3)
    assert boxed.at_size(24, 8) is boxed and repr(wide).count("8x24") == 1
    assert model.at_size(width=24).latent_size == (8, 12) and model.latent_size == (8, 8)


def test_a_map_lies_on_the_rectangle_as_it_is_drawn(model: LatentDiffusion) -> None:
    """Each latent cell has the class of its pixels, at any height and width."""
    wide = model.at_size(8, 24)
    layout = torch.zeros(8, 24, dtype=torch.int64)
    layout[:4, 16:] = 3
    concat = wide.encode_condition(wide.inputs({}, layout=layout)).concat
    assert concat is not None
    of_map = concat[0, 3:7]  # after the mask and the latent of what it hides
    expected = torch.zeros(4, 4, 12)
    expected[0] = 1
    expected[:, :2, 8:] = torch.tensor([0.0, 0.0, 0.0, 1.0])[:, None, None]
    assert_close(of_map, expected)


@pytest.mark.parametrize("height, width, side", [(10, 24, "height must be a multiple of 4"), (8, 0, "width must be a multiple of 4")])
def test_a_size_that_the_stages_cannot_divide_is_refused(model: LatentDiffusion, height: int, width: int, side: str) -> None:
    with pytest.raises(UserError, match=f"{side} for this model, got"):
        model.at_size(height, width)


@pytest.mark.parametrize("conditions", [("mask", "text"), ("text",)])
def test_a_wide_model_paints_a_wide_window(tiny: Callable[..., Path], conditions: tuple[str, ...]) -> None:
    """What lies outside the hole stays, bit by bit."""
    wide = LatentDiffusion.from_pretrained(tiny(*conditions), device="cpu").at_size(8, 24)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8))
    hole = np.zeros((40, 70), np.uint8)
    hole[10:15, 20:50] = 255
    (painted,) = inpaint(wide, picture, Image.fromarray(hole), wide.sampling(num_images=1), "a cat")
    assert np.array_equal(np.array(painted)[hole == 0], np.array(picture)[hole == 0])
    assert not np.array_equal(np.array(painted)[hole > 0], np.array(picture)[hole > 0])
    assert image_to_image(wide, picture, 0.5, wide.sampling(num_images=1))[0].size == (24, 8)


def test_the_window_has_the_model_s_shape_and_holds_the_hole_with_its_context() -> None:
    hole = np.zeros((300, 500), bool)
    hole[100:110, 200:260] = True
    window = Window.around(hole, (16, 48))
    assert window == Window(85, 170, 40, 120)  # twice the hole's width; its height follows
    assert Window.around(hole, (32, 192)) == Window(89, 134, 32, 192)  # the model's own size, where that is more
    hole[:] = True
    assert Window.around(hole, (16, 48)) == Window(0, -200, 300, 900)  # over the picture's edges
    cut = window.cut(np.arange(300 * 500).reshape(300, 500))
    assert cut.shape == (40, 120) and cut[0, 0] == 85 * 500 + 170
