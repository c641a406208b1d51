"""The VQ first stage: published sizes, the nearest code, the straight-through gradient, its two errors; diffusion before quantisation."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.first_stage import vq
from ldm.first_stage.config import FirstStageConfig
from ldm.first_stage.vq import QuantisedLatent, VQAutoencoder, VQAutoencoderConfig

SMALL = VQAutoencoderConfig(channels=8, multipliers=(1, 2, 2), blocks=1, num_codes=32, code_channels=3)


def small(config: VQAutoencoderConfig = SMALL) -> VQAutoencoder:
    """With codes of about the same std as the latents."""
    torch.manual_seed(0)
    stage = config.build().eval()
    torch.nn.init.normal_(stage.codebook.weight)
    return stage


def random_images(count: int, side: int) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3)).tanh()


@pytest.mark.parametrize(
    "changes, parameters",
    [
        ({}, 55_322_782),
        ({"middle_attention": False}, 53_219_486),
        ({"multipliers": (1, 2, 2, 4), "attention": (8,), "num_codes": 16384, "code_channels": 4}, 67_717_295),
    ],
    ids=["f4", "f4-noattn", "f8"],
)
def test_published_sizes(changes, parameters):
    """CompVis' model zoo: VQ-f4, VQ-f4 without attention, VQ-f8."""
    with torch.device("meta"):
        stage = VQAutoencoderConfig(**changes).build()
    assert sum(p.numel() for p in stage.parameters()) == parameters


@pytest.mark.parametrize("at_once", [1, 40, 2**25])
def test_the_nearest_code_is_found_in_parts_and_far_from_the_origin(monkeypatch, at_once):
    monkeypatch.setattr(vq, "DISTANCES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    points, codes = torch.randn(70, 3, generator=generator), torch.randn(20, 3, generator=generator)
    expected = (points[:, None] - codes).double().square().sum(2).argmin(1)
    assert len(expected.unique()) > 10
    assert torch.equal(vq.nearest(points, codes), expected)
    assert torch.equal(vq.nearest(points + 100, codes + 100), expected)


def test_of_equal_codes_the_first_is_taken():
    codes = torch.tensor([[5.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    assert vq.nearest(torch.tensor([[0.9, 1.2]]), codes).tolist() == [1]


def test_the_gradient_goes_straight_through():
    """The decoder gets codes; the encoder gets the gradient with respect to the codes."""
    stage = small()
    raw = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    latent = stage.quantise(raw)
    assert_close(latent.straight_through, latent.code)
    assert (latent.code - raw).abs().min() > 0
    stage._decoded(latent.straight_through).square().sum().backward()
    code = latent.code.detach().requires_grad_()
    stage._decoded(code).square().sum().backward()
    assert_close(raw.grad, code.grad, rtol=1e-3, atol=1e-4)
    assert stage.codebook.weight.grad is None


def test_the_two_errors_pull_at_one_end_each():
    """Both are the mean squared distance, here by hand. The gradient of codebook goes to the codes only, of commitment to the latents."""
    stage = small(VQAutoencoderConfig(channels=8, multipliers=(1, 2), blocks=1, num_codes=2, code_channels=1))
    with torch.no_grad():
        stage.codebook.weight.copy_(torch.tensor([[0.0], [1.0]]))
    raw = torch.tensor([0.2, -0.4, 0.9, 2.0]).reshape(1, 1, 2, 2).requires_grad_()
    latent = stage.quantise(raw)
    assert latent.indices.flatten().tolist() == [0, 0, 1, 1]
    assert latent.code_counts().tolist() == [2, 2]
    found = latent.penalties(values=10)
    for penalty in found.values():
        assert_close(penalty.detach(), torch.tensor([10 * (0.04 + 0.16 + 0.01 + 1.0) / 4]))
    codes = stage.codebook.weight
    by_codes, by_latents = torch.autograd.grad(found["codebook"], (codes, raw), allow_unused=True)
    assert_close(by_codes.flatten(), 10 * 2 / 4 * torch.tensor([-0.2 + 0.4, 0.1 - 1.0]))
    assert by_latents is None
    by_latents, by_codes = torch.autograd.grad(found["commitment"], (raw, codes), allow_unused=True)
    assert_close(by_latents.flatten(), 10 * 2 / 4 * torch.tensor([0.2, -0.4, -0.1, 1.0]))
    assert by_codes is None


@torch.no_grad()
def test_the_latent_is_what_comes_before_quantisation_and_decoding_quantises():
    stage = small()
    images = random_images(2, 16)
    mean, std = stage.moments(images)
    assert_close(mean, stage.quant_conv(stage.encoder(images)))
    assert not std.any()
    assert torch.equal(stage.encode(images, torch.ones_like(mean)), stage.encode(images))
    reconstruction, latent = stage.reconstruct(images, torch.zeros_like(mean))
    assert_close(reconstruction, stage.decode(stage.encode(images)))
    assert torch.equal(latent.mean, mean) and not latent.std.any()
    # A step of less than half of the way to any other code does not change the image.
    distances = torch.cdist(mean.movedim(1, -1).reshape(-1, 3), stage.codebook.weight).sort().values
    room = ((distances[:, 1] - distances[:, 0]) / 2).min()
    step = torch.full_like(mean, room.item() * 0.9 / 3**0.5)
    assert torch.equal(stage.decode(mean + step), stage.decode(mean))
    assert not torch.equal(stage.decode(mean + 10), stage.decode(mean))


@torch.no_grad()
def test_quantisation_does_not_depend_on_tiles():
    """Positions are quantised one by one; with a decoder whose receptive field is one position, tiles are exact."""
    stage = small()
    stage._decoded = lambda code: code.repeat_interleave(4, 2).repeat_interleave(4, 3)
    latent = torch.randn(2, 3, 12, 9, generator=torch.Generator().manual_seed(2))
    assert_close(stage.decode(latent, tile=16, overlap=0.5), stage.decode(latent), rtol=1e-5, atol=1e-6)


def test_everything_trains_and_half_precision_chooses_the_same_codes():
    stage = small()
    images, noise = random_images(2, 16), torch.zeros(2, 3, 4, 4)
    reconstruction, latent = stage.reconstruct(images, noise)
    (reconstruction.square().sum() + sum(penalty.sum() for penalty in latent.penalties(1).values())).backward()
    idle = [name for name, p in stage.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in idle if not name.endswith(".k.bias")] == []
    chosen = stage.codebook.weight.grad.abs().sum(1).nonzero().flatten()
    assert torch.equal(chosen, latent.indices.unique())

    raw = latent.raw.detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stage.quantise(raw).indices, latent.indices)
        assert stage.reconstruct(images, noise)[0].dtype == torch.float32


def test_the_config_gives_the_latents_shape_and_refuses_impossible_values():
    assert (SMALL.latent_channels, SMALL.downsampling_factor) == (3, 4)
    assert FirstStageConfig.kinds()["vq"] is VQAutoencoderConfig
    for wrong in ({"num_codes": 0}, {"code_channels": 0}, {"attention": (16,)}):
        with pytest.raises(UserError, match=f"first_stage.{next(iter(wrong))}|first_stage.latent_channels"):
            VQAutoencoderConfig(**wrong)


def test_codes_have_no_density():
    raw = torch.zeros(1, 2, 3, 3)
    latent = QuantisedLatent(raw, raw, torch.zeros(1, 3, 3, dtype=torch.long), num_codes=4)
    assert latent.kl_per_dimension() is None
    assert latent.code_counts().tolist() == [9, 0, 0, 0]
