"""Latent normalization: the shift and scale that bring an encoder's raw latents to about mean 0 and std 1 for stage two.

    latent = (raw - shift) * scale

Shift and scale are measured over the training set for posterior samples, because stage two trains on them; their variance is
Var(mean) + E[std^2]. The record carries the digest of the encoder's weights: for other weights its numbers are wrong.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.core.errors import UserError

ENCODER = ("encoder.", "quant_conv.")


@dataclass(frozen=True, kw_only=True)
class LatentNormalization:
    """Shift and scale of the latents of one first stage; can be read and written as a config.

    Attributes:
        channels: of the latent.
        downsampling_factor: pixels per latent position, along one side.
        shift: mean of the raw latents; one number for all channels, or one per channel.
        scale: 1 / std of the raw latents; as many numbers as shift. (Stable Diffusion's 0.18215 is such a scale, with shift 0.)
        digest: `weights_digest` of the first stage for which shift and scale were measured; "" = not measured.
        encoder: `encoder_digest` of the same; "" = not known, as in older checkpoints.
    """

    channels: int
    downsampling_factor: int
    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    digest: str = ""
    encoder: str = ""

    def __post_init__(self) -> None:
        for name, values in (("shift", self.shift), ("scale", self.scale)):
            if len(values) not in (1, self.channels):
                raise UserError(f"latent {name} has {len(values)} numbers; needs 1 or {self.channels} (one a latent channel)")
            if not all(map(math.isfinite, values)):
                raise UserError(f"latent {name} must be finite numbers, got {values}")
        if not all(s > 0 for s in self.scale):
            raise UserError(f"latent scale must be positive, got {self.scale}")

    @property
    def identity(self) -> str:
        """All fields as text, spelled as run folders of format 1 recorded them: a run resumes only with the same text."""
        numbers = f"channels={self.channels}, ratio={self.downsampling_factor}, shift={self.shift}, scale={self.scale}"
        return f"LatentSpace({numbers}, digest={self.digest!r})"

    def has_latents_of(self, other: LatentNormalization) -> bool:
        """Whether both give the same latents: they are of one first stage, or of two that differ in the decoder alone."""
        is_same_encoder = self.encoder != "" and (self.encoder, self.shift, self.scale) == (other.encoder, other.shift, other.scale)
        return self.digest == other.digest or is_same_encoder

    def stated(self, scale: float) -> LatentNormalization:
        """The same first stage with a scale that is given, not measured: shift 0 and one scale for all channels."""
        return replace(self, shift=(0.0,), scale=(scale,))

    def normalise(self, raw_latent: Tensor) -> Tensor:
        """Raw (B, C, h, w) to about mean 0 and std 1."""
        shift, scale = self._over(raw_latent)
        return (raw_latent - shift) * scale

    def denormalise(self, latent: Tensor) -> Tensor:
        """Inverse of `normalise`: latents (B, C, h, w) as stage two sees them to raw ones, as the decoder reads them."""
        shift, scale = self._over(latent)
        return latent / scale + shift

    def _over(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[1] != self.channels:
            raise UserError(f"this first stage has {self.channels} latent channels, got a latent with {x.shape[1]}")
        shift, scale = (torch.tensor(v, dtype=x.dtype, device=x.device).reshape(1, -1, 1, 1) for v in (self.shift, self.scale))
        return shift, scale


def measure(
    moments: Iterable[tuple[Tensor, Tensor]], *, per_channel: bool, downsampling_factor: int, weights: Mapping[str, Tensor]
) -> LatentNormalization:
    """The normalization from raw moments over a training set, in one pass and float64, on the CPU.

    Args:
        moments: pairs of mean and std, each (B, C, h, w); B and, for images of several sizes, h and w may change between pairs.
        per_channel: one shift and scale per channel, or one for all channels.
        downsampling_factor: pixels per latent position, along one side.
        weights: of the first stage that gave the moments, as they are stored.

    Raises:
        UserError: no moments; a number that is not finite; a channel that never changes.
    """
    # Number of positions; (C,) each: mean, sum of squares about it, sum of std^2.
    count, centre, squares, noise = 0, torch.zeros(0), torch.zeros(0), torch.zeros(0)
    for mean, std in moments:
        values = mean.detach().cpu().double().transpose(0, 1).flatten(1)  # (C, B h w)
        new_count, new_centre = values.shape[1], values.mean(1)
        new_squares = (values - new_centre[:, None]).square().sum(1)
        new_noise = std.detach().cpu().double().square().transpose(0, 1).flatten(1).sum(1)
        if count == 0:
            count, centre, squares, noise = new_count, new_centre, new_squares, new_noise
            continue
        # Chan et al. 1979: joins the means and centred sums of squares of two parts without cancellation.
        step = new_centre - centre
        squares = squares + new_squares + step.square() * (count * new_count / (count + new_count))
        centre = centre + step * (new_count / (count + new_count))
        noise, count = noise + new_noise, count + new_count
    if count == 0:
        raise UserError("cannot measure the latent scale: no pictures")

    variance = (squares + noise) / count
    channels = len(centre)
    if not per_channel:
        whole = centre.mean()
        variance, centre = (variance + (centre - whole).square()).mean().reshape(1), whole.reshape(1)
    for channel, value in enumerate(variance.tolist()):
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"cannot scale latent channel {channel}: its variance over the training set is {value:g}")
    scale = variance.rsqrt()
    return LatentNormalization(
        channels=channels,
        downsampling_factor=downsampling_factor,
        shift=tuple(centre.tolist()),
        scale=tuple(scale.tolist()),
        digest=weights_digest(weights),
        encoder=encoder_digest(weights),
    )


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Hex sha256 of a state dict: its names in sorted order, dtypes, shapes and every byte."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{len(name)}:{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def encoder_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a convolutional first stage's weights that its raw latents depend on."""
    return {name: tensor for name, tensor in state.items() if name.startswith(ENCODER)}


def encoder_digest(state: Mapping[str, Tensor]) -> str:
    """`weights_digest` of `encoder_weights`; "" if there are none."""
    found = encoder_weights(state)
    return weights_digest(found) if found else ""
