"""Statistics of an autoencoder over a held-out set, collected batch by batch in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.first_stage.posterior import Encoded
from ldm.losses.spectrum import as_small_as, high_share, power

# Burda et al. 2016, sec. 5.2: a latent whose posterior mean varies less than this over the data carries no information.
ACTIVE_VARIANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class CodeUsage:
    """Use of a codebook over a held-out set.

    Attributes:
        codes: number of codes in the codebook.
        positions: number of latent positions that were quantised.
        used: number of codes that were chosen at least once.
        perplexity: exp of the entropy, in nats, of the codes' frequencies: that many codes, if all were equally frequent.
    """

    codes: int
    positions: int
    used: int
    perplexity: float

    @staticmethod
    def of(counts: Tensor) -> CodeUsage:
        """From the count of each code, (K,), not all 0."""
        shares = counts.double() / counts.sum()
        entropy = -torch.special.xlogy(shares, shares).sum()
        return CodeUsage(codes=len(counts), positions=int(counts.sum()), used=int((counts > 0).sum()), perplexity=float(entropy.exp()))


@dataclass(frozen=True, kw_only=True)
class AutoencoderStatistics:
    """Statistics of a first stage over a held-out set. Latents are raw posterior samples, before shift and scale.

    Attributes:
        count: number of images.
        l1: mean absolute error of values in [-1, 1].
        psnr: dB for a range of 2, of reconstructions clipped to [-1, 1]; mean over images.
        perceptual: mean LPIPS; None = not measured.
        kl: nats per latent dimension; None = the encoder is deterministic (VQ).
        kl_per_channel: the same for each channel; empty where kl is None.
        codes: use of a VQ first stage's codebook; None = it has none.
        active_channels: number of channels whose posterior mean varies over the data (variance above ACTIVE_VARIANCE).
        latent_mean: mean over all channels.
        latent_std: standard deviation over all channels.
        latent_kurtosis: of the posterior means, in excess of a Gaussian's, averaged over the channels that vary.
        std_per_channel: standard deviation of each channel.
        noise_share: share of the variance that is the posterior's own noise.
        latent_high_share: share of the posterior means' power at high spatial frequencies, see spectrum.py.
        image_high_share: the same of the images, averaged down to the latents' size.
    """

    count: int
    l1: float
    psnr: float
    perceptual: float | None
    kl: float | None
    kl_per_channel: tuple[float, ...]
    active_channels: int
    latent_mean: float
    latent_std: float
    latent_kurtosis: float
    std_per_channel: tuple[float, ...]
    noise_share: float
    latent_high_share: float
    image_high_share: float
    codes: CodeUsage | None = None


class StatisticsCollector:
    """Call `add` for each batch, then `result`."""

    def __init__(self) -> None:
        self._num_images = self._positions = 0
        self._origin: Tensor | None = None  # (C, 1): powers are summed around the first batch's mean, where they do not cancel
        self._powers = self._noise = torch.zeros(0, dtype=torch.float64)
        self._spectra: dict[str, Tensor | None] = {"latent": None, "image": None}
        self._kl: Tensor | None = None
        self._codes: Tensor | None = None
        self._sums = torch.zeros(3, dtype=torch.float64)  # over images: L1, PSNR, LPIPS
        self._has_perceptual = True

    def add(self, images: Tensor, reconstruction: Tensor, encoded: Encoded, perceptual: Tensor | None = None) -> None:
        """Adds a batch: images (B, C, H, W) in [-1, 1], the encoder's output for them, LPIPS (B,) if measured."""
        images, reconstruction = images.detach().cpu().double(), reconstruction.detach().cpu().double()
        l1 = (images - reconstruction).abs().flatten(1).mean(1)
        square = (images - reconstruction.clamp(-1, 1)).square().flatten(1).mean(1)
        psnr = 10 * torch.log10(4 / square.clamp_min(1e-12))  # identical images count as 126 dB
        self._has_perceptual &= perceptual is not None
        lpips = torch.zeros_like(l1) if perceptual is None else perceptual.detach().cpu().double()
        self._sums = self._sums + torch.stack([l1, psnr, lpips]).sum(1)

        found = {"latent": power(encoded.mean.detach()), "image": power(as_small_as(images, encoded.mean))}
        self._spectra = {name: _added(self._spectra[name], of) for name, of in found.items()}

        mean, std = (_by_channel(x) for x in (encoded.mean, encoded.std))
        if self._origin is None:
            self._origin = mean.mean(1, keepdim=True)
            self._powers = torch.zeros(4, len(mean), dtype=torch.float64)
            self._noise = torch.zeros(len(mean), dtype=torch.float64)
        away = mean - self._origin
        self._powers = self._powers + torch.stack([away.pow(n).sum(1) for n in (1, 2, 3, 4)])
        self._noise = self._noise + std.square().sum(1)
        self._kl = _added(self._kl, None if (kl := encoded.kl_per_dimension()) is None else _by_channel(kl).sum(1))
        self._codes = _added(self._codes, None if (counts := encoded.code_counts()) is None else counts.detach().cpu())
        self._num_images, self._positions = self._num_images + len(images), self._positions + mean.shape[1]

    @staticmethod
    def joined(parts: Sequence[StatisticsCollector]) -> StatisticsCollector:
        """One that has what was added to all of them."""
        filled = [part for part in parts if part._origin is not None]
        whole = copy.copy(filled[0]) if filled else StatisticsCollector()
        for part in filled[1:]:
            assert whole._origin is not None and part._origin is not None
            whole._powers = whole._powers + part._powers_around(whole._origin)
            whole._noise, whole._sums = whole._noise + part._noise, whole._sums + part._sums
            whole._spectra = {name: _added(of, part._spectra[name]) for name, of in whole._spectra.items()}
            whole._kl, whole._codes = _added(whole._kl, part._kl), _added(whole._codes, part._codes)
            whole._num_images, whole._positions = whole._num_images + part._num_images, whole._positions + part._positions
            whole._has_perceptual &= part._has_perceptual
        return whole

    def _powers_around(self, origin: Tensor) -> Tensor:
        """sum (x - a)^n = sum_k binomial(n, k) (b - a)^(n - k) sum (x - b)^k, for a new a."""
        assert self._origin is not None
        moved = (self._origin - origin)[:, 0]
        sums = torch.cat([torch.full_like(self._noise, self._positions)[None], self._powers])
        terms = [[math.comb(n, k) * moved ** (n - k) * sums[k] for k in range(n + 1)] for n in (1, 2, 3, 4)]
        return torch.stack([torch.stack(of_power).sum(0) for of_power in terms])

    def result(self) -> AutoencoderStatistics:
        """Statistics over all batches.

        Raises:
            UserError: nothing was added.
        """
        if self._origin is None:
            raise UserError("the held-out set is empty: nothing to evaluate the autoencoder on (see data.val)")
        l1, psnr, lpips = (self._sums / self._num_images).tolist()
        first, second, third, fourth = self._powers / self._positions
        variance = (second - first**2).clamp_min(0)  # (C,) of the means
        about_mean = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        varies = variance > 0
        kurtosis = (about_mean[varies] / variance[varies] ** 2 - 3).mean().item() if varies.any() else 0.0

        noise = self._noise / self._positions
        centre = self._origin[:, 0] + first
        total = variance + noise
        kl = None if self._kl is None else self._kl / self._positions
        return AutoencoderStatistics(
            count=self._num_images,
            l1=l1,
            psnr=psnr,
            perceptual=lpips if self._has_perceptual else None,
            kl=None if kl is None else kl.mean().item(),
            kl_per_channel=() if kl is None else tuple(kl.tolist()),
            active_channels=int((variance > ACTIVE_VARIANCE).sum()),
            latent_mean=centre.mean().item(),
            latent_std=(total + (centre - centre.mean()).square()).mean().sqrt().item(),
            latent_kurtosis=kurtosis,
            std_per_channel=tuple(total.sqrt().tolist()),
            latent_high_share=self._high_share("latent"),
            image_high_share=self._high_share("image"),
            noise_share=(noise.sum() / (variance + noise).sum().clamp_min(1e-300)).item(),
            codes=None if self._codes is None else CodeUsage.of(self._codes),
        )

    def _high_share(self, name: str) -> float:
        powers = self._spectra[name]
        assert powers is not None
        return high_share(powers)


def _added(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return more if total is None else total if more is None else total + more


def _by_channel(x: Tensor) -> Tensor:
    """(B, C, h, w) to (C, B h w) float64, on the CPU."""
    return x.detach().cpu().double().transpose(0, 1).flatten(1)
