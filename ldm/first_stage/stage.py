"""The base of all first stages: images to normalised latents and back."""

from __future__ import annotations

import abc

from torch import Tensor, nn

from ldm.core.errors import UserError
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.first_stage.posterior import Encoded
from ldm.first_stage.tiling import in_tiles


class FirstStage(nn.Module, abc.ABC):
    """Images (B, C, H, W) in [-1, 1] to latents (B, Z, H / f, W / f); H and W are multiples of f, the downsampling factor.

    `normalization` is set after training; its default neither shifts nor scales.
    """

    def __init__(self, *, image_channels: int, latent_channels: int, downsampling_factor: int) -> None:
        super().__init__()
        self.image_channels = image_channels
        self.latent_channels = latent_channels
        self.downsampling_factor = downsampling_factor
        self.normalization = LatentNormalization(channels=latent_channels, downsampling_factor=downsampling_factor)

    @abc.abstractmethod
    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of the raw latent, of checked images."""

    @abc.abstractmethod
    def _decode(self, raw_latent: Tensor) -> Tensor:
        """Images of a checked raw latent."""

    @abc.abstractmethod
    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Encoded]:
        """The forward pass of training: the images reconstructed from a latent drawn with noise (B, Z, h, w), and its distribution."""

    def decode_raw(self, raw_latent: Tensor) -> Tensor:
        """Images of raw latents, with the gradient that `reconstruct` has."""
        return self._decode(raw_latent)

    @property
    @abc.abstractmethod
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last layer: the adaptive adversarial weight compares gradients with respect to its weight."""

    def normalise(self, raw_latent: Tensor) -> Tensor:
        """Raw latent (B, Z, h, w) to about mean 0 and std 1, by the latent normalization."""
        return self.normalization.normalise(raw_latent)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of the raw latents, each (B, Z, H / f, W / f) float32.

        Raises:
            UserError: wrong number of channels; a side that the downsampling factor does not divide.
        """
        self.check_images(images)
        return self._encode(images)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Normalised latents of images.

        Args:
            images: (B, C, H, W) in [-1, 1].
            noise: (B, Z, H / f, W / f) of N(0, 1), to sample the posterior; None = the posterior's mean.

        Returns:
            (B, Z, H / f, W / f), about mean 0 and std 1.

        Raises:
            UserError: as `moments`.
        """
        mean, std = self.moments(images)
        return self.normalise(mean if noise is None else mean + std * noise.to(mean))

    def decode(self, latent: Tensor, *, tile: int | None = None, overlap: float = 0.25) -> Tensor:
        """Images of normalised latents.

        Args:
            latent: (B, Z, h, w), about mean 0 and std 1, as the second stage sees it.
            tile: side of the tiles, in pixels, in which images too large for memory are decoded; None = all at once.
            overlap: share of a tile's side that it has in common with its neighbour; there the two are blended.

        Returns:
            (B, C, f h, f w), in [-1, 1], not clipped.

        Raises:
            UserError: wrong number of channels; a bad tile.

        Source: Rombach et al. 2022, sec. 3.1; the shift and scale are ours (see latent_normalization.py).
        """
        raw = self.normalization.denormalise(latent)
        if tile is None or self.downsampling_factor * max(latent.shape[2:]) <= tile:
            return self._decode(raw)
        size, shared = self._tile(tile, overlap)
        return in_tiles(raw, self._decode, tile=size, overlap=shared, before=1, after=self.downsampling_factor)

    def latent_shape(self, images: Tensor) -> tuple[int, int, int]:
        """(Z, h, w): shape of one image's latent, for images (B, C, H, W)."""
        return self.latent_channels, images.shape[2] // self.downsampling_factor, images.shape[3] // self.downsampling_factor

    def check_images(self, images: Tensor) -> None:
        """Refuses what this first stage cannot encode.

        Raises:
            UserError: wrong number of channels; a side that the downsampling factor does not divide.
        """
        channels, height, width = images.shape[1:]
        if channels != self.image_channels:
            raise UserError(f"this first stage expects pictures of {self.image_channels} channels, got {channels}")
        if height % self.downsampling_factor or width % self.downsampling_factor or not height * width:
            raise UserError(
                f"picture sides must be multiples of {self.downsampling_factor} (the first stage's downsampling factor), "
                f"got {height} x {width}"
            )

    def _tile(self, tile: int, overlap: float) -> tuple[int, int]:
        """Side and overlap of a tile in latent positions."""
        if tile < self.downsampling_factor or tile % self.downsampling_factor:
            raise UserError(
                f"tile must be a positive multiple of {self.downsampling_factor} pixels (the first stage's downsampling factor), got {tile}"
            )
        if not 0 <= overlap < 1:
            raise UserError(f"tile overlap must be in [0, 1), got {overlap}")
        size = tile // self.downsampling_factor
        return size, min(size - 1, round(overlap * size))
