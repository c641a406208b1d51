"""Stage two: a conditional denoiser on the frozen first stage's latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoints.lora import LoraSpec, beside, write_lora
from ldm.checkpoints.model import LatentDiffusionSpec, write_latent_diffusion
from ldm.conditioning.boxes import Boxes
from ldm.conditioning.class_label import ClassLabel
from ldm.conditioning.conditioner import Conditioners
from ldm.conditioning.inpaint_mask import InpaintMask, mask_told
from ldm.conditioning.inputs import ConditionInputs
from ldm.conditioning.low_resolution import LowResolution
from ldm.conditioning.semantic_map import SemanticMap
from ldm.core.precision import DTYPES
from ldm.core.random import Streams
from ldm.data.batch import Batch
from ldm.data.latent_cache import LatentCache
from ldm.data.pictures import Pictures
from ldm.data.random_masks import random_mask
from ldm.diffusion.importance import LossMemory
from ldm.diffusion.objective import Objective
from ldm.diffusion.time_density import UniformSteps
from ldm.first_stage.stage import FirstStage
from ldm.networks.lora import Adapters, adapt, base_weights, merged, twin
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.renderer import hole_latent
from ldm.training.config import TrainConfig
from ldm.training.distributed import World
from ldm.training.ema import Ema
from ldm.training.engine import Evaluation, Pass
from ldm.training.latents import LatentBatch, Latents
from ldm.training.pictures import grid_of

EVALUATED = 256  # held-out pictures whose loss is measured, at always the same times and noises
SHOWN = 8  # pictures a row of the sample grid


class DiffusionTask:
    """Trains a denoiser and its conditioners, or adapters beside them (`lora`); see `ldm.training.engine.Task`."""

    def __init__(
        self,
        spec: LatentDiffusionSpec,
        first_stage: FirstStage,
        first_stage_weights: dict[str, Tensor],
        network: nn.Module,
        conditioners: Conditioners,
        objective: Objective,
        train_set: Pictures,
        held_out: Pictures | None,
        cache: LatentCache | None,
        config: TrainConfig,
        drop_all: float,
        prompts: tuple[str, ...],
        seed: int,
        world: World,
        lora: LoraSpec | None = None,
    ) -> None:
        self.spec, self.config, self.objective, self.seed, self.world = spec, config, objective, seed, world
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.first_stage, self.first_stage_weights = first_stage.to(world.device), first_stage_weights
        self.network = network.to(world.device).to(memory_format=self.memory_format)
        self.conditioners = conditioners.to(world.device)
        self.train_set = train_set
        self.latents = Latents(self.first_stage, train_set, held_out, cache, seed, world.device)
        self.drop_all, self.prompts = drop_all, prompts
        self.trained: dict[str, nn.Module] = {"denoiser": self.network, "conditioner": self.conditioners}
        self.lora, self.adapters = lora, None if lora is None else adapt(self.network, lora.lora, lora.base_digest, seed)
        if self.adapters is not None:
            self.conditioners.requires_grad_(False).eval()
            self.trained = {"lora": self.adapters}
        self.averaged: dict[str, Ema] = {name: Ema(module, config.ema_decay) for name, module in self.trained.items()}
        if self.adapters is None:
            self.mean_network, self.mean_conditioners = self.averaged["denoiser"].module, self.averaged["conditioner"].module
        else:  # whose frozen weights are there once
            self.mean_network = twin(self.network, self.adapters, self.averaged["lora"].module)
            self.mean_conditioners = self.conditioners
        self.groups = {"denoiser": [p for module in self.trained.values() for p in module.parameters() if p.requires_grad]}
        self.memory = objective.density if isinstance(objective.density, LossMemory) else None
        if self.memory is not None:
            self.trained["density"] = self.memory
        # What is measured on held-out pictures must not depend on what training has learned of its steps.
        self.measure = objective if self.memory is None else dataclasses.replace(objective, density=UniformSteps())
        self.data_digest = f"{train_set.digest} {spec.space.digest}"
        self._call = torch.compile(self.network) if config.compile else self.network
        self._mask = mask_told(conditioners)
        self._hole = None if self._mask is None else hole_latent(self._mask, self.first_stage, spec.size, world.device)
        self._latent_size = (spec.size // self.first_stage.ratio,) * 2
        self._held_out: list[LatentBatch] = []

    def describe(self) -> dict[str, int]:
        parts = {"denoiser": self.network, "conditioner": self.conditioners, "first_stage": self.first_stage}
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        if self.adapters is not None:
            counts["lora"] = sum(p.numel() for p in self.adapters.parameters())
            counts["denoiser"] -= counts["lora"]
        return counts | {"frozen_encoder": self.conditioners.num_frozen}

    def batches(self, first_step: int) -> Iterator[LatentBatch]:
        return self.latents.batches(self.config.batch_size, first_step, self.world.part(self.config.batch_size))

    def keys(self, batch: LatentBatch) -> tuple[str, ...]:
        return batch.pictures.keys

    def accumulate(self, batch: LatentBatch, now: Pass) -> dict[str, Tensor]:
        streams = Streams.of(self.seed, "train", now.step, samples=batch.positions)
        total, losses = torch.zeros((), device=self.world.device), []
        for start, stop in batch.parts(self.config.accumulate):
            each = self._loss(batch.part(start, stop), streams.part(start, stop), now.autocast())
            loss = each.sum() / now.batch_size
            now.backward(loss)
            total += loss.detach()
            losses.append(each.detach())
        if self.memory is not None:
            self.memory.learn(torch.cat(losses), streams, self.objective.process, now.batch_size, self.world.sum_)
        return {"loss": total}

    def _loss(self, batch: LatentBatch, streams: Streams, autocast: AbstractContextManager[Any]) -> Tensor:
        """Per sample, (B,)."""
        latents = self._drawn(batch, streams)
        drops = self._drops(streams)
        inputs = self._told(batch.pictures, drops, streams)
        with autocast:
            condition = self.conditioners(inputs, self._latent_size, drops)
            return self.objective(self._call, latents, condition, streams)

    def _drawn(self, batch: LatentBatch, streams: Streams) -> Tensor:
        """Normalised latents, drawn anew from the posterior each time."""
        return self.latents.draw(batch, streams).contiguous(memory_format=self.memory_format)

    def _drops(self, streams: Streams) -> dict[str, Tensor]:
        """Which rows, (B,) bool, are told nothing by each conditioner: by its own share, and with all the others by `drop_all`."""
        together = streams.uniform("drop") < self.drop_all
        return {name: together | rows for name, rows in self.conditioners.draw_drops(streams).items()}

    @torch.no_grad()
    def _told(self, pictures: Batch, drops: dict[str, Tensor], streams: Streams) -> ConditionInputs:
        """What the network may be told of each picture; masks only where they are not dropped."""
        masks = masked = None
        for name, part in self.conditioners.parts.items():
            if isinstance(part, InpaintMask):
                masks, masked = self._holes(pictures, ~drops[name], streams)
        return ConditionInputs(
            count=len(pictures.keys),
            captions=pictures.captions,
            labels=pictures.labels,
            maps=pictures.maps,
            masks=masks,
            masked_latents=masked,
            hole_latent=self._hole,
            boxes=pictures.boxes,
            low_resolution=pictures.images,
        )

    def _holes(self, pictures: Batch, kept: Tensor, streams: Streams) -> tuple[Tensor, Tensor]:
        """Masks and masked latents; only rows that keep theirs are drawn and encoded."""
        assert self._mask is not None and self._hole is not None
        count, _, height, width = pictures.images.shape
        masks = torch.ones(count, 1, height, width)
        latents = self._hole.repeat(count, 1, 1, 1)
        rows = kept.nonzero()[:, 0].tolist()
        if rows:
            generators = streams.generators("mask")
            for row in rows:
                masks[row] = random_mask(height, None if pictures.masks is None else pictures.masks[row], generators[row])
            masked = self._mask.masked(pictures.images[rows], masks[rows])
            latents[rows] = self.first_stage.encode(masked.to(self.world.device))
        return masks, latents

    def _held_out_parts(self) -> list[LatentBatch]:
        """The first held-out pictures (training pictures, if there are none), encoded once."""
        self._held_out = self._held_out or list(self.latents.first_held_out(EVALUATED))
        return self._held_out

    def evaluate(self, autocast: AbstractContextManager[Any]) -> Evaluation:
        """Loss of the averaged weights, told all that training ever tells, at times and noises that are the same at every evaluation."""
        losses: list[Tensor] = []
        named = tuple(zip(self.conditioners.names, self.conditioners, strict=True))
        for batch in self._held_out_parts():
            streams = Streams.of(self.seed, "evaluate", samples=batch.positions)
            drops = {name: torch.full((len(batch.positions),), part.drop == 1) for name, part in named}
            with autocast:
                condition = self.mean_conditioners(self._told(batch.pictures, drops, streams), self._latent_size, drops)
                losses.append(self.measure(self.mean_network, self._drawn(batch, streams), condition, streams))
        loss = torch.cat(losses).mean().item()
        return Evaluation(metrics={"val/loss": loss}, lines=(f"held-out loss {loss:.4f} (averaged weights)",))

    def picture(self, autocast: AbstractContextManager[Any]) -> Tensor:
        """One row per way of asking that the model was trained for: the configured prompts, labels, maps, holes; fixed seeds."""
        model = LatentDiffusion(
            spec=self.spec,
            first_stage=self.first_stage,
            network=self.mean_network,
            conditioners=self.mean_conditioners,
            device=self.world.device,
            precision=self.config.precision,
        )
        how = model.sampling(seed=self.seed)
        pictures = self._held_out_parts()[0].pictures
        untold = model.tell(model.untold())
        rows = []
        for inputs, keeps in self._asked(pictures):
            told = [model.tell(one) for one in inputs]
            away = [model.tell(one) for one in keeps] if keeps else [untold] * len(told)
            rows.append(model.render(told, away, how))
        if self._mask is not None:
            rows.append(self._mask.masked(pictures.images, _centre_box(pictures.images))[: len(rows[0])])
        return grid_of(torch.cat(rows), columns=len(rows[0]))

    def _asked(self, pictures: Batch) -> Iterator[tuple[list[ConditionInputs], list[ConditionInputs]]]:
        """Rows of the sample grid: what is told, and what guidance leads away from (empty = nothing)."""
        shown = range(min(SHOWN, len(pictures.keys)))
        base = ConditionInputs(count=1, hole_latent=self._hole)
        asked = False
        if any(part.reads_text for part in self.conditioners):
            prompts = self.prompts or tuple(pictures.captions[i] for i in shown)
            yield [dataclasses.replace(base, captions=(prompts[i % len(prompts)],)) for i in shown], []
            asked = True
        for part in self.conditioners:
            if isinstance(part, ClassLabel):
                yield [dataclasses.replace(base, labels=torch.tensor([i % part.config.classes])) for i in shown], []
                asked = True
            if isinstance(part, SemanticMap) and pictures.maps is not None:
                yield [dataclasses.replace(base, maps=pictures.maps[i : i + 1]) for i in shown], []
                asked = True
            if isinstance(part, Boxes) and pictures.boxes is not None:
                yield [dataclasses.replace(base, boxes=pictures.boxes[i : i + 1]) for i in shown], []
                asked = True
            if isinstance(part, LowResolution):
                yield [dataclasses.replace(base, low_resolution=pictures.images[i : i + 1]) for i in shown], []
                asked = True
        if self._mask is not None:
            holes = _centre_box(pictures.images)
            latents = self.first_stage.encode(self._mask.masked(pictures.images, holes)[list(shown)].to(self.world.device))
            told = [dataclasses.replace(base, masks=holes[i : i + 1], masked_latents=latents[i : i + 1]) for i in shown]
            yield told, told
            asked = True
        if not asked:
            yield [base] * len(shown), []

    @torch.no_grad()
    def save(self, folder: Path, step: int, steps: int) -> None:
        """The averaged weights in the checkpoint's precision, with the first stage exactly as it was given.

        Of adapters: the model with them merged into it, and beside its folder one of the adapters alone.
        """
        dtype = DTYPES[self.config.checkpoint_dtype]

        def rounded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
            return {key: tensor.to("cpu", dtype) for key, tensor in weights.items()}

        if self.lora is None:
            denoiser = self.mean_network.state_dict()
        else:
            alone: Adapters = self.averaged["lora"].module
            tensors = rounded(alone.tensors())
            base = {name: weight.cpu() for name, weight in base_weights(self.network).items()}
            denoiser = merged(base, tensors, self.lora.lora.scale)
            write_lora(beside(folder), self.lora, tensors, self._card(step, "LoRA of a latent diffusion model"))
        conditioner, card = rounded(self.mean_conditioners.state_dict()), self._card(step, "Latent diffusion model")
        write_latent_diffusion(
            folder, self.spec, self.first_stage_weights, rounded(denoiser), conditioner, card, self.config.checkpoint_file_mib << 20
        )

    def _card(self, step: int, what: str) -> str:
        parts = ", ".join(f"{name} {count:,}" for name, count in self.describe().items() if count)
        return (
            f"# {self.spec.name}\n\n"
            f"{what}, {self.spec.size}x{self.spec.size}; told {', '.join(self.conditioners.names) or 'nothing'}.\n\n"
            f"- Parameters: {parts}; averaged weights in {self.config.checkpoint_dtype}.\n"
            f"{self._card_of_lora()}"
            f"- Data: {self.train_set.name}, {self.train_set.size_in_words}.\n"
            f"- Trained {step} steps of batch {self.config.batch_size}, seed {self.seed}, {self.config.precision}.\n"
            f"- First stage: digest {self.spec.space.digest or '(identity)'}.\n"
        )

    def _card_of_lora(self) -> str:
        if self.lora is None:
            return ""
        shape, base = self.lora.lora, self.lora
        return f"- LoRA of rank {shape.rank} ({shape.targets}) on {base.base.name}, whose denoiser has digest {base.base_digest}.\n"


def _centre_box(images: Tensor) -> Tensor:
    """(B, 1, H, W): the middle half of each side is to be painted."""
    count, _, height, width = images.shape
    holes = torch.zeros(count, 1, height, width)
    holes[:, :, height // 4 : height - height // 4, width // 4 : width - width // 4] = 1
    return holes
