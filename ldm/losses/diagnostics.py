"""Diagnostics of an autoencoder's training: one line per problem, with the config key to change. Pure functions of measured numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ldm.losses.statistics import AutoencoderStatistics, CodeUsage

# Thresholds, each with its reason.
COLLAPSED_KL = 0.05  # nats a dimension: less than a tenth of a bit
LARGEST_NOISE_SHARE = 0.5  # of a latent's variance: beyond it the decoder gets more noise than signal
LARGEST_KL = 40.0  # nats a dimension: e.g. a latent of std 8 known to within 3e-4, a hundred times finer than an 8-bit image
LARGEST_KURTOSIS = 10.0  # in excess of a Gaussian (Laplace: 3): beyond it a few outliers set the scale
LARGEST_HIGH_SHARE = 2.0  # times the images' share of power at high frequencies: beyond it the latent is rougher than what it shows
RAW_STD_RANGE = (0.1, 20.0)  # before shift and scale: values outside lose digits in half precision
CHANNEL_STD_RATIO = 3.0  # largest over smallest channel std: with one scale for all, the small ones drown in noise first
POOR_PSNR = 22.0  # dB: visibly blurred, and an upper bound for stage two's images
STRONG_ACCURACY = 0.95  # the discriminator is hardly ever wrong, so its gradient carries little information ...
STRONG_GAP = 4.0  # ... if its logits are also twice as far apart as the hinge loss requires (from -1 to 1)
WEAK_ACCURACY = 0.55  # little better than chance
PINNED = 0.99  # share of the adaptive weight's clamp
TINY_WEIGHT = 1e-4  # the adversarial term then has no visible effect
LEAST_CODES = 0.1  # share of the codebook in use, relative to the number of codes that the held-out positions could reach
LEAST_PERPLEXITY = 0.05  # the same for the perplexity: below it a few codes serve nearly all positions
SHOWN_CHANNELS = 16  # with more channels, the KL of each would flood screen and log


@dataclass(frozen=True, kw_only=True)
class AdversaryState:
    """State of the adversarial training, of the latest step or averaged over the last steps.

    Attributes:
        weight: the weight of the adversarial term; None = the loss does not have it yet (before disc_start).
        largest_weight: `weight` at the adaptive clamp.
        real_logit: mean logit of real patches.
        fake_logit: mean logit of reconstructed patches.
        accuracy: share of patches, real and fake, that are classified correctly.
    """

    weight: float | None
    largest_weight: float
    real_logit: float
    fake_logit: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Result of one evaluation.

    Attributes:
        numbers: for the log, by name.
        summary: the same for the screen: one line each for reconstructions, latents, and the discriminator if there is one.
        findings: problems and the config key to change, one line each, worst first; empty = no problem.
    """

    numbers: dict[str, float]
    summary: tuple[str, ...]
    findings: tuple[str, ...]


def diagnose(
    statistics: AutoencoderStatistics, adversary: AdversaryState | None = None, *, is_scaled_per_channel: bool = False
) -> Diagnosis:
    """Numbers, summary and findings of an evaluation.

    Args:
        statistics: over the held-out images.
        adversary: None = there is no discriminator, or it does not train yet.
        is_scaled_per_channel: whether the latent normalization will have one scale per channel, so that their stds may differ.
    """
    return Diagnosis(
        numbers=_numbers(statistics, adversary),
        summary=_summary(statistics, adversary),
        findings=_findings(statistics, adversary, is_scaled_per_channel),
    )


def _numbers(s: AutoencoderStatistics, a: AdversaryState | None) -> dict[str, float]:
    numbers = {"l1": s.l1, "psnr": s.psnr}
    if s.perceptual is not None:
        numbers["lpips"] = s.perceptual
    if s.kl is not None:
        numbers["kl_per_dimension"] = s.kl
    if s.codes is not None:
        numbers |= {"codes_used": float(s.codes.used), "code_perplexity": s.codes.perplexity}
    numbers |= {f"kl_channel_{i}": kl for i, kl in enumerate(s.kl_per_channel)} if len(s.kl_per_channel) <= SHOWN_CHANNELS else {}
    numbers |= {
        "active_channels": float(s.active_channels),
        "latent_mean": s.latent_mean,
        "latent_std": s.latent_std,
        "latent_kurtosis": s.latent_kurtosis,
        "latent_noise_share": s.noise_share,
        "latent_high_share": s.latent_high_share,
        "image_high_share": s.image_high_share,
    }
    if a is not None:
        numbers |= {"disc_real_logit": a.real_logit, "disc_fake_logit": a.fake_logit, "disc_accuracy": a.accuracy}
        numbers |= {} if a.weight is None else {"adversarial_weight": a.weight}
    return numbers


def _summary(s: AutoencoderStatistics, a: AdversaryState | None) -> tuple[str, ...]:
    lpips = "" if s.perceptual is None else f", LPIPS {s.perceptual:.4f}"
    details = ""
    if s.kl is not None:
        shown = " ".join(f"{kl:.2f}" for kl in s.kl_per_channel[:SHOWN_CHANNELS])
        shown += " ..." * (len(s.kl_per_channel) > SHOWN_CHANNELS)
        details += f"; KL {s.kl:.2f} nats a dimension (by channel: {shown})"
    if s.codes is not None:
        details += f"; {s.codes.used} of {s.codes.codes} codes used, perplexity {s.codes.perplexity:.0f}"
    lines = [
        f"reconstruction ({s.count} pictures): L1 {s.l1:.4f}, PSNR {s.psnr:.2f} dB{lpips}",
        f"raw latent: mean {s.latent_mean:.3f}, std {s.latent_std:.3f}, excess kurtosis "
        f"{s.latent_kurtosis:.2f}{details}; {s.active_channels} of {len(s.std_per_channel)} channels active",
        f"latent spectrum: {s.latent_high_share:.1%} of the power at high frequencies; pictures at this size: {s.image_high_share:.1%}",
    ]
    if a is not None:
        weight = "not in the loss yet" if a.weight is None else f"weight {a.weight:.3g}"
        accuracy = f"accuracy {100 * a.accuracy:.0f}%"
        lines.append(f"discriminator: {weight}, real logit {a.real_logit:.2f}, fake logit {a.fake_logit:.2f}, {accuracy}")
    return tuple(lines)


