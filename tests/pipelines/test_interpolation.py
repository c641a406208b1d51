"""Interpolation: its ends are what would be drawn without it. Inversion: what is drawn again is the picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from ldm import LatentDiffusion
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.metrics.reconstruction import psnr
from ldm.pipelines.canvas import to_pil
from ldm.pipelines.edit import latent_of
from ldm.pipelines.interpolation import End, drawn_from, interpolate, noise_of, slerp
from ldm.samplers.ddim import DDIM

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "emoji"


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Path]) -> LatentDiffusion:
    return LatentDiffusion.from_pretrained(tiny("text", "class"), device="cpu")


def test_slerp_keeps_length_and_divides_the_angle() -> None:
    one, other = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 3.0]])
    quarter, half = slerp(one, other, 0.25), slerp(one, other, 0.5)
    assert_close(quarter, 3 * torch.tensor([[math.cos(math.pi / 8), 0, math.sin(math.pi / 8)]]))
    assert_close(half, 3 * torch.tensor([[math.sqrt(0.5), 0, math.sqrt(0.5)]]))
    noise = [*torch.randn(2, 1, 4, 32, 32, generator=torch.Generator().manual_seed(1))]
    assert abs(slerp(noise[0], noise[1], 0.5).std().item() - 1) < 0.02  # of a mean it would be 0.71
    assert slerp(noise[0], noise[1], 0) is noise[0] and slerp(noise[0], noise[1], 1) is noise[1]
    assert_close(slerp(noise[0], noise[0].clone(), 0.3), noise[0])


def test_conditions_are_interpolated_linearly_and_a_token_of_either_is_attended_to() -> None:
    one = Condition(vector=torch.zeros(1, 2), tokens=torch.ones(1, 3, 1), token_mask=torch.tensor([[True, False, False]]))
    other = Condition(vector=torch.ones(1, 2), tokens=torch.full((1, 3, 1), 5.0), token_mask=torch.tensor([[True, True, False]]))
    between = one.toward(other, 0.25)
    assert_close(between.vector, torch.full((1, 2), 0.25))
    assert_close(between.tokens, torch.full((1, 3, 1), 2.0))
    assert between.token_mask.tolist() == [[True, True, False]] and between.concat is None
    assert one.toward(other, 0) is one and one.toward(other, 1) is other


def test_the_ends_are_what_is_drawn_without_interpolation(model: LatentDiffusion) -> None:
    how = model.sampling(num_images=3, seed=4)
    ends = [
        End(noise=model.start_noise(4), cond=model.text_inputs("a cat")),
        End(noise=model.start_noise(4, 1), cond=model.text_inputs("a dog")),
    ]
    way = interpolate(model, *ends, how)
    assert_close(way[0], model.generate(ends[0].cond, replace(how, num_images=1))[0])
    assert_close(way[2], model.generate(ends[1].cond, replace(how, num_images=2))[1])
    assert (way[1] - way[0]).abs().max() > 1e-3 and (way[1] - way[2]).abs().max() > 1e-3
    with pytest.raises(UserError, match="at least 2 pictures"):
        interpolate(model, *ends, replace(how, num_images=1))


def test_a_solver_that_cannot_be_inverted_is_refused(model: LatentDiffusion) -> None:
    image = to_pil(torch.zeros(1, 3, 16, 16))[0]
    for sampler in ("heun", "ddim eta=0.5"):
        with pytest.raises(UserError, match="inversion is DDIM's: use the sampler ddim with eta=0"):
            noise_of(model, image, model.sampling(sampler=sampler))


def test_the_shipped_model_draws_a_picture_again_from_its_noise() -> None:
    """At 10 steps of 3 evaluations; docs/latents.md has more steps."""
    model = LatentDiffusion.from_pretrained(SHIPPED, device="cpu")
    how = replace(model.sampling(sampler="ddim", steps=10, guidance=1.0), sampler=DDIM())
    cond = model.text_inputs("a red heart")
    image = to_pil(model.generate(cond, how))[0]
    noise = noise_of(model, image, how, "a red heart")
    again = drawn_from(model, noise, [cond], how)
    wanted = model.decode(latent_of(model, image))
    assert psnr(again, wanted).item() > 42
    assert 0.6 < noise.std().item() < 1.5
