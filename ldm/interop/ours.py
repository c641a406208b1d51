"""A checkpoint of ours as it goes to a peer: spec and tensors, mapped from its files, in the precision they were saved in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ldm.checkpoints.folder import Checkpoint
from ldm.checkpoints.model import LatentDiffusionSpec, located
from ldm.conditioning.clip_pretrained import ClipPretrained, ClipPretrainedConfig
from ldm.conditioning.conditioner import Conditioner, ConditionerConfig, build_conditioners
from ldm.core.errors import UserError
from ldm.first_stage.convolutional import ConvolutionalConfig
from ldm.interop.clip_text import TextTower
from ldm.interop.diffusers.unet import SizedUNet
from ldm.networks.unet import UNetConfig

Kind = TypeVar("Kind", bound=ConditionerConfig)


@dataclass(frozen=True, kw_only=True)
class Ours:
    """Both stages."""

    spec: LatentDiffusionSpec
    first_stage: dict[str, Tensor]
    denoiser: dict[str, Tensor]
    conditioner: dict[str, Tensor]

    @staticmethod
    def open(folder: Path) -> Ours:
        """A folder's, of a kind that peers may have.

        Raises:
            UserError: not a checkpoint of both stages; of parts that no peer has.
        """
        opened = Checkpoint.open(folder)
        if "denoiser" not in opened.config:
            raise UserError(f"checkpoint {folder} is not of both stages; a first stage or classifier by itself is not exported")
        spec = located(opened.spec(LatentDiffusionSpec), opened.folder)
        check_kinds(spec, f"checkpoint {folder}")
        parts = {name: opened.tensors(name) if opened.has(name) else {} for name in ("first_stage", "denoiser", "conditioner")}
        return Ours(spec=spec, **parts)

    @property
    def autoencoder(self) -> ConvolutionalConfig:
        assert isinstance(self.spec.first_stage, ConvolutionalConfig)
        return self.spec.first_stage

    def unet(self, *, is_linear: bool = False) -> SizedUNet:
        """The denoiser with its ends."""
        config = self.spec.denoiser
        assert isinstance(config, UNetConfig)
        return SizedUNet(
            config=config,
            in_channels=self.denoiser["input_blocks.0.0.weight"].shape[1],
            out_channels=len(self.denoiser["out.2.weight"]),
            sample_size=self.spec.size // self.spec.first_stage.downsampling_factor,
            is_linear=is_linear,
        )

    def text_tower(self, config: ClipPretrainedConfig) -> TextTower:
        """A frozen CLIP's, which is not stored in the checkpoint.

        Raises:
            UserError: it is not at hand, or another one.
        """
        part = next(iter(build_conditioners({"text": config}, context_width=self.unet().config.context_width, latent_channels=1)))
        assert isinstance(part, ClipPretrained)
        self.check_frozen(part)
        return TextTower.of(part.frozen.encoder)

    def check_frozen(self, part: Conditioner) -> None:
        """Refuses, by UserError, another pretrained encoder than the model was trained with."""
        for name, digest in part.frozen_digests().items():
            if self.spec.frozen.get(name) != digest:
                raise UserError(f"the text encoder {name} at hand is another one than the model was trained with")

    def told_by(self, kind: type[Kind]) -> dict[str, Kind]:
        """Its conditioners of a kind."""
        return {name: config for name, config in self.spec.conditioning.items() if isinstance(config, kind)}


def is_second(spec: LatentDiffusionSpec) -> bool:
    """Whether it reads text as Stable Diffusion 2 does, whose UNet has linear projections in diffusers instead of 1x1 convolutions."""
    return any(isinstance(part, ClipPretrainedConfig) and part.layer == "penultimate" for part in spec.conditioning.values())


def check_kinds(spec: LatentDiffusionSpec, where: str) -> None:
    """Refuses parts that no peer has.

    Raises:
        UserError: so they are.
    """
    for kind, wanted, what in (
        (type(spec.denoiser), UNetConfig, f"denoiser {spec.denoiser.kind!r}"),
        (type(spec.first_stage), ConvolutionalConfig, f"first stage {spec.first_stage.kind!r}"),
    ):
        if not issubclass(kind, wanted):
            raise UserError(f"{where}: {what} has no counterpart in other tools")
    if spec.learned_variance:
        raise UserError(f"{where}: learned_variance has no counterpart: other tools' samplers take the mean only")
    if spec.network_input.kind != "table_index":
        raise UserError(f"{where}: network_input {spec.network_input.kind!r} has no counterpart: theirs is table_index")
