"""A classifier's folder is read back bit for bit, or refused with one line; classifiers and diffusion models are not confused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.testing import assert_close

from ldm.checkpoints.classifier import LoadedClassifier, load_classifier
from ldm.checkpoints.model import load_first_stage, load_latent_diffusion, write_autoencoder
from ldm.config.loader import dump
from ldm.core.errors import UserError
from ldm.diffusion.network_input import EDMInput
from ldm.diffusion.processes.edm import EDM
from ldm.first_stage.latent_normalization import LatentNormalization, weights_digest

CPU = torch.device("cpu")
X, T = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, 0.9], dtype=torch.float64)


def refusal(load: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_classifier_comes_back_to_the_bit(tiny_classifier: Callable[..., Path]) -> None:
    normalization = LatentNormalization(channels=3, downsampling_factor=2, shift=(0.1, 0.2, 0.3), scale=(1.5,) * 3, digest="abc")
    folder = tiny_classifier(process=EDM(), network_input=EDMInput(), accuracy=0.75, normalization=normalization, size=32)
    loaded, stored = load_classifier(folder, CPU), load_file(folder / "classifier.safetensors")
    assert_close(dict(loaded.network.state_dict()), stored, rtol=0, atol=0)
    assert yaml.safe_load((folder / "config.yaml").read_text()) == dump(loaded.spec)
    assert loaded.digest == weights_digest(stored) and loaded.spec.process == EDM() and loaded.spec.accuracy == 0.75
    assert not loaded.network.training and not any(p.requires_grad for p in loaded.network.parameters())


def test_its_input_is_scaled_and_its_network_time_set_as_a_denoisers(tiny_classifier: Callable[..., Path]) -> None:
    """EDM's input scales x_t by its noise level; a judge takes clean samples and no time."""
    loaded = load_classifier(tiny_classifier(process=EDM(), network_input=EDMInput()), CPU)
    scale = (EDM().sigma(T) ** 2 + 0.25).rsqrt()
    network_time = EDM().sigma(T).log() / 4
    assert_close(loaded.logits(X, T), loaded.network((scale[:, None, None, None] * X).float(), network_time.float()), rtol=1e-5, atol=1e-5)

    judge = load_classifier(tiny_classifier(process=None), CPU)
    assert_close(judge.logits(X), judge.network(X, torch.zeros(2)), rtol=0, atol=0)
    assert judge.digest == loaded.digest  # the same weights


def test_a_label_by_name_or_number(tiny_classifier: Callable[..., Path]) -> None:
    loaded: LoadedClassifier = load_classifier(tiny_classifier(label_names=("2", "0", "1")), CPU)
    assert [loaded.index_of(label) for label in ("2", 2, "0", "1")] == [0, 0, 1, 2]  # a name takes precedence over an index
    assert "unknown label '3'; allowed: 0, 1, 2" in refusal(lambda: loaded.index_of("3"))  # where names are numbers, a number is a name
    assert "unknown label 'cat'; allowed: 0, 1, 2" in refusal(lambda: loaded.index_of("cat"))


def test_one_flipped_bit_is_refused(tiny_classifier: Callable[..., Path]) -> None:
    folder = tiny_classifier()
    content = bytearray((folder / "classifier.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "classifier.safetensors").write_bytes(content)
    assert "classifier.safetensors was altered" in refusal(lambda: load_classifier(folder, CPU))


def test_a_classifier_is_no_model_and_a_model_no_classifier(
    tmp_path: Path, tiny: Callable[..., Path], tiny_classifier: Callable[..., Path]
) -> None:
    folder = tiny_classifier()
    for load in (load_latent_diffusion, load_first_stage):
        assert f"checkpoint {folder} holds a classifier, neither first stage" in refusal(lambda load=load: load(folder, CPU))
    assert "holds a diffusion model, not a classifier" in refusal(lambda: load_classifier(tiny("class"), CPU))
    _, spec, weights = load_first_stage(tiny("class"), CPU)
    write_autoencoder(tmp_path / "first", spec, weights, "", 1 << 30)
    assert "holds a first stage, not a classifier" in refusal(lambda: load_classifier(tmp_path / "first", CPU))


@pytest.mark.parametrize(
    "names, message", [(("cat",), "at least 2 classes"), (("cat", "dog", "cat"), "different names, got cat, dog, cat")]
)
def test_too_few_and_repeated_classes_are_refused(tiny_classifier: Callable[..., Path], names: tuple[str, ...], message: str) -> None:
    assert message in refusal(lambda: tiny_classifier(label_names=names))
