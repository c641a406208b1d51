"""The family of denoising networks, chosen in a config by `kind:`."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from ldm.core.condition import Condition
from ldm.core.errors import UserError
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


def check_input(x: Tensor, in_channels: int, multiple: int, note: str = "") -> None:
    """Refuses what a network cannot take.

    Args:
        x: (B, C, H, W).
        in_channels: that it takes.
        multiple: that height and width must be divisible by.
        note: ends the message about channels.

    Raises:
        UserError: another size or number of channels.
    """
    height, width = x.shape[2:]
    if height % multiple or width % multiple or not height or not width:
        raise UserError(
            f"this network takes heights and widths that are multiples of {multiple} ({multiple}, {2 * multiple}, ...), "
            f"not {height} x {width}"
        )
    if x.shape[1] != in_channels:
        raise UserError(f"this network takes {in_channels} input channels, not {x.shape[1]}{note}")


def check_condition(config: DenoiserNetworkConfig, x: Tensor, in_channels: int, condition: Condition) -> Tensor:
    """x (B, C, H, W) with the condition's concat, once both are what the network was built for.

    Raises:
        UserError: another size or number of channels; a condition that the network was not built for, or a missing one.
    """
    note = ""
    if condition.concat is not None:
        x = torch.cat([x, condition.concat.to(x.dtype)], dim=1)
        note = f", {condition.concat.shape[1]} of them from the condition"
    check_input(x, in_channels, config.size_multiple, note)
    _check_width("tokens", condition.tokens, "context_width", config.context_width)
    _check_width("vector", condition.vector, "vector_width", config.vector_width)
    return x


def _check_width(name: str, value: Tensor | None, key: str, width: int | None) -> None:
    if value is None and width is not None:
        raise UserError(f"condition.{name} is missing, but this network has {key} {width}")
    if value is not None and width is None:
        raise UserError(f"condition.{name} has width {value.shape[-1]}, but this network was built without {key}")
    if value is not None and value.shape[-1] != width:
        raise UserError(f"condition.{name} has width {value.shape[-1]}, but this network has {key} {width}")
