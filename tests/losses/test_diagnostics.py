"""Statistics against numpy over the whole set; each finding on a case made for it, and none on a healthy model."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional

from ldm.core.errors import UserError
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.first_stage.posterior import DiagonalGaussian
from ldm.first_stage.vq import QuantisedLatent, VQAutoencoderConfig
from ldm.losses import diagnostics
from ldm.losses.autoencoder_loss import AutoencoderLossConfig
from ldm.losses.diagnostics import AdversaryState, diagnose
from ldm.losses.spectrum import high_share, power
from ldm.losses.statistics import AutoencoderStatistics, CodeUsage, StatisticsCollector

HEALTHY = AutoencoderStatistics(
    count=100,
    l1=0.03,
    psnr=31.0,
    perceptual=0.04,
    kl=9.0,
    kl_per_channel=(8.0, 10.0),
    active_channels=2,
    latent_mean=0.1,
    latent_std=3.0,
    latent_kurtosis=0.5,
    std_per_channel=(2.5, 3.5),
    noise_share=0.01,
    latent_high_share=0.15,
    image_high_share=0.1,
)
USED = CodeUsage(codes=1000, positions=5000, used=700, perplexity=400.0)
QUANTISED = dataclasses.replace(HEALTHY, kl=None, kl_per_channel=(), codes=USED)
GAME = AdversaryState(weight=0.4, largest_weight=5e3, real_logit=0.4, fake_logit=-0.5, accuracy=0.7)


def batches() -> list[tuple[torch.Tensor, torch.Tensor, DiagonalGaussian, torch.Tensor]]:
    """Uneven batches; channel 0 varies, skewed and far from 0; channel 1 hardly varies."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for count in (4, 1, 2):
        images = torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1
        reconstruction = images + 0.4 * torch.randn(images.shape, generator=generator)
        mean = torch.randn(count, 2, 4, 4, generator=generator)
        mean = torch.stack([20 + count + mean[:, 0] ** 3, 0.05 * mean[:, 1]], dim=1)
        log_variance = torch.randn(count, 2, 4, 4, generator=generator) - 1
        parts.append((images, reconstruction, DiagonalGaussian(mean, log_variance), torch.rand(count, generator=generator)))
    return parts


def measured() -> AutoencoderStatistics:
    collector = StatisticsCollector()
    for batch in batches():
        collector.add(*batch)
    return collector.result()


def joined() -> AutoencoderStatistics:
    """By as many collectors as there are batches, and one that got none."""
    collectors = [StatisticsCollector() for _ in range(len(batches()) + 1)]
    for collector, batch in zip(collectors[1:], batches(), strict=True):
        collector.add(*batch)
    return StatisticsCollector.joined(collectors).result()


