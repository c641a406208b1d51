"""Folds a latent normalization into the first stage's weights: without it, peers, which have one scale and no shift, decode wrong images.

The 1x1 convolutions on either side of the latent are affine, so they can apply latent = (raw - shift) * scale, exactly up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.first_stage.convolutional import ConvolutionalConfig
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.first_stage.vq import VQAutoencoderConfig

NOTE = "the latents' shift and scale are part of the autoencoder's quant_conv and post_quant_conv: peers have one scale only"


def scaled_for_peer(
    config: ConvolutionalConfig, normalization: LatentNormalization, weights: dict[str, Tensor], peer_scale: float | None = None
) -> tuple[dict[str, Tensor], float, tuple[str, ...]]:
    """An autoencoder whose latents need at most one scale.

    Args:
        config, normalization, weights: of ours.
        peer_scale: the scale that the peer always applies; None = it reads the scale from a config.

    Returns:
        The weights by our names, the scale that the peer must apply, and notes for the user.

    Raises:
        UserError: scales differ between channels, so that other codes would be the nearest.
    """
    if set(normalization.shift) == {0.0} and len(set(normalization.scale)) == 1 and peer_scale in (None, normalization.scale[0]):
        return weights, normalization.scale[0], ()
    if isinstance(config, VQAutoencoderConfig) and len(set(normalization.scale)) > 1:
        raise UserError("a VQ first stage with a scale per channel (scale_per_channel) has no counterpart: other codes would be nearest")
    shift, scale = (
        torch.tensor(numbers, dtype=torch.float64).expand(normalization.channels) for numbers in (normalization.shift, normalization.scale)
    )
    peer_scale = 1.0 if peer_scale is None else peer_scale
    scale = scale / peer_scale
    changed = {name: weights[name].double() for name in weights if name.startswith(("quant_conv.", "post_quant_conv.", "codebook."))}
    # A KL encoder gives the means and then the log-variances, to which scaling adds 2 log(scale); a VQ encoder gives the latent only.
    log_variances = torch.zeros(len(changed["quant_conv.bias"]) - normalization.channels, dtype=torch.float64)
    rows = torch.cat([scale, log_variances + 1])
    offset = torch.cat([-shift * scale, 2 * scale.log() if len(log_variances) else log_variances])
    before = changed["post_quant_conv.weight"]
    new = {
        "quant_conv.weight": changed["quant_conv.weight"] * rows[:, None, None, None],
        "quant_conv.bias": changed["quant_conv.bias"] * rows + offset,
        "post_quant_conv.weight": before / scale[:, None, None],
        "post_quant_conv.bias": changed["post_quant_conv.bias"] + before[:, :, 0, 0] @ shift,
    }
    if "codebook.weight" in changed:
        new["codebook.weight"] = (changed["codebook.weight"] - shift) * scale
    return weights | {name: tensor.to(weights[name].dtype) for name, tensor in new.items()}, peer_scale, (NOTE,)
