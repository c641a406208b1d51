"""A transformed latent should decode to the transformed image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.losses.autoencoder_loss import AutoencoderLossConfig
from ldm.losses.equivariance import SpatialTransform, resized

SHAPE = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "middle_attention": False}


def smooth(*shape: int, seed: int = 0) -> Tensor:
    noise = torch.randn(*shape[:2], 6, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=shape[2:], mode="bicubic").clamp(-1, 1)


def loss(**changes: object):  # noqa: ANN201
    return AutoencoderLossConfig(perceptual_weight=0.0, disc_weight=0.0, equivariance_weight=1.0, **changes).build(3)


@pytest.mark.parametrize("sides", [(5, 9), (12, 16), (3, 3), (24, 20)])
def test_resizing_is_the_bicubic_one_of_torch(sides: tuple[int, int]) -> None:
    x = smooth(2, 3, 12, 16)
    assert_close(resized(x, sides), F.interpolate(x, size=sides, mode="bicubic", antialias=True), atol=1e-6, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(resized(x, sides), F.interpolate(x, size=sides, mode="bicubic", antialias=True), atol=1e-6, rtol=0)


def test_latents_and_images_are_turned_alike() -> None:
    latent, image = torch.zeros(1, 1, 4, 6), torch.zeros(1, 1, 8, 12)
    latent[..., 0, 0] = 1
    image[..., :2, :2] = 1
    for turns, mirrored, place in ((0, False, (0, 0)), (1, False, (-1, 0)), (2, False, (-1, -1)), (0, True, (0, -1)), (1, True, (0, 0))):
        transform = SpatialTransform(1.0, turns, mirrored)
        found, target = transform.of_latent(latent, 1), transform.of_image(image, latent, 1)
        assert found.shape[2:] == ((6, 4) if turns % 2 else (4, 6)) and target.shape[2] == 2 * found.shape[2]
        assert found[0, 0][place] == 1 and target[0, 0][place] == 1 and found.sum() == 1 and target.sum() == 4


def test_sides_shrink_together_and_not_below_the_least() -> None:
    latent, image = smooth(1, 2, 8, 12), smooth(1, 3, 32, 48)
    for scale, least, sides in ((0.5, 1, (4, 6)), (0.25, 1, (2, 3)), (0.25, 4, (4, 4)), (0.25, 100, (8, 12)), (1.0, 1, (8, 12))):
        transform = SpatialTransform(scale, 0, False)
        assert transform.of_latent(latent, least).shape[2:] == sides
        assert transform.of_image(image, latent, least).shape[2:] == (4 * sides[0], 4 * sides[1])


def test_each_step_has_its_own_transform() -> None:
    drawn = [SpatialTransform.draw(3, step, True) for step in range(400)]
    assert drawn == [SpatialTransform.draw(3, step, True) for step in range(400)] != [SpatialTransform.draw(4, s, True) for s in range(400)]
    scales = torch.tensor([one.scale for one in drawn])
    assert 0.25 <= scales.min() < 0.27 and 0.98 < scales.max() <= 1 and abs(scales.mean() - 0.625) < 0.03
    assert all(70 < sum(one.turns == turns for one in drawn) < 130 for turns in range(4))
    assert 160 < sum(one.is_mirrored for one in drawn) < 240
    assert not any(SpatialTransform.draw(3, step, False).is_mirrored for step in range(50))


@pytest.mark.parametrize("transform", [SpatialTransform(0.6, 1, True), SpatialTransform(1.0, 3, False), SpatialTransform(0.3, 0, False)])
def test_an_equivariant_decoder_makes_no_error(transform: SpatialTransform) -> None:
    images = smooth(2, 3, 16, 16)
    assert_close(loss().equivariance(images, images, lambda latent: latent, transform), torch.zeros(2))
    ramp = torch.linspace(-1, 1, 16).expand(3, 16, 16)

    def tilted(latent: Tensor) -> Tensor:  # decodes by place
        height, width = latent.shape[2:]
        return latent + ramp[:, :height, :width]

    assert (loss().equivariance(images, images - ramp, tilted, transform) > 1).all()


@pytest.mark.parametrize("how, error", [("l1", 0.5), ("l2", 0.25)])
def test_it_is_the_mean_error_times_the_numbers_of_an_image(how: str, error: float) -> None:
    images = smooth(2, 3, 16, 16)
    found = loss(pixel=how).equivariance(images, images, lambda latent: latent + 0.5, SpatialTransform(0.5, 1, False))
    assert_close(found, torch.full((2,), error * 3 * 16 * 16))


def test_lpips_counts_as_in_the_reconstruction() -> None:
    class Distance(torch.nn.Module):
        def __call__(self, images: Tensor, image: Tensor) -> Tensor:
            assert min(images.shape[2:]) >= 16
            return torch.full((len(images),), 0.1)

    plain, images = loss(), smooth(2, 3, 32, 32)
    both = AutoencoderLossConfig(perceptual_weight=2.0, disc_weight=0.0, equivariance_weight=1.0).build(3, torch.nn.Identity())
    both.perceptual = Distance()  # type: ignore[assignment]
    transform = SpatialTransform(0.25, 0, False)
    at_least = SpatialTransform(0.5, 0, False)  # LPIPS needs 16 pixels
    found = both.equivariance(images, images, lambda latent: latent + 0.5, transform)
    assert_close(found, plain.equivariance(images, images, lambda latent: latent + 0.5, at_least) + 2 * 0.1 * images[0].numel())


def trained(config: KLAutoencoderConfig | VQAutoencoderConfig, weight: float) -> float:
    """The equivariance error after some steps."""
    torch.manual_seed(0)
    term = AutoencoderLossConfig(perceptual_weight=0.0, disc_weight=0.0, equivariance_weight=weight).build(3, None)
    stage, images = config.build(), smooth(4, 3, 16, 16)
    noise = torch.zeros(4, *stage.latent_shape(images))
    optimizer = torch.optim.Adam(stage.parameters(), lr=3e-3)
    errors = []
    for step in range(64):
        reconstruction, encoded = stage.reconstruct(images, noise)
        transform = SpatialTransform(0.5, step % 4, False)
        equivariance = term.equivariance(images, encoded.sample(noise), stage.decode_raw, transform)
        terms = term.terms(images, reconstruction, encoded, equivariance)
        bare = term.terms(images, reconstruction, encoded)
        without = bare.nll + term.penalties(bare)
        assert_close((terms.nll + term.penalties(terms)), without + weight * equivariance)
        if step == 0:
            for part in (stage.encoder, stage.decoder):
                gradient = torch.autograd.grad(equivariance.sum(), next(part.parameters()), retain_graph=True)[0]
                assert gradient.abs().max() > 0
        errors.append(equivariance.mean().item())
        optimizer.zero_grad()
        (terms.nll + term.penalties(terms)).sum().backward()
        optimizer.step()
    return sum(errors[-4:]) / 4


@pytest.mark.parametrize("config", [KLAutoencoderConfig(**SHAPE), VQAutoencoderConfig(num_codes=16, **SHAPE)])
def test_it_trains_encoder_and_decoder(config: KLAutoencoderConfig | VQAutoencoderConfig) -> None:
    assert trained(config, 1.0) < 0.8 * trained(config, 0.0)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(UserError, match="loss.equivariance_weight must not be negative"):
        AutoencoderLossConfig(equivariance_weight=-1.0)
