"""The family of first stages that a config chooses from by `kind:`."""

from __future__ import annotations

import abc

from ldm.core.family import Family
from ldm.first_stage.stage import FirstStage


class FirstStageConfig(Family, abc.ABC):
    """What rebuilds a first stage. What is a property here is a field of the kinds that let the user choose it."""

    __slots__ = ()

    @property
    @abc.abstractmethod
    def image_channels(self) -> int:
        """Of the pictures."""

    @property
    @abc.abstractmethod
    def latent_channels(self) -> int:
        """Of the latents."""

    @property
    @abc.abstractmethod
    def scale_per_channel(self) -> bool:
        """Whether the latent contract measures one shift and scale a channel, or one for all."""

    @property
    @abc.abstractmethod
    def downsampling_factor(self) -> int:
        """Pixels per latent position, along one side."""

    @abc.abstractmethod
    def build(self) -> FirstStage:
        """The module, freshly initialised, with the default latent contract."""
