"""DDIM inversion: the noise from which DDIM draws a given sample."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.samplers.sampler import OnStep, Step


def invert(
    denoise: Denoise,
    x0: Tensor,
    grid: Tensor,
    process: NoiseProcess,
    iterations: int = 3,
    on_step: OnStep | None = None,
) -> Tensor:
    """x at grid[0] from which `DDIM()` with the same denoiser, grid and process draws x0.

    DDIM's step from t to s is x_s = alpha_s x0 + sigma_s eps, with x0 and eps those of (x_t, t). Given x_s, either gives x_t:

        x_t = alpha_t x0 + sigma_t eps,    x0 = (x_s - sigma_s eps) / alpha_s    or    eps = (x_s - alpha_s x0) / sigma_s,

    a fixed point in x_t, found by iteration (Song et al. 2021, sec. 5.4; Pan et al. 2023, AIDI). For Gaussian data of variance 1 the errors
    of the two shrink by factors whose ratio is sigma_s sigma_t / (alpha_s alpha_t): so eps is iterated near the data, x0 near the noise,
    also where alpha_t is 0 and eps alone says nothing. What the denoiser removes from every sample, no start gives back.

    Args:
        denoise: called `iterations` times a step; must draw nothing.
        x0: (B, ...).
        grid: (steps + 1,) falling times, the last 0, as `Grid.times` makes them.
        process: the one that the denoiser was trained with.
        iterations: at least 1.
        on_step: called after each step; its t and x_t are where the step went to.

    Returns:
        (B, ...) at grid[0].

    Raises:
        UserError: fewer than 1 iteration.
    """
    if iterations < 1:
        raise UserError(f"inversion needs at least 1 iteration a step, got {iterations}")
    rising = grid.detach().double().cpu().flip(0)
    x_s, found = x0, Estimate(x0=x0, eps=torch.zeros_like(x0))

    def moved(found: Estimate, s: Tensor, t: Tensor) -> Tensor:
        alpha_s, sigma_s = process.scales(s, x0)
        is_noisy = process.log_snr(s) + process.log_snr(t) < 0
        eps = (x_s - alpha_s * found.x0) / sigma_s if is_noisy else found.eps
        return process.blend(Estimate(x0=found.x0 if is_noisy else (x_s - sigma_s * eps) / alpha_s, eps=eps), t)

    for i, (s, t) in enumerate(zip(rising[:-1], rising[1:], strict=True)):
        for _ in range(iterations):
            found = denoise(moved(found, s, t), t.expand(len(x0)))
        x_s = moved(found, s, t)
        if on_step:
            on_step(Step(done=i + 1, steps=len(rising) - 1, t=t, x_t=x_s, estimate=found))
    return x_s
