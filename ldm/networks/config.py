"""The family of denoising networks, chosen in a config by `kind:`."""

from __future__ import annotations

import abc

from torch import nn

from ldm.core.family import Family


class DenoiserNetworkConfig(Family, abc.ABC):
    """A network F(x, network_time, condition) that an objective trains and a sampler calls.

    Attributes:
        context_width: width of the condition's tokens; None = takes none.
        vector_width: width of the condition's vector; None = takes none.
        size_multiple: number that the latents' height and width must be divisible by.
    """

    __slots__ = ()
    context_width: int | None
    vector_width: int | None

    @property
    @abc.abstractmethod
    def size_multiple(self) -> int: ...

    @abc.abstractmethod
    def build(self, in_channels: int, out_channels: int) -> nn.Module:
        """A network with fresh weights.

        Args:
            in_channels: of the noisy latent and the condition's `concat` together.
            out_channels: of the output.

        Returns:
            A module whose forward takes x (B, C, H, W), network_time (B,) and a Condition, and gives (B, out_channels, H, W).
        """
