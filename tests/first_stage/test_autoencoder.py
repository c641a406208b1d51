"""The first stages: published sizes, what is refused, tiles and slices, gradient."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.first_stage.autoencoder import KLAutoencoder, KLAutoencoderConfig
from ldm.first_stage.config import FirstStageConfig
from ldm.first_stage.identity import IdentityConfig
from ldm.first_stage.latent_normalization import LatentNormalization

SMALL = KLAutoencoderConfig(channels=8, multipliers=(1, 2, 2), blocks=1, latent_channels=3, middle_attention=False)


def small(config: KLAutoencoderConfig = SMALL) -> KLAutoencoder:
    torch.manual_seed(0)
    return config.build().eval()


def pictures(count: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Smooth, in [-1, 1]."""
    coarse = torch.randn(count, channels, 4, 4, generator=torch.Generator().manual_seed(5))
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").tanh()


@pytest.mark.parametrize(
    "multipliers, latent_channels, attention, parameters",
    [
        ((1, 2, 4), 3, (), 55_312_063),
        ((1, 2, 4, 4), 4, (), 83_653_863),
        ((1, 1, 2, 2, 4), 16, (16,), 69_610_963),
        ((1, 1, 2, 2, 4, 4), 64, (16, 32), 103_880_131),
    ],
    ids=["f4", "f8", "f16", "f32"],
)
def test_published_sizes(multipliers, latent_channels, attention, parameters):
    """Rombach et al. 2022: KL-f4 ... f32."""
    config = KLAutoencoderConfig(multipliers=multipliers, latent_channels=latent_channels, attention=attention)
    with torch.device("meta"):
        stage = config.build()
    assert sum(p.numel() for p in stage.parameters()) == parameters
    assert config.ratio == 2 ** (len(multipliers) - 1)


@pytest.mark.parametrize("multipliers", [(1, 1, 1), (1, 1, 1, 1), (1,) * 5, (1,) * 6])
def test_every_ratio_halves_and_doubles_to_the_same_size(multipliers):
    stage = small(KLAutoencoderConfig(channels=4, multipliers=multipliers, blocks=1, latent_channels=5, image_channels=2))
    side = 2 * stage.downsampling_factor
    images = pictures(1, side, 2 * side, channels=2)
    mean, std = stage.moments(images)
    assert mean.shape == std.shape == (1, *stage.latent_shape(images)) == (1, 5, 2, 4)
    assert (std > 0).all()
    assert stage.decode(stage.encode(images)).shape == images.shape


def test_encode_and_decode_go_through_the_latent_contract():
    stage = small()
    images, noise = pictures(2, 16, 16), torch.ones(2, 3, 4, 4)
    mean, std = stage.moments(images)
    plain = stage.decode(mean)
    stage.normalization = LatentNormalization(channels=3, downsampling_factor=4, shift=(0.1, 0.2, 0.3), scale=(2.0, 3.0, 4.0))
    shift, scale = torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1), torch.tensor([2.0, 3.0, 4.0]).reshape(3, 1, 1)
    assert_close(stage.encode(images), (mean - shift) * scale)
    assert_close(stage.encode(images, noise), (mean + std - shift) * scale)
    assert_close(stage.decode(stage.encode(images)), plain)


@pytest.mark.parametrize("attends", [{"middle_attention": False}, {"attention": (2, 4)}])
def test_training_passes_are_encode_and_decode_with_the_same_noise(attends):
    stage = small(KLAutoencoderConfig(channels=8, multipliers=(1, 2, 2), blocks=1, latent_channels=3, **attends))
    images, noise = pictures(2, 16, 16), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    reconstruction, posterior = stage.reconstruct(images, noise)
    assert_close(reconstruction, stage.decode(stage.encode(images, noise)))
    assert_close(posterior.std, stage.moments(images)[1])
    reconstruction.square().sum().backward()
    assert stage.last_layer is stage.decoder.conv_out
    # A key's bias moves all of a query's scores alike, which softmax does not see.
    idle = [name for name, p in stage.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in idle if not name.endswith(".k.bias")] == []


def test_a_wider_decoder_leaves_the_encoder_alone():
    wide = small(KLAutoencoderConfig(channels=8, decoder_channels=16, multipliers=(1, 2, 2), blocks=1, latent_channels=3))
    narrow = small(KLAutoencoderConfig(channels=8, multipliers=(1, 2, 2), blocks=1, latent_channels=3))
    sizes = [{name: p.shape for name, p in stage.encoder.named_parameters()} for stage in (wide, narrow)]
    assert sizes[0] == sizes[1]
    assert wide.last_layer.in_channels == 2 * narrow.last_layer.in_channels
    assert wide.decode(torch.zeros(1, 3, 4, 4)).shape == (1, 3, 16, 16)