def _findings(s: AutoencoderStatistics, a: AdversaryState | None, is_scaled_per_channel: bool) -> tuple[str, ...]:
    if not all(map(math.isfinite, (s.l1, s.psnr, s.kl or 0.0, s.latent_mean, s.latent_std))):
        return ("the autoencoder's statistics are not finite: go back to an earlier state and lower train.optimizer.learning_rate",)
    latent = [] if s.kl is None else _posterior(s, s.kl)
    codebook = [] if s.codes is None else _codebook(s.codes)
    return (
        *latent,
        *codebook,
        *_spectrum(s),
        *_scale(s, is_scaled_per_channel),
        *_reconstruction(s),
        *(() if a is None else _adversary(a)),
    )


def _codebook(c: CodeUsage) -> list[str]:
    reachable = min(c.codes, c.positions)
    if c.used >= LEAST_CODES * reachable and c.perplexity >= LEAST_PERPLEXITY * reachable:
        return []
    return [
        f"codebook collapse: {c.used} of {c.codes} codes are used, perplexity {c.perplexity:.0f}: raise loss.codebook_weight, or lower "
        "first_stage.num_codes or train.optimizer.learning_rate"
    ]


def _posterior(s: AutoencoderStatistics, kl: float) -> list[str]:
    channels = len(s.kl_per_channel)
    if s.active_channels == 0 or kl < COLLAPSED_KL:
        return [f"posterior collapse: the latent carries no information (KL {kl:.3g} nats a dimension): lower loss.kl_weight by 10 or more"]
    lines = []
    if s.active_channels < channels:
        idle = channels - s.active_channels
        lines.append(f"{idle} of {channels} latent channels carry no information: lower loss.kl_weight or first_stage.latent_channels")
    if s.noise_share > LARGEST_NOISE_SHARE:
        lines.append(f"KL weight too high: {100 * s.noise_share:.0f}% of the latent's variance is noise: lower loss.kl_weight")
    if kl > LARGEST_KL:
        lines.append(f"KL weight too low: {kl:.0f} nats a dimension, more than stage two can use: raise loss.kl_weight")
    if s.latent_kurtosis > LARGEST_KURTOSIS:
        lines.append(f"the latent has heavy tails (excess kurtosis {s.latent_kurtosis:.0f}): raise loss.kl_weight")
    return lines


def _spectrum(s: AutoencoderStatistics) -> list[str]:
    if s.latent_high_share <= LARGEST_HIGH_SHARE * s.image_high_share or not s.image_high_share:
        return []
    return [
        f"the latent is rough: {s.latent_high_share:.0%} of its power is at high frequencies, {s.image_high_share:.0%} of the pictures': "
        "raise loss.equivariance_weight (0.5, say), so that stage two has less to learn"
    ]


def _scale(s: AutoencoderStatistics, is_scaled_per_channel: bool) -> list[str]:
    lines = []
    low, high = RAW_STD_RANGE
    if s.active_channels and not low <= s.latent_std <= high:
        change = "raise" if s.latent_std > high else "lower"
        key = "loss.kl_weight" if s.codes is None else "loss.commitment"
        lines.append(f"scale far from 1: the raw latent has std {s.latent_std:.3g}: {change} {key}")
    if not is_scaled_per_channel and min(s.std_per_channel) * CHANNEL_STD_RATIO < max(s.std_per_channel):
        lines.append(
            f"latent channels differ in scale (std {min(s.std_per_channel):.2g} to {max(s.std_per_channel):.2g}): "
            "set first_stage.scale_per_channel=true"
        )
    return lines


def _reconstruction(s: AutoencoderStatistics) -> list[str]:
    if s.psnr >= POOR_PSNR:
        return []
    width = "first_stage.latent_channels" if s.codes is None else "first_stage.num_codes"
    return [f"reconstructions are poor (PSNR {s.psnr:.1f} dB): raise train.steps, or {width} or first_stage.channels"]


def _adversary(a: AdversaryState) -> list[str]:
    gap = a.real_logit - a.fake_logit
    if not (math.isfinite(gap) and math.isfinite(a.weight or 0.0)):
        return ["the discriminator's numbers are not finite: go back to an earlier state and lower loss.disc_weight"]
    lines = []
    if a.accuracy > STRONG_ACCURACY and gap > STRONG_GAP:
        lines.append(
            f"discriminator too strong (accuracy {100 * a.accuracy:.0f}%, logits {gap:.1f} apart): raise loss.disc_start, or lower "
            "loss.disc_channels or loss.disc_layers"
        )
    elif a.accuracy < WEAK_ACCURACY:
        lines.append(f"discriminator too weak (accuracy {100 * a.accuracy:.0f}%): raise loss.disc_channels or loss.disc_layers")
    if a.weight is not None and a.weight >= PINNED * a.largest_weight:
        lines.append(f"adaptive weight at its clamp ({a.weight:.3g}): the adversarial gradient has vanished; raise loss.disc_start")
    if a.weight is not None and a.weight < TINY_WEIGHT:
        lines.append(f"the adversarial term has no effect (weight {a.weight:.2g}): raise loss.disc_weight, or set it to 0")
    return lines