@pytest.mark.parametrize("measured", [measured, joined])
def test_streamed_statistics_are_numpys_over_the_whole_set(measured):
    found, parts = measured(), batches()
    images, reconstruction = (np.concatenate([p[i].double().numpy() for p in parts]) for i in (0, 1))
    mean, log_variance = (np.concatenate([getattr(p[2], name).double().numpy() for p in parts]) for name in ("mean", "log_variance"))
    mean, variance = (np.moveaxis(x, 1, 0).reshape(2, -1) for x in (mean, np.exp(log_variance)))

    square = ((images - reconstruction.clip(-1, 1)) ** 2).mean((1, 2, 3))
    kl = 0.5 * (mean**2 + variance - 1 - np.log(variance)).mean(1)
    kurtosis = [((x - x.mean()) ** 4).mean() / x.var() ** 2 - 3 for x in mean]
    expected = {
        "count": 7,
        "l1": np.abs(images - reconstruction).mean(),
        "psnr": np.mean(10 * np.log10(2**2 / square)),
        "perceptual": np.mean(np.concatenate([p[3].numpy() for p in parts])),
        "kl": kl.mean(),
        "kl_per_channel": kl,
        "active_channels": 1,
        "latent_mean": mean.mean(),
        "latent_std": np.sqrt(mean.var() + variance.mean()),
        "latent_kurtosis": np.mean(kurtosis),
        "std_per_channel": np.sqrt(mean.var(1) + variance.mean(1)),
        "noise_share": variance.mean(1).sum() / (mean.var(1) + variance.mean(1)).sum(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-5, err_msg=name)


def test_lpips_may_be_left_out_and_an_empty_set_is_refused():
    collector = StatisticsCollector()
    images, reconstruction, posterior, _ = batches()[0]
    collector.add(images, reconstruction, posterior)
    assert collector.result().perceptual is None
    assert "lpips" not in diagnose(collector.result()).numbers
    with pytest.raises(UserError, match="empty"):
        StatisticsCollector().result()


@pytest.mark.parametrize("statistics", [HEALTHY, QUANTISED])
@pytest.mark.parametrize("adversary", [None, GAME, dataclasses.replace(GAME, weight=None)])
def test_a_healthy_model_has_no_findings(statistics, adversary):
    assert diagnose(statistics, adversary).findings == ()


@pytest.mark.parametrize(
    "base, changes, finding, key",
    [
        (HEALTHY, {"active_channels": 0}, "posterior collapse", "lower loss.kl_weight"),
        (HEALTHY, {"kl": 0.01}, "posterior collapse", "lower loss.kl_weight"),
        (HEALTHY, {"active_channels": 1}, "1 of 2 latent channels carry no information", "first_stage.latent_channels"),
        (HEALTHY, {"noise_share": 0.7}, "KL weight too high", "lower loss.kl_weight"),
        (HEALTHY, {"kl": 55.0}, "KL weight too low", "raise loss.kl_weight"),
        (HEALTHY, {"latent_kurtosis": 40.0}, "heavy tails", "raise loss.kl_weight"),
        (HEALTHY, {"latent_high_share": 0.4}, "the latent is rough: 40% of its power", "raise loss.equivariance_weight"),
        (HEALTHY, {"latent_std": 90.0}, "scale far from 1", "raise loss.kl_weight"),
        (HEALTHY, {"latent_std": 0.02}, "scale far from 1", "lower loss.kl_weight"),
        (HEALTHY, {"std_per_channel": (0.5, 4.0)}, "differ in scale", "first_stage.scale_per_channel=true"),
        (HEALTHY, {"psnr": 17.0}, "reconstructions are poor", "first_stage.latent_channels"),
        (
            QUANTISED,
            {"codes": CodeUsage(codes=1000, positions=5000, used=60, perplexity=55.0)},
            "codebook collapse",
            "loss.codebook_weight",
        ),
        (
            QUANTISED,
            {"codes": CodeUsage(codes=1000, positions=5000, used=900, perplexity=9.0)},
            "codebook collapse",
            "first_stage.num_codes",
        ),
        (QUANTISED, {"latent_std": 90.0}, "scale far from 1", "raise loss.commitment"),
        (QUANTISED, {"psnr": 17.0}, "reconstructions are poor", "first_stage.num_codes"),
        (HEALTHY, {"l1": math.nan}, "not finite", "train.optimizer.learning_rate"),
    ],
)
def test_each_finding_about_the_latent_fires_alone(base, changes, finding, key):
    (line,) = diagnose(dataclasses.replace(base, **changes), GAME).findings
    assert finding in line and key in line and "\n" not in line


@pytest.mark.parametrize(
    "changes, finding, key",
    [
        ({"accuracy": 0.99, "real_logit": 5.0, "fake_logit": -4.0}, "discriminator too strong", "raise loss.disc_start"),
        ({"accuracy": 0.5}, "discriminator too weak", "raise loss.disc_channels"),
        ({"weight": 5e3}, "at its clamp", "loss.disc_start"),
        ({"weight": 1e-6}, "has no effect", "raise loss.disc_weight"),
        ({"real_logit": math.inf}, "not finite", "loss.disc_weight"),
    ],
)
def test_each_finding_about_the_discriminator_fires_alone(changes, finding, key):
    (line,) = diagnose(HEALTHY, dataclasses.replace(GAME, **changes)).findings
    assert finding in line and key in line and "\n" not in line


def codes(used: int, perplexity: float) -> dict[str, CodeUsage]:
    return {"codes": CodeUsage(codes=1000, positions=5000, used=used, perplexity=perplexity)}


@pytest.mark.parametrize(
    "base, healthy, ill, says",
    [
        (HEALTHY, {"kl": 0.051}, {"kl": 0.049}, "posterior collapse"),
        (HEALTHY, {"noise_share": 0.49}, {"noise_share": 0.51}, "KL weight too high"),
        (HEALTHY, {"kl": 39.9}, {"kl": 40.1}, "KL weight too low"),
        (HEALTHY, {"latent_kurtosis": 9.9}, {"latent_kurtosis": 10.1}, "heavy tails"),
        (HEALTHY, {"latent_high_share": 0.199}, {"latent_high_share": 0.201}, "the latent is rough"),
        (HEALTHY, {"latent_std": 0.101}, {"latent_std": 0.099}, "scale far from 1"),
        (HEALTHY, {"latent_std": 19.9}, {"latent_std": 20.1}, "scale far from 1"),
        (HEALTHY, {"std_per_channel": (1.0, 2.99)}, {"std_per_channel": (1.0, 3.01)}, "differ in scale"),
        (HEALTHY, {"psnr": 22.1}, {"psnr": 21.9}, "reconstructions are poor"),
        (QUANTISED, codes(101, 101.0), codes(99, 99.0), "codebook collapse"),
        (QUANTISED, codes(900, 51.0), codes(900, 49.0), "codebook collapse"),
        (GAME, {"accuracy": 0.949, "real_logit": 9.0}, {"accuracy": 0.951, "real_logit": 9.0}, "discriminator too strong"),
        (GAME, {"accuracy": 0.99, "real_logit": 3.4}, {"accuracy": 0.99, "real_logit": 3.6}, "discriminator too strong"),
        (GAME, {"accuracy": 0.551}, {"accuracy": 0.549}, "discriminator too weak"),
        (GAME, {"weight": 0.98 * 5e3}, {"weight": 0.995 * 5e3}, "at its clamp"),
        (GAME, {"weight": 1.01e-4}, {"weight": 0.99e-4}, "has no effect"),
    ],
)
def test_findings_begin_where_the_docs_say(base, healthy, ill, says):
    """The table of docs/training.md, on either side of each number."""

    def findings(changes: dict[str, object]) -> tuple[str, ...]:
        changed = dataclasses.replace(base, **changes)
        return (diagnose(HEALTHY, changed) if base is GAME else diagnose(changed, GAME)).findings

    assert findings(healthy) == ()
    (line,) = findings(ill)
    assert says in line


@pytest.mark.parametrize("changes", [{"accuracy": 0.99}, {"real_logit": 5.0, "fake_logit": -4.0}])
def test_a_discriminator_that_is_right_or_sure_is_not_too_strong_yet(changes):
    assert diagnose(HEALTHY, dataclasses.replace(GAME, **changes)).findings == ()


def test_a_fixed_weight_is_never_called_clamped():
    assert diagnose(HEALTHY, dataclasses.replace(GAME, weight=0.5, largest_weight=math.inf)).findings == ()


def test_all_numbers_are_summarised_and_logged():
    found = diagnose(HEALTHY, GAME)
    text = "\n".join(found.summary)
    for shown in (
        "31.00 dB",
        "LPIPS 0.0400",
        "8.00 10.00",
        "2 of 2 channels",
        "excess kurtosis 0.50",
        "weight 0.4",
        "accuracy 70%",
        "latent spectrum: 15.0%",
    ):
        assert shown in text
    assert found.numbers["kl_channel_1"] == 10.0
    assert found.numbers["adversarial_weight"] == 0.4
    assert {"l1", "psnr", "lpips", "latent_std", "latent_kurtosis", "active_channels", "disc_accuracy"} <= set(found.numbers)


def test_a_spectrum_is_known_where_the_signal_is():
    """White noise has 3 in 4 of its power beyond half of what a grid holds, along either axis; a slow wave nothing, a fast one all."""
    place = torch.arange(32) + 0.5
    slow, fast = (torch.cos(torch.pi * place * frequency / 32).expand(1, 1, 32, 32) for frequency in (6, 26))
    noise = torch.randn(200, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for signal, share in ((slow + 5, 0.0), (fast, 1.0), (slow + fast, 0.5), (fast.mT + slow, 0.5), (noise, 1 - 0.5**2)):
        assert high_share(power(signal)) == pytest.approx(share, abs=0.03)
    assert high_share(power(torch.ones(2, 3, 8, 8))) == 0
    assert high_share(power(slow) + power(fast)) == pytest.approx(0.5, abs=1e-6)  # summed over batches


def test_the_spectrum_of_latents_stands_beside_that_of_their_images():
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    smooth = functional.avg_pool2d(images, 4)
    collector = StatisticsCollector()
    for half in (slice(0, 2), slice(2, 4)):
        collector.add(images[half], images[half], DiagonalGaussian(smooth[half], torch.zeros_like(smooth[half])))
    found = collector.result()
    assert found.latent_high_share == pytest.approx(found.image_high_share) and found.image_high_share > 0.3


def test_a_codebooks_use_is_counted_over_the_whole_set_and_summarised():
    """Codes 0 to 3 have shares 1/2, 1/4, 1/8, 1/8 of 32 positions: entropy 7/4 ln 2, perplexity 2^1.75. Code 4 is never chosen."""
    collector, images = StatisticsCollector(), torch.zeros(1, 3, 8, 8)
    for indices in ([0] * 16, [1] * 8 + [2] * 4 + [3] * 4):
        raw = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(len(set(indices))))
        collector.add(images, images, QuantisedLatent(raw, raw, torch.tensor(indices).reshape(1, 4, 4), num_codes=5))
    found = collector.result()
    assert (found.codes.codes, found.codes.positions, found.codes.used) == (5, 32, 4)
    np.testing.assert_allclose(found.codes.perplexity, 2**1.75)
    assert (found.kl, found.kl_per_channel, found.noise_share) == (None, (), 0.0)
    diagnosis = diagnose(found)
    assert "4 of 5 codes used, perplexity 3" in "\n".join(diagnosis.summary) and "KL" not in "\n".join(diagnosis.summary)
    assert diagnosis.numbers["codes_used"] == 4 and "kl_per_dimension" not in diagnosis.numbers


def test_few_positions_cannot_use_many_codes():
    """A small held-out set is compared with the number of codes that it could reach."""
    few = dataclasses.replace(QUANTISED, codes=CodeUsage(codes=8192, positions=64, used=40, perplexity=30.0))
    assert diagnose(few).findings == ()


def test_every_key_that_the_diagnostics_name_exists():
    """A finding must not name a key that no config has."""
    configs = {"loss": (AutoencoderLossConfig,), "first_stage": (KLAutoencoderConfig, VQAutoencoderConfig)}
    known = {room: {f.name for config in kinds for f in dataclasses.fields(config)} for room, kinds in configs.items()}
    named = set(re.findall(r"\b(loss|first_stage)\.(\w+)", inspect.getsource(diagnostics)))
    assert len(named) > 6
    assert [key for room, key in named if key not in known[room]] == []


def test_channels_may_differ_where_each_has_its_own_scale():
    uneven = dataclasses.replace(HEALTHY, std_per_channel=(0.5, 5.0))
    assert any("scale_per_channel" in line for line in diagnose(uneven).findings)
    assert not any("scale_per_channel" in line for line in diagnose(uneven, is_scaled_per_channel=True).findings)
