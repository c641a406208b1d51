"""A small picture drawn large: one tile is the plain model, several draw one picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from ldm.conditioning.inputs import ConditionInputs
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.pipelines import upscaling
from ldm.pipelines.canvas import as_tensor, to_pil
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.upscaling import upscale


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Path]) -> LatentDiffusion:
    """Draws 16x16 pictures of 8x8 ones."""
    return LatentDiffusion.from_pretrained(tiny("small"), device="cpu")


def small(width: int, height: int) -> Image.Image:
    draw = np.random.default_rng(0)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def apart(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def test_one_tile_is_the_plain_model(model: LatentDiffusion) -> None:
    how = model.sampling(num_images=2, seed=3)
    drawn = upscale(model, small(8, 8), how)
    cond = ConditionInputs(count=1, values={next(iter(model.conditioners.names)): as_tensor(small(8, 8), 3)})
    plain = to_pil(model.generate(cond, how))
    assert [picture.size for picture in drawn] == [(16, 16)] * 2
    assert [apart(*pair) for pair in zip(drawn, plain, strict=True)] <= [1, 1]
    assert apart(*drawn) > 1
    alone = upscale(model, small(8, 8), replace(how, num_images=1))
    assert apart(alone[0], drawn[0]) == 0


class Pointwise(nn.Module):
    """Each pixel's answer depends on its input there, and on nothing else."""

    def forward(self, x: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        assert condition.concat is not None
        return 0.3 * x + condition.concat[:, :2].sin()


def test_tiles_draw_one_picture(model: LatentDiffusion) -> None:
    """Where the network looks at a pixel only, the tiles' estimate is that of the whole plane; so is guidance."""
    pointwise = replace(model, network=Pointwise())
    draw = torch.Generator().manual_seed(1)
    plane, x = torch.rand(1, 3, 13, 19, generator=draw) * 2 - 1, torch.randn(1, 2, 13, 19, generator=draw)
    t, cond, uncond = torch.tensor([0.4]), Condition(concat=plane), Condition(concat=torch.zeros_like(plane))
    found = upscaling._in_tiles(pointwise, cond, uncond, model.sampling(guidance=1.5))(x, t)
    expected = pointwise.denoiser.bind(uncond)(x, t).toward(pointwise.denoiser.bind(cond)(x, t), 1.5)
    assert_close(found.x0, expected.x0)
    assert_close(found.eps, expected.eps)


class TileMean(nn.Module):
    """All pixels' answer is the mean of what is seen."""

    def forward(self, x: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        return x.mean((2, 3), keepdim=True).expand_as(x)


def test_tiles_blend_where_they_overlap(model: LatentDiffusion) -> None:
    """Two tiles of 8 columns on 14: by two columns, linearly."""
    x, t = torch.randn(1, 2, 8, 14, generator=torch.Generator().manual_seed(1)), torch.tensor([0.4])
    plane = Condition(concat=torch.zeros(1, 3, 8, 14))
    averaging = replace(model, network=TileMean())
    found = upscaling._in_tiles(averaging, plane, plane, model.sampling(guidance=1.0))(x, t)
    alpha, sigma = model.spec.process.scales(t, x)
    output = alpha * found.eps - sigma * found.x0  # v
    left, right = (x[..., columns].mean((2, 3)) for columns in (slice(0, 8), slice(6, 14)))
    share = torch.tensor([0.0] * 6 + [0.25, 0.75] + [1.0] * 6)
    assert_close(output, (left[..., None] + share * (right - left)[..., None])[:, :, None].expand_as(output), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width, height", [(21, 9), (3, 5), (8, 30)])
def test_any_size(model: LatentDiffusion, width: int, height: int) -> None:
    (drawn,) = upscale(model, small(width, height), model.sampling(steps=1))
    assert drawn.size == (2 * width, 2 * height)


def test_models_that_cannot(tiny: Callable[..., Path]) -> None:
    deaf = LatentDiffusion.from_pretrained(tiny("mask"), device="cpu")
    with pytest.raises(UserError, match="not trained with low-resolution images; it takes mask"):
        upscale(deaf, small(8, 8), deaf.sampling())
    pixels = LatentDiffusion.from_pretrained(tiny("small", first_stage="identity"), device="cpu")
    with pytest.raises(UserError, match="makes nothing larger"):
        upscale(pixels, small(8, 8), pixels.sampling())