class Local(KLAutoencoder):
    """No norm, so that nothing looks further than its convolutions: tiles with enough overlap must agree with the whole."""

    def __init__(self, config: KLAutoencoderConfig) -> None:
        super().__init__(config)
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, torch.nn.GroupNorm):
                    setattr(module, name, torch.nn.Identity())


@torch.no_grad()
def test_tiles_agree_with_the_whole_where_they_overlap_enough():
    torch.manual_seed(0)
    stage = Local(KLAutoencoderConfig(channels=4, multipliers=(1, 1), blocks=1, latent_channels=2, middle_attention=False)).eval()
    images = pictures(1, 192, 136)
    mean, _ = stage.moments(images)
    whole = stage.decode(mean)
    assert (stage.decode(mean, tile=96, overlap=0.6) - whole).abs().max() < 0.05 * whole.std()
    assert (stage.decode(mean, tile=96, overlap=0.0) - whole).abs().max() > 0.5 * whole.std()  # what the overlap is for


@torch.no_grad()
def test_a_picture_of_one_tile_is_exact():
    stage = small()
    images = pictures(1, 64, 96)
    assert torch.equal(stage.decode(stage.encode(images), tile=96), stage.decode(stage.encode(images)))


@pytest.mark.parametrize("height, width, tile, overlap", [(40, 24, 8, 0.25), (41, 23, 7, 0.9), (40, 24, 16, 0.0), (5, 60, 9, 0.5)])
def test_blending_adds_up_to_one(height, width, tile, overlap):
    stage = IdentityConfig().build()
    images = pictures(2, height, width)
    assert_close(stage.decode(images, tile=tile, overlap=overlap), images)


def test_the_blend_is_linear_between_two_tiles():
    """Two tiles of 8 over 12 positions overlap in 4: weights 7/8, 5/8, 3/8, 1/8 of the first."""
    stage = IdentityConfig(image_channels=1).build()
    calls = iter([torch.zeros(1, 1, 1, 8), torch.ones(1, 1, 1, 8)])
    stage._decode = lambda _: next(calls)
    row = stage.decode(torch.zeros(1, 1, 1, 12), tile=8, overlap=0.5).flatten()
    assert_close(row, torch.tensor([0.0] * 4 + [1 / 8, 3 / 8, 5 / 8, 7 / 8] + [1.0] * 4))


def test_identity_is_pixel_space():
    config = IdentityConfig(image_channels=4)
    stage = config.build()
    images = pictures(2, 5, 7, channels=4)
    mean, std = stage.moments(images)
    assert torch.equal(mean, images) and not std.any()
    assert torch.equal(stage.decode(stage.encode(images, torch.ones_like(images))), images)
    assert (config.ratio, config.latent_channels, sum(1 for _ in stage.parameters())) == (1, 4, 0)
    with pytest.raises(UserError, match="nothing to train"):
        stage.reconstruct(images, images)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s: s.encode(torch.zeros(1, 1, 16, 16)), "expects pictures of 3 channels, got 1"),
        (lambda s: s.moments(torch.zeros(1, 3, 16, 18)), "multiples of 4.*16 x 18"),
        (lambda s: s.reconstruct(torch.zeros(1, 3, 17, 16), torch.zeros(1, 3, 4, 4)), "multiples of 4"),
        (lambda s: s.decode(torch.zeros(1, 4, 4, 4)), "has 3 latent channels, got a latent with 4"),
        (lambda s: s.decode(torch.zeros(1, 3, 8, 8), tile=18), "tile must be a positive multiple of 4"),
        (lambda s: s.decode(torch.zeros(1, 3, 8, 8), tile=16, overlap=1.0), "overlap"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call(small())


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"multipliers": ()}, {"attention": (8,)}, {"dropout": 1.0}, {"decoder_channels": 0}])
def test_impossible_configs_are_refused(wrong):
    with pytest.raises(UserError, match="first_stage." + next(iter(wrong))):
        KLAutoencoderConfig(**{"multipliers": (1, 2, 2), **wrong})


def test_both_kinds_are_found_by_name():
    assert {"kl": KLAutoencoderConfig, "identity": IdentityConfig}.items() <= FirstStageConfig.kinds().items()


def test_bf16_autocast_ends_in_float32():
    stage = small()
    images, noise = pictures(1, 16, 16), torch.zeros(1, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        reconstruction, posterior = stage.reconstruct(images, noise)
    assert reconstruction.dtype == posterior.kl().dtype == torch.float32
    assert_close(reconstruction, stage.reconstruct(images, noise)[0], atol=0.05, rtol=0.05)
