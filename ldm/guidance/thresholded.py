"""x0 kept within the data's range: clipping and dynamic thresholding (Saharia et al. 2022, sec. 2.3). For pixels; latents have no range."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.shapes import over
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.guidance.ends import with_x0

Threshold = float | Literal["clip"]


def check_threshold(threshold: Threshold | None) -> None:
    """Raises UserError unless it is None, "clip" (x0 is clipped) or the percentile of `thresholded`, in (0, 1]."""
    if threshold is not None and threshold != "clip" and not (isinstance(threshold, float | int) and 0 < threshold <= 1):
        raise UserError(f"a threshold is clip, or a percentile in (0, 1] for dynamic thresholding (0.995 in Imagen), got {threshold}")


def thresholded(denoise: Denoise, process: NoiseProcess, limit: float = 1.0, percentile: float | None = None) -> Denoise:
    """A denoiser whose x0 lies in [-limit, limit].

    Args:
        denoise: guided or not; apply guidance first, since it drives x0 out of range.
        process: the denoiser's.
        limit: largest |x0| in the data.
        percentile: None = x0 is clipped. In (0, 1] = dynamic thresholding: each sample's x0 is clipped at this quantile of its |x0|, then
            scaled down to the limit; if the quantile is within the limit this is clipping. 0.995 in Imagen.

    Raises:
        UserError: limit or percentile out of range.
    """
    if limit <= 0:
        raise UserError(f"thresholding needs limit > 0, got {limit}")
    if percentile is not None and not 0 < percentile <= 1:
        raise UserError(f"dynamic thresholding needs a percentile in (0, 1], got {percentile}")

    def clipped(x_t: Tensor, t: Tensor) -> Estimate:
        estimate = denoise(x_t, t)
        bound = torch.full((len(x_t),), limit, dtype=x_t.dtype, device=x_t.device)
        if percentile is not None:
            bound = estimate.x0.flatten(1).abs().quantile(percentile, dim=1).clamp(min=limit)
        bound = over(bound, x_t)
        return with_x0(estimate, estimate.x0.clamp(-bound, bound) * (limit / bound), x_t, t, process)

    return clipped
