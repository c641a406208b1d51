"""Group normalisation for any number of channels."""

from __future__ import annotations

from torch import nn


def group_norm(channels: int, *, groups: int = 32, eps: float = 1e-6) -> nn.GroupNorm:
    """GroupNorm with `groups_for(channels, groups)` groups.

    Args:
        channels: at least 1.
        groups: the largest number of groups; 32 in every published network of the LDM family.
        eps: added to the variance; published values: 1e-6 in autoencoders and before transformers, 1e-5 in the UNet's other blocks.

    Source: Wu & He 2018.
    """
    return nn.GroupNorm(groups_for(channels, groups), channels, eps=eps)


def groups_for(channels: int, most: int = 32) -> int:
    """The largest number of groups, at most `most`, that divides the channels and gives each group at least two channels.

    With groups of one channel, the norm would subtract each channel's mean, and with it the embedding that a residual block has just added:
    the output of a narrow network would not depend on the time. With 64 channels or more, 32 groups have at least two channels each.
    """
    return next((n for n in range(min(most, channels // 2), 0, -1) if channels % n == 0), 1)
