"""Peers know one scale of the latents, and no shift. What of our latent contract is more than that goes into the first stage's own weights.

The 1x1 convolutions on either side of the latent are affine, so latent = (raw - shift) * scale can be theirs, exactly but for rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.first_stage.convolutional import ConvolutionalConfig
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.first_stage.vq import VQAutoencoderConfig

NOTE = "the latents' shift and scale are part of the autoencoder's quant_conv and post_quant_conv: peers know one scale only"


def scaled_for_peer(
    config: ConvolutionalConfig, normalization: LatentNormalization, weights: dict[str, Tensor], left: float | None = None
) -> tuple[dict[str, Tensor], float, tuple[str, ...]]:
    """An autoencoder whose latents need no more than one scale.

    Args:
        config, normalization, weights: of ours.
        left: the scale that the peer takes for granted; None = it reads one from a config.

    Returns:
        Its weights by our names, the scale that is left for the peer, and what was done.

    Raises:
        UserError: codes would not be the nearest any more.
    """
    if set(normalization.shift) == {0.0} and len(set(normalization.scale)) == 1 and left in (None, normalization.scale[0]):
        return weights, normalization.scale[0], ()
    if isinstance(config, VQAutoencoderConfig) and len(set(normalization.scale)) > 1:
        raise UserError("a VQ first stage with a scale a channel (scale_per_channel) has no counterpart: other codes would be nearest")
    shift, scale = (
        torch.tensor(numbers, dtype=torch.float64).expand(normalization.channels) for numbers in (normalization.shift, normalization.scale)
    )
    left = 1.0 if left is None else left
    scale = scale / left
    changed = {name: weights[name].double() for name in weights if name.startswith(("quant_conv.", "post_quant_conv.", "codebook."))}
    spread = torch.zeros(
        len(changed["quant_conv.bias"]) - normalization.channels, dtype=torch.float64
    )  # of the log-variances, if there are
    rows = torch.cat([scale, spread + 1])
    offset = torch.cat([-shift * scale, (spread if not len(spread) else 2 * scale.log())])
    before = changed["post_quant_conv.weight"]
    new = {
        "quant_conv.weight": changed["quant_conv.weight"] * rows[:, None, None, None],
        "quant_conv.bias": changed["quant_conv.bias"] * rows + offset,
        "post_quant_conv.weight": before / scale[:, None, None],
        "post_quant_conv.bias": changed["post_quant_conv.bias"] + before[:, :, 0, 0] @ shift,
    }
    if "codebook.weight" in changed:
        new["codebook.weight"] = (changed["codebook.weight"] - shift) * scale
    return weights | {name: tensor.to(weights[name].dtype) for name, tensor in new.items()}, left, (NOTE,)
