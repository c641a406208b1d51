"""Latent normalization: measured numbers, round trip, digest."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.first_stage.latent_normalization import LatentNormalization, measure, weights_digest


def moments(offset: float = 0.0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Three batches of unequal size; channels of different mean and std."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for count in (5, 1, 3):
        mean = torch.randn(count, 2, 4, 4, generator=generator) * torch.tensor([3.0, 0.5]).reshape(1, 2, 1, 1) + offset
        mean[:, 1] -= 7 + count  # batches differ in mean, so joining them matters
        parts.append((mean, torch.rand(count, 2, 4, 4, generator=generator)))
    return parts


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_per_channel_measure_is_numpys(offset):
    parts = moments(offset)
    normalization = measure(iter(parts), per_channel=True, downsampling_factor=4, weights={})
    mean = np.concatenate([m.double().numpy() for m, _ in parts])
    std = np.concatenate([s.double().numpy() for _, s in parts])
    np.testing.assert_allclose(normalization.shift, mean.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(normalization.scale, 1 / np.sqrt(mean.var((0, 2, 3)) + (std**2).mean((0, 2, 3))), rtol=1e-10)
    assert (normalization.channels, normalization.downsampling_factor) == (2, 4)


def test_one_scale_for_all_is_numpys():
    parts = moments()
    normalization = measure(iter(parts), per_channel=False, downsampling_factor=4, weights={})
    mean = np.concatenate([m.double().numpy() for m, _ in parts])
    std = np.concatenate([s.double().numpy() for _, s in parts])
    np.testing.assert_allclose(normalization.shift, [mean.mean()], rtol=1e-12)
    np.testing.assert_allclose(normalization.scale, [1 / np.sqrt(mean.var() + (std**2).mean())], rtol=1e-10)


def test_normalised_draws_have_mean_0_and_std_1():
    generator = torch.Generator().manual_seed(3)
    mean = 4 + 2 * torch.randn(64, 2, 8, 8, generator=generator)
    std = torch.full_like(mean, 1.5)
    normalization = measure([(mean, std)], per_channel=True, downsampling_factor=8, weights={})
    latent = normalization.normalise(mean + std * torch.randn(mean.shape, generator=generator))
    assert_close(latent.mean((0, 2, 3)), torch.zeros(2), atol=0.03, rtol=0)
    assert_close(latent.std((0, 2, 3)), torch.ones(2), atol=0.03, rtol=0)


def test_normalise_is_the_stated_equation_and_has_an_inverse():
    normalization = LatentNormalization(channels=2, downsampling_factor=8, shift=(1.0, -2.0), scale=(0.5, 4.0))
    raw = torch.tensor([3.0, -1.0]).reshape(1, 2, 1, 1)
    assert normalization.normalise(raw).flatten().tolist() == [1.0, 4.0]
    assert normalization.denormalise(normalization.normalise(raw)).flatten().tolist() == [3.0, -1.0]


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match="no pictures"):
        measure([], per_channel=True, downsampling_factor=4, weights={})
    with pytest.raises(UserError, match="channel 1"):
        dead = torch.ones(2, 2, 4, 4)
        dead[:, 0] = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
        measure([(dead, torch.zeros(2, 2, 4, 4))], per_channel=True, downsampling_factor=4, weights={})
    with pytest.raises(UserError, match="nan"):
        measure([(torch.full((1, 1, 2, 2), torch.nan), torch.ones(1, 1, 2, 2))], per_channel=True, downsampling_factor=4, weights={})


@pytest.mark.parametrize("wrong", [{"shift": (0.0, 0.0, 0.0)}, {"scale": (0.0,)}, {"scale": (float("inf"),)}])
def test_an_impossible_normalization_is_refused(wrong):
    with pytest.raises(UserError, match="latent"):
        LatentNormalization(channels=2, downsampling_factor=8, **wrong)


def test_a_latent_of_other_channels_is_refused_with_both_numbers():
    with pytest.raises(UserError, match="has 4 latent channels, got a latent with 3"):
        LatentNormalization(channels=4, downsampling_factor=8).denormalise(torch.zeros(1, 3, 8, 8))


def test_digest_changes_with_one_bit_a_name_a_dtype_or_a_shape_but_not_with_order():
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.0), "half": torch.ones(3, dtype=torch.bfloat16)}
    digest = weights_digest(weights)
    assert weights_digest(dict(reversed(weights.items()))) == digest
    assert weights_digest({**weights, "a": weights["a"].t().contiguous().t()}) == digest  # strides are not contents

    flipped = weights["a"].clone()
    flipped.view(torch.int32)[1, 2] ^= 1
    others = [
        {**weights, "a": flipped},
        {**weights, "a": weights["a"].reshape(3, 2)},
        {**weights, "a": weights["a"].view(torch.int32)},
        {"c" if name == "b" else name: tensor for name, tensor in weights.items()},
        {name: tensor for name, tensor in weights.items() if name != "b"},
    ]
    assert len({digest, *map(weights_digest, others)}) == len(others) + 1


def test_first_stages_that_differ_in_the_decoder_have_the_same_latents():
    weights = {f"{part}.weight": torch.full((2,), 1.0) for part in ("encoder.conv_in", "quant_conv", "post_quant_conv", "decoder.conv_in")}

    def normalization(name: str, **changes: object) -> LatentNormalization:
        found = measure(iter(moments()), per_channel=True, downsampling_factor=4, weights=weights | {name: torch.zeros(2)})
        return dataclasses.replace(found, **changes)

    one, other = (normalization(f"{name}.weight") for name in ("decoder.conv_in", "post_quant_conv"))
    assert one.digest != other.digest and one.encoder == other.encoder and one.has_latents_of(other)
    assert not one.has_latents_of(dataclasses.replace(other, shift=(0.0, 1.0)))
    for name in ("encoder.conv_in.weight", "quant_conv.weight"):
        assert not one.has_latents_of(normalization(name))
    unknown = normalization("decoder.conv_in.weight", encoder="")
    assert unknown.has_latents_of(one) and not unknown.has_latents_of(other)  # an older checkpoint's is known by all its weights
    assert not unknown.has_latents_of(dataclasses.replace(unknown, digest="another"))
