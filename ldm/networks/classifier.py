"""A classifier of noisy samples: a UNet's encoder, then attention pooling. B batch, C channels, H W size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ldm.core.errors import UserError
from ldm.core.settings import in_pixels
from ldm.networks.blocks.attention_pool import AttentionPool
from ldm.networks.blocks.norm import group_norm
from ldm.networks.config import check_input
from ldm.networks.unet_encoder import UNetEncoder, UNetEncoderConfig


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(UNetEncoderConfig):
    """Dhariwal & Nichol 2021, sec. 4.3; theirs has scale_shift, resample: residual, and attention down to 8x8."""

    @property
    def attends(self) -> bool:
        """True: it pools by attention."""
        return True

    def build(self, in_channels: int, size: tuple[int, int], num_classes: int) -> ClassifierNetwork:
        """A network with fresh weights, for samples of in_channels and (height, width).

        Raises:
            UserError: a side cannot be halved down to the last level.
        """
        if any(side % self.size_multiple for side in size):
            raise UserError(
                f"samples of {in_pixels(size)} cannot be halved down to the classifier's last level: "
                f"give network.multipliers fewer levels, or make the side a multiple of {self.size_multiple}"
            )
        return ClassifierNetwork(self, in_channels, size, num_classes)


class ClassifierNetwork(UNetEncoder):
    """See ClassifierConfig."""

    def __init__(self, config: ClassifierConfig, in_channels: int, size: tuple[int, int], num_classes: int) -> None:
        super().__init__(config, in_channels)
        self.size = size
        width = self.skip_channels[-1]
        self.norm = group_norm(width, groups=config.groups, eps=1e-5)
        positions = math.prod(side // config.size_multiple for side in size)
        self.pool = AttentionPool(width, positions, config.heads_for(width), num_classes, backend=config.attention_backend)

    def forward(self, x: Tensor, network_time: Tensor) -> Tensor:
        """Logits.

        Args:
            x: (B, in_channels, height, width).
            network_time: (B,) real numbers, as for a denoiser.

        Returns:
            (B, num_classes), in the weights' dtype, or autocast's.

        Raises:
            UserError: another size or number of channels.
        """
        check_input(x, self.in_channels, self.config.size_multiple)
        if x.shape[2:] != self.size:
            raise UserError(f"this classifier was trained on samples of {self.size[0]} x {self.size[1]}, not {x.shape[2]} x {x.shape[3]}")
        h, _ = self.descend(x, self.embed(network_time))
        logits: Tensor = self.pool(F.silu(self.norm(h)))
        return logits
