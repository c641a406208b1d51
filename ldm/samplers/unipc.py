"""UniPC (Zhao et al. 2023) of order 2 in its form for x0, with B(h) = e^-h - 1: each evaluation also corrects the step before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ldm.core.family import kind
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.samplers.sampler import Noise, Past, Sampler


@kind("unipc")
@dataclass(frozen=True, kw_only=True, slots=True)
class UniPC(Sampler):
    """UniC-2 corrects the result of the last step (alg. 1), then UniP-2 steps on (alg. 2): together third order, one evaluation per step.

    The first steps and the step to data have a lower order; the step to data is not corrected.
    """

    memory: ClassVar[int] = 2

    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Noise, denoise: Denoise
    ) -> Tensor:
        if past:
            x_t = x_t + self._correction(t, now, past, process)
        alpha, sigma = process.alpha(s), process.sigma(s)
        h = _half_log_snr_between(t, s, process)
        x_s = sigma / process.sigma(t) * x_t - alpha * (-h).expm1() * now.x0
        if past and sigma > 0:
            x_s = x_s - alpha * (-h).expm1() * _extrapolated_change(h, t, now, past, process) / 2
        return x_s

    def _correction(self, t: Tensor, now: Estimate, past: Past, process: NoiseProcess) -> Tensor:
        """What UniC adds to UniP's x_t, given the estimate at t; both start from the same sample, so it drops out."""
        last_t, last = past[-1]
        h = _half_log_snr_between(last_t, t, process)
        difference = now.x0 - last.x0
        if len(past) == 1:
            change = difference / 2
        else:
            # rho solves (1, 1; r, 1) rho = b; written in 1 / r, because r is infinite after a start at zero SNR.
            before_t, _ = past[-2]
            inverse_r = h / _half_log_snr_between(last_t, before_t, process)
            h_phi_2 = (-h).expm1() / -h - 1
            h_phi_3 = h_phi_2 / -h - 1 / 2
            b_1, b_2 = h_phi_2 / (-h).expm1(), 2 * h_phi_3 / (-h).expm1()
            rho_before, rho_now = inverse_r * (b_1 - b_2) / (inverse_r - 1), (inverse_r * b_2 - b_1) / (inverse_r - 1)
            change = (rho_before - 1 / 2) * _extrapolated_change(h, last_t, last, past[:-1], process) + rho_now * difference
        return -process.alpha(t) * (-h).expm1() * change


def _half_log_snr_between(t: Tensor, s: Tensor, process: NoiseProcess) -> Tensor:
    """lambda_s - lambda_t."""
    return (process.log_snr(s) - process.log_snr(t)) / 2


def _extrapolated_change(h: Tensor, t: Tensor, now: Estimate, past: Past, process: NoiseProcess) -> Tensor:
    """D1 / r: the change of x0 over a step of h from t, on the line through the last two estimates."""
    previous_t, previous = past[-1]
    return h / _half_log_snr_between(t, previous_t, process) * (previous.x0 - now.x0)
