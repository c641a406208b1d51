"""A classifier on disk: it leads a diffusion model to a class, or judges what one has drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.folder import Checkpoint, load_strictly, write_checkpoint
from ldm.conditioning.class_label import label_index
from ldm.config.loader import to_yaml
from ldm.core.errors import UserError
from ldm.diffusion.network_input import NetworkInput, TableIndex
from ldm.diffusion.process import NoiseProcess
from ldm.first_stage.latent_normalization import LatentNormalization, weights_digest
from ldm.networks.classifier import ClassifierConfig, ClassifierNetwork


@dataclass(frozen=True, kw_only=True)
class ClassifierSpec:
    """What rebuilds a classifier.

    Attributes:
        name: of the run.
        size: pictures' side in training, in pixels.
        normalization: what it sees: the latent contract of a first stage, or that of pixels, whose ratio is 1 and whose digest is empty.
        process: that noises what it sees, so it is told the time; None = a judge, which has seen clean samples only.
        network_input: what the network is fed at a time; a judge's sees the sample as it is, at network_time 0.
        label_names: of the classes, in the order of their indices.
        accuracy: top-1, of held-out samples, at times drawn as in training; None = not measured.
    """

    name: str
    size: int
    normalization: LatentNormalization
    network: ClassifierConfig
    process: NoiseProcess | None
    network_input: NetworkInput = TableIndex()
    label_names: tuple[str, ...]
    accuracy: float | None = None

    def __post_init__(self) -> None:
        if len(self.label_names) < 2 or len(set(self.label_names)) < len(self.label_names):
            raise UserError(f"a classifier needs at least 2 classes of different names, got {', '.join(self.label_names) or 'none'}")
        if self.process is not None:
            self.network_input.check(self.process)

    @property
    def sees_pixels(self) -> bool:
        return not self.normalization.digest

    def build_network(self) -> ClassifierNetwork:
        """The network with fresh weights.

        Raises:
            UserError: samples that it cannot halve down to its last level.
        """
        return self.network.build(self.normalization.channels, self.size // self.normalization.downsampling_factor, len(self.label_names))

    def ask(self, network: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor | None) -> Tensor:
        """Logits (B, classes) by a network of `build_network`, float32.

        Args:
            x: (B, channels, H, W); noised to time t, or clean if this is a judge.
            t: (B,) times on any device; None for a judge.
        """
        if self.process is None:
            assert t is None, "a judge is told no time"
            return network(x.float(), torch.zeros(len(x), device=x.device)).float()
        assert t is not None, "a noise-aware classifier must be told the time"
        return network(*self.network_input(x, t, self.process)).float()


@dataclass(frozen=True, kw_only=True)
class LoadedClassifier:
    """A classifier, frozen and in eval mode.

    Attributes:
        digest: of its weights.
    """

    spec: ClassifierSpec
    network: ClassifierNetwork
    digest: str

    def logits(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """(B, classes), differentiable in x; see `ClassifierSpec.ask`.

        Raises:
            UserError: samples of another size or number of channels.
        """
        return self.spec.ask(self.network, x, t)

    def index_of(self, label: str | int) -> int:
        """The index of a class that the user names; see `label_index`."""
        return label_index(label, self.spec.label_names, len(self.spec.label_names))


def write_classifier(folder: Path, spec: ClassifierSpec, weights: dict[str, Tensor], card: str, max_file_bytes: int) -> None:
    """Writes a classifier's checkpoint folder."""
    write_checkpoint(folder, to_yaml(spec), {"classifier": weights}, card, max_file_bytes)


def load_classifier(folder: Path | str, device: torch.device) -> LoadedClassifier:
    """A classifier from a checkpoint folder.

    Raises:
        UserError: not a checkpoint; altered; of something else; weights and config that do not belong together.
    """
    opened = Checkpoint.open(folder)
    if not opened.has("classifier"):
        found = "a diffusion model" if opened.has("denoiser") else "a first stage"
        raise UserError(f"checkpoint {folder} holds {found}, not a classifier; train one with scripts/train_classifier.py")
    spec, weights = opened.spec(ClassifierSpec), opened.tensors("classifier")
    with torch.device("meta"):
        network = spec.build_network()
    load_strictly(network, weights, f"checkpoint {folder}: classifier")
    return LoadedClassifier(spec=spec, network=network.to(device).eval().requires_grad_(False), digest=weights_digest(weights))
