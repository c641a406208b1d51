"""Tiny models with random weights, written as checkpoints, for the tests of pipelines and scripts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from elsewhere import DEVICE, Elsewhere
from rooms import DEPENDENCY_ROOMS
from torch import nn

from ldm.checkpoints.classifier import ClassifierSpec, write_classifier
from ldm.checkpoints.model import LatentDiffusionSpec, SamplingDefaults, write_latent_diffusion
from ldm.conditioning.bert_scratch import BertScratchConfig
from ldm.conditioning.boxes import BoxesConfig
from ldm.conditioning.class_label import ClassLabelConfig
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.conditioning.inpaint_mask import InpaintMaskConfig
from ldm.conditioning.low_resolution import LowResolutionConfig
from ldm.conditioning.semantic_map import SemanticMapConfig
from ldm.core.precision import whole_float32
from ldm.diffusion.prediction import VPrediction
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.first_stage.identity import IdentityConfig
from ldm.first_stage.latent_normalization import LatentNormalization, encoder_digest, weights_digest
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.networks.classifier import ClassifierConfig
from ldm.networks.unet import UNetConfig
from ldm.samplers.ddim import DDIM

PROCESS = DiscreteVP(num_steps=100, beta_last=0.1, zero_terminal_snr=True)
CONDITIONERS: dict[str, ConditionerConfig] = {
    "text": BertScratchConfig(width=16, depth=1, heads=2, head_width=8, max_tokens=8),
    "class": ClassLabelConfig(num_classes=3, names=("cat", "dog", "owl"), width=8),
    "mask": InpaintMaskConfig(),
    "map": SemanticMapConfig(num_classes=4),
    "boxes": BoxesConfig(num_classes=4, width=16, depth=1, heads=2, head_width=8, max_boxes=2, vocabulary=101),
    "small": LowResolutionConfig(),
}
GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")])


@pytest.fixture(params=["cpu", GPU])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CPU, and in the twin of the test that is marked `gpu` a GPU: so what runs there has run here, against itself.

    A GPU convolves in all of float32's bits there, since it is compared with the CPU.
    """
    with whole_float32():
        yield torch.device(request.param)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device that is not the CPU and computes as the CPU does; see elsewhere.py."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with Elsewhere():
        yield DEVICE


@pytest.fixture(autouse=True)
def own_checksums(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of tests leave nothing in the user's cache."""
    if "ldm.data.sources.contents" in sys.modules:
        monkeypatch.setattr("ldm.data.sources.contents.cache_folder", lambda name: tmp_path_factory.getbasetemp() / "cache" / name)


ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors where they point at a module of ours: at what we call, not at what a dependency's next release says of itself."""
    ours = {"ldm", "__main__", *(file.stem for room in ("tests", "benchmarks", "scripts") for file in (ROOT / room).rglob("*.py"))}
    config.addinivalue_line("filterwarnings", rf"error:::({'|'.join(sorted(ours))})(\.|$)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped without one; those of DEPENDENCY_ROOMS are marked `dependency`."""
    skip = pytest.mark.skip(reason="no GPU here")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(skip)
        if item.path.parent.name in DEPENDENCY_ROOMS:
            item.add_marker(pytest.mark.dependency)


def random_weights(module: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """A state dict without zero tensors, as after training."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += torch.randn(p.shape, generator=draw) * (0.1 if p.ndim < 2 else 0.5 / p[0].numel() ** 0.5)
    return dict(module.state_dict())


def write_tiny(
    folder: Path,
    conditioning: tuple[str, ...],
    *,
    first_stage: str = "kl",
    image_channels: int = 3,
    dtype: torch.dtype = torch.float32,
    max_file_bytes: int = 1 << 30,
) -> Path:
    """A checkpoint of both stages for 16x16 images, with the named CONDITIONERS."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        kl = KLAutoencoderConfig(image_channels=image_channels, channels=16, multipliers=(1, 2), blocks=1, latent_channels=2)
        vq = VQAutoencoderConfig(image_channels=image_channels, channels=16, multipliers=(1, 2), blocks=1, num_codes=24, code_channels=2)
        config = {"kl": kl, "vq": vq, "identity": IdentityConfig(image_channels=image_channels)}[first_stage]
        encoder_weights = {name: value.to(dtype) for name, value in random_weights(config.build(), 1).items()}
        normalization = LatentNormalization(
            channels=config.latent_channels,
            downsampling_factor=config.downsampling_factor,
            shift=(0.1,) if encoder_weights else (0.0,),
            scale=(1.5,) if encoder_weights else (1.0,),
            digest=weights_digest(encoder_weights) if encoder_weights else "",
            encoder=encoder_digest(encoder_weights),
        )
        spec = LatentDiffusionSpec(
            name="tiny",
            size=16,
            first_stage=config,
            normalization=normalization,
            denoiser=UNetConfig(
                channels=32,
                multipliers=(1, 1),
                blocks=1,
                attention=(2,),
                heads=2,
                context_width=16 if {"text", "boxes"} & set(conditioning) else None,
                vector_width=8 if "class" in conditioning else None,
            ),
            process=PROCESS,
            prediction=VPrediction(),
            conditioning={name: CONDITIONERS[name] for name in conditioning},
            sampling=SamplingDefaults(sampler=DDIM(), steps=3, guidance=2.0),
        )
        conditioners = spec.build_conditioners()
        network = random_weights(spec.build_network(conditioners), 2)
        conditioner = random_weights(conditioners, 3)
    parts = [{name: value.to(dtype) for name, value in part.items()} for part in (network, conditioner)]
    write_latent_diffusion(folder, spec, encoder_weights, *parts, "# tiny\n", max_file_bytes)
    return folder


def write_tiny_classifier(folder: Path, **changes: Any) -> Path:
    """A checkpoint of a classifier that fits `tiny(first_stage="identity")`; `changes` replace fields of its spec."""
    spec = ClassifierSpec(
        name="tiny-classifier",
        size=16,
        normalization=LatentNormalization(channels=3, downsampling_factor=1),
        network=ClassifierConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(2,), heads=2),
        process=PROCESS,
        label_names=("cat", "dog", "owl"),
    )
    spec = replace(spec, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        weights = random_weights(spec.build_network(), 4)
    write_classifier(folder, spec, weights, "# tiny\n", 1 << 30)
    return folder


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder shared by the tests of a file, and deleted after the last of them: those of all files together would be gigabytes."""
    folder = tmp_path_factory.mktemp("shared")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny("text", "mask", first_stage="identity", image_channels=1)`: the folder of such a checkpoint, read-only."""
    made: dict[tuple, Path] = {}

    def folder(*conditioning: str, first_stage: str = "kl", image_channels: int = 3) -> Path:
        key = (conditioning, first_stage, image_channels)
        if key not in made:
            path = tmp_path_factory.mktemp("tiny") / "model"
            made[key] = write_tiny(path, conditioning, first_stage=first_stage, image_channels=image_channels)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def write_model() -> Callable[..., Path]:
    """`write_tiny`, for tests that damage what they write."""
    return write_tiny


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_classifier(process=None)`: the folder of such a checkpoint; see `write_tiny_classifier`."""
    return lambda **changes: write_tiny_classifier(tmp_path_factory.mktemp("tiny") / "classifier", **changes)
