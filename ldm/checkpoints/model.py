"""A checkpoint's `config.yaml` as typed specs, and the models that are built from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ldm.checkpoints.folder import Checkpoint, load_strictly, read_again, write_checkpoint
from ldm.conditioning.conditioner import ConditionerConfig, Conditioners, build_conditioners
from ldm.config.loader import to_yaml
from ldm.core.errors import UserError
from ldm.core.precision import dtypes_to_hold
from ldm.core.settings import Limit, Precision, Size, height_width, in_pixels
from ldm.data.buckets import Buckets, sizes_of
from ldm.data.config import Depth, Fit
from ldm.diffusion.grid import Grid, Trailing
from ldm.diffusion.network_input import NetworkInput, TableIndex
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.process import NoiseProcess
from ldm.first_stage.config import FirstStageConfig
from ldm.first_stage.latent_normalization import LatentNormalization, encoder_digest, weights_digest
from ldm.first_stage.stage import FirstStage
from ldm.guidance.classifier_free import check_limits
from ldm.guidance.thresholded import Threshold, check_threshold
from ldm.networks.config import DenoiserNetworkConfig
from ldm.samplers.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class AutoencoderSpec:
    """A first stage by itself.

    Attributes:
        name: of the run.
        size: of the training images, [height, width] in pixels, or the side of a square.
        buckets: the sizes of the training images where they had several, see `DataConfig.buckets`.
        fit: how images were brought to that size, see `DataConfig.fit`.
        normalization: the latent normalization; its digest is that of the stored weights.
        background: RGB, 0 to 255, behind transparent images in training.
        depth: bits a channel of pictures, see `DataConfig.depth`.
        levels: numbers that were black and white in training, see `DataConfig.levels`.
    """

    name: str
    size: Size
    buckets: Buckets | None = None
    fit: Fit = "centre"
    first_stage: FirstStageConfig
    normalization: LatentNormalization
    background: tuple[int, int, int] = (255, 255, 255)
    depth: Depth = 8
    levels: tuple[float, float] | None = None

    def with_normalization(self, normalization: LatentNormalization) -> AutoencoderSpec:
        return dataclasses.replace(self, normalization=normalization)


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """Sampling settings where the caller gives none; see `ldm.guidance.classifier_free` and `thresholded`."""

    sampler: Sampler
    steps: int = 20
    guidance: float = 4.0
    guidance_interval: tuple[float, Limit] | None = None
    guidance_rescale: float = 0.0
    threshold: Threshold | None = None
    grid: Grid = Trailing()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}")
        check_limits(self.guidance, self.guidance_interval, self.guidance_rescale)
        check_threshold(self.threshold)

    def check(self, process: NoiseProcess) -> None:
        """
        Raises:
            UserError: steps that the process does not have; a sampler that is not defined for it.
        """
        self.sampler.check(process, self.grid.times(process, self.steps))


@dataclass(frozen=True, kw_only=True)
class LatentDiffusionSpec:
    """Both stages.

    Attributes:
        size: of the training images, and of those that are drawn where no other is asked for; [height, width] in pixels, or the side of a
            square.
        buckets: the sizes of the training images where they had several, see `DataConfig.buckets`.
        fit: how images were brought to that size, see `DataConfig.fit`.
        normalization: its digest is that of the first stage's weights; stage two works with no others.
        network_input: scaling and network_time of the denoiser's input; older checkpoints lack the key and mean the default.
        learned_variance: the denoiser has twice the output channels, see `ldm.diffusion.denoiser`.
        frozen: sha256 of each frozen pretrained encoder that is used but not stored.
        background: RGB, 0 to 255, behind transparent images in training.
        depth: bits a channel of pictures, see `DataConfig.depth`.
        levels: numbers that were black and white in training, see `DataConfig.levels`.
        map_void: class of maps that meant "unknown" there, see `DataConfig.map_void`.
    """

    name: str
    size: Size
    buckets: Buckets | None = None
    fit: Fit = "centre"
    first_stage: FirstStageConfig
    normalization: LatentNormalization
    denoiser: DenoiserNetworkConfig
    process: NoiseProcess
    prediction: Prediction
    network_input: NetworkInput = TableIndex()
    learned_variance: bool = False
    conditioning: dict[str, ConditionerConfig]
    sampling: SamplingDefaults
    frozen: dict[str, str] = field(default_factory=dict)
    background: tuple[int, int, int] = (255, 255, 255)
    depth: Depth = 8
    levels: tuple[float, float] | None = None
    map_void: int | None = None

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of the latents of images of `size`."""
        height, width = height_width(self.size)
        return height // self.first_stage.downsampling_factor, width // self.first_stage.downsampling_factor

    @property
    def size_multiple(self) -> int:
        """What the sides of images must be multiples of, in pixels."""
        return self.first_stage.downsampling_factor * self.denoiser.size_multiple

    def with_frozen(self, digests: dict[str, str]) -> LatentDiffusionSpec:
        return dataclasses.replace(self, frozen=digests)

    def build_conditioners(self, *, empty: bool = False) -> Conditioners:
        """See `ldm.conditioning.conditioner.build_conditioners`."""
        channels = self.first_stage.latent_channels
        return build_conditioners(self.conditioning, context_width=self.denoiser.context_width, latent_channels=channels, empty=empty)

    def build_network(self, conditioners: Conditioners) -> nn.Module:
        """The denoiser with fresh weights.

        Raises:
            UserError: conditions that do not fit the network's inputs; latents whose side cannot be halved down to its last level.
        """
        if conditioners.uses_tokens != (self.denoiser.context_width is not None):
            advice = "set it to null: no conditioner gives tokens" if self.denoiser.context_width else "set it: a conditioner gives tokens"
            raise UserError(f"denoiser.context_width is {self.denoiser.context_width or 'null'}; {advice}")
        for size in {height_width(self.size), *sizes_of(self.size, self.buckets)}:
            if any(side % self.size_multiple for side in size):
                latent = tuple(side // self.first_stage.downsampling_factor for side in size)
                key = "data.size" if self.buckets is None or size == height_width(self.size) else "data.buckets.step"
                raise UserError(
                    f"latents of {in_pixels((latent[0], latent[1]))} cannot be halved down to the denoiser's last level: "
                    f"make {key} a multiple of {self.size_multiple}, or give denoiser.multipliers fewer levels"
                )
        if conditioners.vector_width != self.denoiser.vector_width:
            raise UserError(f"denoiser.vector_width must be {conditioners.vector_width or 'null'}, the width of the conditioners' vectors")
        channels = self.first_stage.latent_channels
        return self.denoiser.build(channels + conditioners.concat_channels, 2 * channels if self.learned_variance else channels)


def write_autoencoder(folder: Path, spec: AutoencoderSpec, weights: dict[str, Tensor], card: str, max_file_bytes: int) -> None:
    """Writes a first stage's checkpoint folder. `spec.normalization.digest` must be that of `weights`."""
    assert spec.normalization.digest == weights_digest(weights)
    write_checkpoint(folder, to_yaml(spec), {"first_stage": weights}, card, max_file_bytes)


def write_latent_diffusion(
    folder: Path,
    spec: LatentDiffusionSpec,
    first_stage: dict[str, Tensor],
    denoiser: dict[str, Tensor],
    conditioner: dict[str, Tensor],
    card: str,
    max_file_bytes: int,
) -> None:
    """Writes both stages' checkpoint folder. Parts without tensors (identity first stage, no conditioner) have no file.

    `spec.normalization.digest` must be that of `first_stage`.
    """
    assert not first_stage or spec.normalization.digest == weights_digest(first_stage)
    parts = {"first_stage": first_stage, "denoiser": denoiser, "conditioner": conditioner}
    write_checkpoint(folder, to_yaml(spec), {name: part for name, part in parts.items() if part}, card, max_file_bytes)


Spec = TypeVar("Spec", AutoencoderSpec, LatentDiffusionSpec)


@read_again
def load_first_stage(folder: Path | str, device: torch.device) -> tuple[FirstStage, AutoencoderSpec, dict[str, Tensor]]:
    """The frozen first stage of a stage-one or stage-two checkpoint, its spec, and its weights as stored.

    Raises:
        UserError: not a checkpoint; altered; weights other than those for which the latent normalization was measured.
    """
    opened = Checkpoint.open(folder)
    _refuse_others(opened)
    if "denoiser" in opened.config:  # stage two's config has all keys of stage one's
        whole = opened.spec(LatentDiffusionSpec)
        spec = AutoencoderSpec(
            name=whole.name,
            size=whole.size,
            buckets=whole.buckets,
            fit=whole.fit,
            first_stage=whole.first_stage,
            normalization=whole.normalization,
            background=whole.background,
            depth=whole.depth,
            levels=whole.levels,
        )
    else:
        spec = opened.spec(AutoencoderSpec)
    weights = _weights(opened, "first_stage")
    spec = _with_encoder(spec, weights)
    return _first_stage(spec.first_stage, spec.normalization, weights, device, opened.folder), spec, weights


def _refuse_others(opened: Checkpoint) -> None:
    if opened.has("classifier"):
        flag = "--judge of scripts/evaluate.py ldm" if opened.config.get("process") is None else "--classifier"
        raise UserError(f"checkpoint {opened.folder} holds a classifier, neither first stage nor diffusion model; pass it as {flag}")
    if opened.has("lora"):
        raise UserError(f"checkpoint {opened.folder} holds a LoRA, which is not a model by itself; pass it as --lora beside its base")


def _weights(opened: Checkpoint, part: str, dtypes: Mapping[str, torch.dtype] | None = None) -> dict[str, Tensor]:
    """A part's tensors; none if the part has no file."""
    return opened.tensors(part, dtypes) if opened.has(part) else {}


def _first_stage(
    config: FirstStageConfig, normalization: LatentNormalization, weights: dict[str, Tensor], device: torch.device, where: Path
) -> FirstStage:
    if weights and weights_digest(weights) != normalization.digest:
        raise UserError(
            f"checkpoint {where}: the first stage's weights are not those for which its latent normalization was measured "
            f"(digest {weights_digest(weights)[:12]}, not {normalization.digest[:12] or 'none'}); use the first stage it was trained with"
        )
    if (normalization.channels, normalization.downsampling_factor) != (config.latent_channels, config.downsampling_factor):
        raise UserError(
            f"checkpoint {where}: its latent normalization has {normalization.channels} channels at downsampling factor "
            f"{normalization.downsampling_factor}, its first stage {config.latent_channels} at {config.downsampling_factor}"
        )
    with torch.device("meta"):  # the weights come from the file, so no random ones are drawn
        first_stage = config.build()
    load_strictly(first_stage, weights, f"checkpoint {where}: first stage")
    first_stage.normalization = normalization
    return first_stage.to(device).eval().requires_grad_(False)


def _with_encoder(spec: Spec, weights: dict[str, Tensor]) -> Spec:
    """The spec with the digest of its encoder, which older checkpoints do not name."""
    known = spec.normalization.encoder or encoder_digest(weights)
    return dataclasses.replace(spec, normalization=dataclasses.replace(spec.normalization, encoder=known))


def read_spec(folder: Path | str) -> LatentDiffusionSpec:
    """The spec of a checkpoint of both stages. Its weights are neither read nor verified.

    Raises:
        UserError: not a checkpoint; of a first stage only.
    """
    return _spec_of_both(Checkpoint.open(folder, verified=False))


def _spec_of_both(opened: Checkpoint) -> LatentDiffusionSpec:
    _refuse_others(opened)
    if "denoiser" not in opened.config:
        raise UserError(
            f"checkpoint {opened.folder} holds a first stage only; train the second with scripts/train_ldm.py "
            f"first_stage.checkpoint={opened.folder}"
        )
    return located(opened.spec(LatentDiffusionSpec), opened.folder)


def located(spec: LatentDiffusionSpec, folder: Path) -> LatentDiffusionSpec:
    """The spec with the present paths of text encoders whose folders were moved together with the checkpoint.

    If an encoder's folder does not exist, a folder of the same name beside the checkpoint takes its place. The recorded digest stays, so
    that a different encoder is refused.
    """
    conditioning, frozen = dict(spec.conditioning), dict(spec.frozen)
    for name, config in spec.conditioning.items():
        moved = conditioning[name] = config.beside(folder)
        if moved.pretrained is not None:
            frozen = {moved.pretrained if key == config.pretrained else key: digest for key, digest in frozen.items()}
    return dataclasses.replace(spec, conditioning=conditioning, frozen=frozen)


@read_again
def denoiser_digest(folder: Path | str) -> str:
    """Hex sha256 of a checkpoint's denoiser as it is stored, see `weights_digest`. A LoRA identifies its base by it.

    Raises:
        UserError: the checkpoint has no denoiser.
    """
    return weights_digest(Checkpoint.open(folder, verified=False).tensors("denoiser"))


@dataclass(frozen=True, kw_only=True)
class LoadedParts:
    """All of a stage-two checkpoint, frozen and in eval mode."""

    spec: LatentDiffusionSpec
    first_stage: FirstStage
    network: nn.Module
    conditioners: Conditioners


@read_again
def load_latent_diffusion(folder: Path | str, device: torch.device, precision: Precision = "fp32") -> LoadedParts:
    """Both stages from a checkpoint folder.

    Args:
        folder: the checkpoint.
        device: for the model.
        precision: of the computation of network and conditioners, and hence of their weights, see `dtypes_to_hold`; the first stage
            encodes in fp32 and keeps its weights in fp32.

    Raises:
        UserError: not a checkpoint; altered; of a first stage only; weights and config that do not belong together.
    """
    opened = Checkpoint.open(folder)
    spec = _spec_of_both(opened)
    weights = _weights(opened, "first_stage")
    spec = _with_encoder(spec, weights)
    first_stage = _first_stage(spec.first_stage, spec.normalization, weights, device, opened.folder)
    conditioners = spec.build_conditioners(empty=True)
    for name, digest in conditioners.frozen_digests().items():
        if spec.frozen.get(name) != digest:
            raise UserError(
                f"checkpoint {folder}: it was trained with another pretrained encoder {name!r} than the one at hand "
                f"(sha256 {spec.frozen.get(name, 'none')[:12]}, not {digest[:12]})"
            )
    with torch.device("meta"):
        network = spec.build_network(conditioners)
    dtypes = dtypes_to_hold(conditioners, precision)
    load_strictly(conditioners, _weights(opened, "conditioner", dtypes), f"checkpoint {folder}: conditioner", dtypes)
    dtypes = dtypes_to_hold(network, precision)
    load_strictly(network, opened.tensors("denoiser", dtypes), f"checkpoint {folder}: denoiser", dtypes)
    conditioners = conditioners.to(device).eval().requires_grad_(False)
    return LoadedParts(
        spec=spec,
        first_stage=first_stage,
        network=network.to(device).eval().requires_grad_(False),
        conditioners=conditioners.attach(first_stage.encode, spec.first_stage.image_channels, spec.first_stage.downsampling_factor),
    )
