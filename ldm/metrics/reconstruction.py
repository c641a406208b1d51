"""Images against their reconstructions, one number per image. Both are (B, C, H, W) in [-1, 1]; reconstructions are clipped to it."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

RANGE = 2.0
LARGEST_PSNR = 126.0  # dB: images that are equal in float32 count as this, not as infinity
SMALLEST_SIDE = 11  # pixels: SSIM's window


def l1(images: Tensor, reconstruction: Tensor) -> Tensor:
    """(B,): mean absolute error."""
    return (images - reconstruction.clamp(-1, 1)).abs().flatten(1).mean(1)


def psnr(images: Tensor, reconstruction: Tensor) -> Tensor:
    """(B,): dB."""
    values = peak_signal_noise_ratio(
        reconstruction.clamp(-1, 1).double(), images.double(), data_range=RANGE, reduction="none", dim=(1, 2, 3)
    )
    return values.clamp(max=LARGEST_PSNR)


def ssim(images: Tensor, reconstruction: Tensor) -> Tensor:
    """(B,): Wang et al. 2004, on values shifted to [0, 2], Gaussian window of 11 pixels and std 1.5. Sides of at least SMALLEST_SIDE."""
    values = structural_similarity_index_measure(reconstruction.clamp(-1, 1) + 1, images + 1, data_range=RANGE, reduction="none")
    assert isinstance(values, Tensor)
    return values.reshape(len(images))
