"""A checkpoint of ours to be exported: without it each exporter would repeat the checks for models that no peer can represent.

It has the spec and the tensors, memory-mapped from the files, in the precision in which they were saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.checkpoints.folder import Checkpoint, read_again
from ldm.checkpoints.model import LatentDiffusionSpec, located
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.conditioning.conditioner import Conditioner
from ldm.core.errors import UserError
from ldm.core.settings import each_side
from ldm.first_stage.convolutional import ConvolutionalConfig
from ldm.interop.clip_text import TextTower
from ldm.interop.conditioner_keys import Kind, of_kind
from ldm.interop.diffusers.unet import SizedUNet
from ldm.networks.unet import UNetConfig


@dataclass(frozen=True, kw_only=True)
class Ours:
    """Both stages."""

    spec: LatentDiffusionSpec
    first_stage: dict[str, Tensor]
    denoiser: dict[str, Tensor]
    conditioner: dict[str, Tensor]

    @staticmethod
    @read_again
    def open(folder: Path) -> Ours:
        """The checkpoint in a folder.

        Raises:
            UserError: not a checkpoint of both stages; a part that no peer has.
        """
        opened = Checkpoint.open(folder)
        if "denoiser" not in opened.config:
            if opened.has("first_stage"):
                raise UserError(f"checkpoint {folder} is a first stage by itself, which is exported to diffusers only: --to diffusers")
            raise UserError(f"checkpoint {folder} is not of both stages; a classifier is not exported")
        spec = located(opened.spec(LatentDiffusionSpec), opened.folder)
        check_kinds(spec, f"checkpoint {folder}")
        parts = {name: opened.tensors(name) if opened.has(name) else {} for name in ("first_stage", "denoiser", "conditioner")}
        return Ours(spec=spec, **parts)

    @property
    def autoencoder(self) -> ConvolutionalConfig:
        assert isinstance(self.spec.first_stage, ConvolutionalConfig)
        return self.spec.first_stage

    def unet(self, *, is_linear: bool = False) -> SizedUNet:
        """The denoiser's config with its input and output channels."""
        config = self.spec.denoiser
        assert isinstance(config, UNetConfig)
        return SizedUNet(
            config=config,
            in_channels=self.denoiser["input_blocks.0.0.weight"].shape[1],
            out_channels=len(self.denoiser["out.2.weight"]),
            sample_size=each_side(self.spec.size, lambda side: side // self.spec.first_stage.downsampling_factor),
            is_linear=is_linear,
        )

    def text_tower(self, config: ClipPretrainedConfig) -> TextTower:
        """The text tower of a frozen CLIP, which is not stored in the checkpoint.

        Raises:
            UserError: it cannot be loaded, or is not the one that the model was trained with.
        """
        part = config.build(context_width=self.unet().config.context_width, latent_channels=1)
        self.check_frozen(part)
        return TextTower.of(part.frozen.encoder)

    def check_frozen(self, part: Conditioner[Any]) -> None:
        """Raises UserError for another pretrained encoder than the model was trained with."""
        for name, digest in part.frozen_digests().items():
            if self.spec.frozen.get(name) != digest:
                raise UserError(f"the text encoder {name} at hand is not the one that the model was trained with")

    def conditioners_of(self, kind: type[Kind]) -> dict[str, Kind]:
        """The configs of its conditioners of one kind, by name."""
        return of_kind(self.spec.conditioning, kind)


def is_first_stage(folder: Path) -> bool:
    """Whether a checkpoint's folder holds a first stage by itself.

    Raises:
        UserError: not a checkpoint.
    """
    opened = Checkpoint.open(folder, verified=False)
    return opened.has("first_stage") and not opened.has("denoiser")


def is_second(spec: LatentDiffusionSpec) -> bool:
    """Whether it reads text as Stable Diffusion 2 does, whose UNet has linear projections in diffusers instead of 1x1 convolutions."""
    return any(config.layer == "penultimate" for config in of_kind(spec.conditioning, ClipPretrainedConfig).values())


def check_kinds(spec: LatentDiffusionSpec, where: str) -> None:
    """Refuses parts that no peer has.

    Raises:
        UserError: names the first.
    """
    for kind, wanted, what in (
        (type(spec.denoiser), UNetConfig, f"denoiser {spec.denoiser.kind!r}"),
        (type(spec.first_stage), ConvolutionalConfig, f"first stage {spec.first_stage.kind!r}"),
    ):
        if not issubclass(kind, wanted):
            raise UserError(f"{where}: {what} has no counterpart in other tools")
    if spec.learned_variance:
        raise UserError(f"{where}: learned_variance has no counterpart: other tools' samplers use the mean only")
    if spec.network_input.kind != "table_index":
        raise UserError(f"{where}: network_input {spec.network_input.kind!r} has no counterpart: other tools have table_index only")
