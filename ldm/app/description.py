"""How large a run would be, before anything is allocated or fetched: its parts are built and run on the meta device.

Memory is that of one process, in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.app.config_owner import WHOSE, owner_of
from ldm.app.finetuning import completed
from ldm.app.frozen_first_stage import FirstStageSource, check_fit
from ldm.app.held import Held
from ldm.app.train_classifier import TrainClassifier, classes_of
from ldm.app.train_ldm import TrainLDM
from ldm.app.train_vae import TrainVAE
from ldm.checkpoints.folder import checkpoint_folder
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.conditioning.inputs import ConditionInputs
from ldm.config.loader import build, load, read
from ldm.core.errors import UserError
from ldm.data.open import open_dataset
from ldm.first_stage.config import FirstStageConfig
from ldm.first_stage.identity import IdentityConfig
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.first_stage.stage import FirstStage
from ldm.losses.equivariance import LARGEST
from ldm.losses.slopes import Slopes
from ldm.networks.lora import adapt, base_weights
from ldm.pretrained import lpips_to_count
from ldm.profiling.footprint import Footprint, measure, training_footprint
from ldm.training.config import TrainConfig
from ldm.training.parallel import blocks_of

META = torch.device("meta")


@dataclass(frozen=True, kw_only=True)
class Description:
    """
    Attributes:
        name: of the run.
        stage: 1 or 2; None = a classifier.
        image: (C, H, W) of a picture, of several sizes the largest.
        latent: (Z, h, w).
        parameters: by part. `frozen_encoder`: of pretrained text encoders; `lora`: of adapters beside the denoiser, where only they are
            trained; `conditioner`: as its kind is published; `conditioner_unused`: of these, those of an output layer that nothing
            reads and that we neither build nor store.
        trained: the parts that training changes.
        held: what training holds besides activations, in each process that has all of it.
        blocks: what several processes can share out.
        train: batch, steps and precision of the run.
        conditions: what the model is conditioned on, by name: the values that it takes.
        passes: the footprint of so many pictures in each pass of a step, one after the other.
    """

    name: str
    stage: int | None
    image: tuple[int, int, int]
    latent: tuple[int, int, int]
    parameters: dict[str, int]
    trained: tuple[str, ...]
    held: Held
    blocks: tuple[nn.Module, ...] = ()
    train: TrainConfig
    conditions: dict[str, str] = field(default_factory=dict)
    passes: tuple[Callable[[int], Footprint], ...]

    def at_once(self, processes: int) -> int:
        """Pictures that one of the processes which share a batch holds activations of: the largest micro-batch."""
        share = -(-self.train.batch_size // processes)
        return -(-share // self.train.accumulate)

    def held_by(self, processes: int) -> Held:
        """What one of so many processes holds."""
        is_shared_out = self.train.parallel.kind == "fsdp" and processes > 1
        return self.held.shared_out(self.blocks, processes) if is_shared_out else self.held

    def step(self, processes: int) -> Footprint:
        """Operations of one optimizer step over all processes; bytes of one process."""
        found = [(of(1), of(2)) for of in self.passes]
        return Footprint(
            flops=sum(one.extended(two, self.train.batch_size).flops for one, two in found),
            bytes=max(one.extended(two, self.at_once(processes)).bytes for one, two in found),
        )


def describe(config: Path, overrides: Sequence[str] = ()) -> Description:
    """The run that a config names.

    Args:
        config: of train_vae, train_ldm or train_classifier.
        overrides: `key=value`.

    Raises:
        UserError: as these scripts'; a config of another script.
    """
    content = read(config, overrides)
    match owner_of(content):
        case "train_ldm":
            return _of_diffusion(build(completed(content), TrainLDM))
        case "train_vae":
            vae = build(content, TrainVAE)
            vae.train.parallel.refuse_fsdp("this is stage one")
            return _of_autoencoder(vae)
        case "train_classifier":
            classifier = build(content, TrainClassifier)
            classifier.train.parallel.refuse_fsdp("this is a classifier")
            return _of_classifier(classifier)
        case "checkpoint":
            raise UserError(f"config {config} is {WHOSE['checkpoint']}")
    raise UserError(
        f"config {config}: has none of `denoiser`, `loss` and `network`, so it is none of train_ldm, train_vae and train_classifier, which "
        "describe reads"
    )


def first_stage_of(source: FirstStageSource, channels: int) -> FirstStageConfig:
    """The first stage that a stage-two run would take: of the checkpoint, or while that is not there of the config that makes it.

    Raises:
        UserError: neither is there.
    """
    if source.kind == "identity":
        return IdentityConfig(image_channels=channels)
    if source.is_there:
        assert source.checkpoint is not None
        folder = checkpoint_folder(source.checkpoint)
        return build(read(folder / "config.yaml").get("first_stage"), FirstStageConfig, "first_stage")  # type: ignore[type-abstract]
    if source.config is not None:
        return load(source.config, TrainVAE).first_stage
    raise UserError(f"first_stage.checkpoint {source.checkpoint}: no such folder; name one, or its config in first_stage.config")


def _of_autoencoder(config: TrainVAE) -> Description:
    channels = config.data.channels
    with META:
        first_stage = config.first_stage.build()
        loss = config.loss.build(channels, lpips_to_count() if config.loss.perceptual_weight else None)
    lpips = None if loss.perceptual is None else loss.perceptual.network
    parts = {"first_stage": first_stage, "discriminator": loss.discriminator, "lpips": lpips}
    parameters = {name: _count(part) for name, part in parts.items() if part is not None}
    image = (channels, *config.data.largest)

    def step(count: int) -> Tensor:
        """The adversary counts, as after loss.disc_start; see `AutoencoderTask`."""
        images = torch.empty(count, *image, device=META)
        noise = torch.empty(count, *first_stage.latent_shape(images), device=META)
        reconstruction, encoded = first_stage.reconstruct(images, noise)
        equivariance = None
        if config.loss.equivariance_weight:
            equivariance = loss.equivariance(images, encoded.sample(noise), first_stage.decode_raw, LARGEST)
        terms = loss.terms(images, reconstruction, encoded, equivariance)
        penalties = loss.penalties(terms).sum()
        if loss.discriminator is None:
            return terms.nll.sum() + penalties
        adversarial = loss.generator_loss(reconstruction).sum()
        total = terms.nll.sum() + penalties + adversarial
        if config.loss.adaptive:
            slopes = Slopes.of(reconstruction, terms.nll.sum(), adversarial, loss.log_variance)
            slopes.at(first_stage.last_layer.weight)
            total = slopes.loss(torch.ones((), device=META), penalties)
        return total + loss.discriminator_loss(images, reconstruction).loss.sum()

    modules: list[nn.Module] = [first_stage] if loss.discriminator is None else [first_stage, loss.discriminator]
    trained = tuple(name for name in parameters if name != "lpips")
    return Description(
        name=config.name,
        stage=1,
        image=image,
        latent=first_stage.latent_shape(torch.empty(1, *image, device=META)),
        parameters=parameters,
        trained=trained,
        held=Held.of(parameters, trained),
        train=config.train,
        passes=(lambda count: training_footprint(modules, lambda: step(count), config.train.autocast_dtype),),
    )


def _of_diffusion(config: TrainLDM) -> Description:
    stage_config = first_stage_of(config.first_stage, config.data.channels)
    check_fit(config.data, stage_config)
    normalization = LatentNormalization(channels=stage_config.latent_channels, downsampling_factor=stage_config.downsampling_factor)
    spec = config.spec(stage_config, normalization, _closed(config))
    with META:
        first_stage = stage_config.build().requires_grad_(False)
        conditioners = spec.build_conditioners()
        network = spec.build_network(conditioners)
        adapters = None if config.lora is None else adapt(network, config.lora, base="", seed=0)
    if adapters is not None:
        config.train.parallel.refuse_fsdp("adapters are few weights")
        conditioners.requires_grad_(False)
    image = (config.data.channels, *config.data.largest)
    latent = first_stage.latent_shape(torch.empty(1, *image, device=META))
    conditioners.attach(
        lambda images: torch.empty(len(images), *latent, device=META), stage_config.image_channels, stage_config.downsampling_factor
    )
    parameters = {
        "denoiser": sum(p.numel() for p in base_weights(network).values()),
        "lora": 0 if adapters is None else _count(adapters),
        "first_stage": _count(first_stage),
        "conditioner": _count(conditioners) + conditioners.num_unused,
        "frozen_encoder": conditioners.num_frozen,
        "conditioner_unused": conditioners.num_unused,
    }

    def step(count: int) -> Tensor:
        condition = conditioners(ConditionInputs(count=count), latent[1:])
        x_t, network_time = torch.empty(count, *latent, device=META), torch.empty(count, device=META)
        loss: Tensor = network(x_t, network_time, condition).float().square().mean()
        return loss

    def trains(count: int) -> Footprint:
        return training_footprint([network, conditioners], lambda: step(count), config.train.autocast_dtype)

    encodings = (not config.data.cache_latents) + any(part.encodes_images for part in conditioners)
    always = ("denoiser", "first_stage", "conditioner")
    trained = ("denoiser", "conditioner") if adapters is None else ("lora",)
    there = parameters | {"conditioner": _count(conditioners), "conditioner_unused": 0}
    return Description(
        name=config.name,
        stage=2,
        image=image,
        latent=latent,
        parameters={name: count for name, count in parameters.items() if count or name in always},
        trained=trained,
        held=Held.of(there, trained),
        blocks=(*blocks_of(network), *blocks_of(conditioners)),
        train=config.train,
        conditions={name: control.values for name, control in conditioners.controls.items()},
        passes=(trains, *[_encoding(first_stage, image)] * encodings),
    )


def _of_classifier(config: TrainClassifier) -> Description:
    stage_config = first_stage_of(config.first_stage, config.data.channels)
    check_fit(config.data, stage_config)
    normalization = LatentNormalization(channels=stage_config.latent_channels, downsampling_factor=stage_config.downsampling_factor)
    spec = config.spec(normalization, classes_of(open_dataset(config.data, "train", config.seed), None, config.num_classes))
    with META:
        first_stage = stage_config.build().requires_grad_(False)
        network = spec.build_network()
    image = (config.data.channels, *config.data.largest)
    latent = first_stage.latent_shape(torch.empty(1, *image, device=META))

    def step(count: int) -> Tensor:
        loss: Tensor = network(torch.empty(count, *latent, device=META), torch.empty(count, device=META)).float().square().mean()
        return loss

    def trains(count: int) -> Footprint:
        return training_footprint([network], lambda: step(count), config.train.autocast_dtype)

    parameters = {"classifier": _count(network), "first_stage": _count(first_stage)}
    return Description(
        name=config.name,
        stage=None,
        image=image,
        latent=latent,
        parameters=parameters,
        trained=("classifier",),
        held=Held.of(parameters, ("classifier",)),
        train=config.train,
        passes=(trains, *[_encoding(first_stage, image)] * (not config.data.cache_latents)),
    )


def _closed(config: TrainLDM) -> dict[str, ConditionerConfig]:
    """The conditioners, with what they leave to the training data taken from it."""
    if not any(part.is_open for part in config.conditioning.values()):
        return config.conditioning
    data = open_dataset(config.data, "train", config.seed)
    return {name: part.fitted(data.facts) if part.is_open else part for name, part in config.conditioning.items()}


def _encoding(first_stage: FirstStage, image: tuple[int, int, int]) -> Callable[[int], Footprint]:
    @torch.no_grad()
    def moments(count: int) -> Tensor:
        return first_stage.moments(torch.empty(count, *image, device=META))[0]

    return lambda count: measure(lambda: moments(count), None)


def _count(part: nn.Module) -> int:
    return sum(p.numel() for p in part.parameters())
