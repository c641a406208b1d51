"""A stage-two model while it is trained: its weights, their averages, and how they are saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoints.lora import LoraSpec, beside, write_lora
from ldm.checkpoints.model import LatentDiffusionSpec, write_latent_diffusion
from ldm.conditioning.conditioner import Conditioners
from ldm.core.distributed import World
from ldm.core.precision import DTYPES
from ldm.data.buckets import sizes_in_words
from ldm.data.image_dataset import ImageDataset
from ldm.first_stage.stage import FirstStage
from ldm.networks.lora import Adapters, adapt, base_weights, merged, twin
from ldm.training.config import TrainConfig
from ldm.training.ema import Ema
from ldm.training.parallel import gathered, share_out


@dataclass(frozen=True, kw_only=True)
class DiffusionParts:
    """What a run begins with.

    Attributes:
        spec: of the model.
        first_stage: frozen.
        first_stage_weights: as its checkpoint stores them.
        network: the denoiser.
        conditioners: its conditioners.
        lora: adapters to train beside the denoiser, and nothing else; None = all of it is trained.
    """

    spec: LatentDiffusionSpec
    first_stage: FirstStage
    first_stage_weights: dict[str, Tensor]
    network: nn.Module
    conditioners: Conditioners
    lora: LoraSpec | None = None


class DiffusionModel:
    """The parts on their device, with what of them is trained and averaged.

    Attributes:
        trained: by name, what has weights to train.
        averaged: by name, their exponential moving averages.
        mean_network, mean_conditioners: the model by averaged weights.
    """

    def __init__(self, parts: DiffusionParts, config: TrainConfig, seed: int, world: World) -> None:
        self.spec, self.config, self.lora, self.world = parts.spec, config, parts.lora, world
        is_shared_out = config.parallel.kind == "fsdp" and world.size > 1
        if parts.lora is not None:
            config.parallel.refuse_fsdp("adapters are few weights, and those beside them are only read")
        first = torch.device("cpu") if is_shared_out else world.device  # no device need have room for all weights
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.first_stage, self.first_stage_weights = parts.first_stage.to(world.device), parts.first_stage_weights
        self.network = parts.network.to(first).to(memory_format=self.memory_format)
        config_of_first = self.spec.first_stage
        self.conditioners = parts.conditioners.to(first).attach(
            self.first_stage.encode, config_of_first.image_channels, config_of_first.downsampling_factor
        )
        self.trained: dict[str, nn.Module] = {"denoiser": self.network, "conditioner": self.conditioners}
        self.adapters = None if self.lora is None else adapt(self.network, self.lora.lora, self.lora.base_digest, seed)
        if self.adapters is not None:
            self.conditioners.requires_grad_(False).eval()
            self.trained = {"lora": self.adapters}
        self.averaged: dict[str, Ema[Any]] = {name: Ema(module, config.ema_decay) for name, module in self.trained.items()}
        for name, module in self.trained.items() if is_shared_out else ():
            share_out(module, self.averaged[name].module, world)
        if self.adapters is None:
            self.mean_network, self.mean_conditioners = self.averaged["denoiser"].module, self.averaged["conditioner"].module
        else:  # whose frozen weights are there once
            self.mean_network = twin(self.network, self.adapters, self.averaged["lora"].module)
            self.mean_conditioners = self.conditioners

    def trained_parameters(self) -> list[nn.Parameter]:
        """All that the optimizer changes."""
        return [p for module in self.trained.values() for p in module.parameters() if p.requires_grad]

    def counts(self) -> dict[str, int]:
        """Parameters by part."""
        parts = {"denoiser": self.network, "conditioner": self.conditioners, "first_stage": self.first_stage}
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        if self.adapters is not None:
            counts["lora"] = sum(p.numel() for p in self.adapters.parameters())
            counts["denoiser"] -= counts["lora"]
        return counts | {"frozen_encoder": self.conditioners.num_frozen}

    @torch.no_grad()
    def save(self, folder: Path, card: str) -> None:
        """The averaged weights in the checkpoint's precision, with the first stage exactly as it was given.

        Of adapters: the model with them merged into it, and beside its folder one of the adapters alone. All processes call it; the first
        writes.

        Args:
            card: the model card, without its heading.
        """
        dtype = DTYPES[self.config.checkpoint_dtype]

        def rounded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
            return {key: tensor.to("cpu", dtype) for key, tensor in weights.items()}

        denoiser, conditioners = (gathered(part.state_dict(), self.world) for part in (self.mean_network, self.mean_conditioners))

        def write(denoiser: dict[str, Tensor] = denoiser) -> None:
            if self.lora is not None:
                alone: Adapters = self.averaged["lora"].module
                tensors = rounded(alone.tensors())
                base = {name: weight.cpu() for name, weight in base_weights(self.network).items()}
                denoiser = merged(base, tensors, self.lora.lora.scale)
                write_lora(beside(folder), self.lora, tensors, self._headed(card, "LoRA of a latent diffusion model"))
            write_latent_diffusion(
                folder, self.spec, self.first_stage_weights, rounded(denoiser), rounded(conditioners),
                self._headed(card, "Latent diffusion model"), self.config.checkpoint_file_mib << 20,
            )  # fmt: skip

        self.world.on_first(write)

    def _headed(self, card: str, what: str) -> str:
        conditions = ", ".join(self.conditioners.names)
        given = f"conditioned on {conditions}" if conditions else "unconditional"
        return f"# {self.spec.name}\n\n{what}, {sizes_in_words(self.spec.size, self.spec.buckets)}; {given}.\n\n{card}"

    def card(self, data: ImageDataset, step: int, seed: int) -> str:
        """What a reader of the checkpoint wants to know of its training."""
        parts = ", ".join(f"{name} {count:,}" for name, count in self.counts().items() if count)
        config = self.config
        return (
            f"- Parameters: {parts}; averaged weights in {config.checkpoint_dtype}.\n"
            f"{self._card_of_lora()}"
            f"{data.card}"
            f"- Trained {step} steps of batch {config.batch_size}, seed {seed}, {config.precision}.\n"
            f"- First stage: digest {self.spec.normalization.digest or '(identity)'}.\n"
        )

    def _card_of_lora(self) -> str:
        if self.lora is None:
            return ""
        shape, base = self.lora.lora, self.lora
        return f"- LoRA of rank {shape.rank} ({shape.targets}) on {base.base.name}, whose denoiser has digest {base.base_digest}.\n"
