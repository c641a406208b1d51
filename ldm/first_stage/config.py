"""The family of first stages that a config chooses from by `kind:`."""

from __future__ import annotations

import abc

from ldm.core.family import Family
from ldm.first_stage.stage import FirstStage


class FirstStageConfig(Family, abc.ABC):
    """All that is needed to rebuild a first stage. Its properties are fields in the kinds that let the user choose them."""

    __slots__ = ()

    @property
    @abc.abstractmethod
    def image_channels(self) -> int:
        """Channels of the images."""

    @property
    @abc.abstractmethod
    def latent_channels(self) -> int:
        """Channels of the latents."""

    @property
    @abc.abstractmethod
    def scale_per_channel(self) -> bool:
        """Whether the latent normalization has one shift and scale per channel, or one for all channels."""

    @property
    @abc.abstractmethod
    def downsampling_factor(self) -> int:
        """Pixels per latent position, along one side."""

    @abc.abstractmethod
    def build(self) -> FirstStage:
        """The module with fresh weights and the default latent normalization (shift 0, scale 1)."""
