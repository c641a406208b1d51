"""A classifier leading a model's pictures: Bayes' rule for whole samples, what goes by whose names, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ldm import LatentDiffusion
from ldm.checkpoints.classifier import LoadedClassifier, load_classifier
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.diffusion.processes.vp_sde import VPSDE
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.pipelines import renderer
from ldm.pipelines.latent_diffusion import LatentDiffusion as Model

CPU = torch.device("cpu")
MEAN, STD = 0.6, 0.2  # of the two classes' pixels: N(-MEAN, STD^2) and N(MEAN, STD^2)


class TwoGaussians:
    """What can be known of pictures of either class, as likely, by networks that are given the tiny process's table index."""

    def __init__(self, model: Model) -> None:
        self.process = model.spec.process

    def scales(self, x: Tensor, network_time: Tensor) -> tuple[Tensor, Tensor]:
        return self.process.scales((network_time.double() + 1) / self.process.num_steps, x)

    def logits(self, x: Tensor, network_time: Tensor) -> Tensor:
        """(B, 3): log p(x_t | dark), log p(x_t | light), and a class that never is."""
        alpha, sigma = self.scales(x, network_time)
        by_class = [-((x - alpha * mean) ** 2 / (alpha**2 * STD**2 + sigma**2) / 2).flatten(1).sum(1) for mean in (-MEAN, MEAN)]
        return torch.stack([*by_class, torch.full_like(by_class[0], -1e6)], dim=1)

    def v(self, x: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        """Of a picture of any class: v = (alpha x_t - x0) / sigma, since alpha^2 + sigma^2 = 1."""
        alpha, sigma = self.scales(x, network_time)
        dark, light, _ = self.logits(x, network_time).softmax(1)[:, :, None, None, None].unbind(1)
        mean = MEAN * (light - dark)
        x0 = mean + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * mean)
        return (alpha * x - x0) / sigma


class Spoken(nn.Module):
    """A function as a network."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.forward = forward


@pytest.fixture(scope="module")
def plain(tiny: Callable[..., Path]) -> Model:
    """An unconditional model, in pixel space."""
    return LatentDiffusion.from_pretrained(tiny(first_stage="identity"), device="cpu")


@pytest.fixture(scope="module")
def classifier(tiny_classifier: Callable[..., Path]) -> LoadedClassifier:
    return load_classifier(tiny_classifier(), CPU)


def test_samples_are_moved_as_bayes_rule_says(plain: Model, classifier: LoadedClassifier) -> None:
    """Exact networks of two Gaussians: guided with scale 1, each picture is drawn from its class; unguided, from either."""
    known = TwoGaussians(plain)
    model, exact = replace(plain, network=Spoken(known.v)), replace(classifier, network=Spoken(known.logits))
    how = model.sampling(steps=50, num_images=8)
    guided = model.generate(model.uncond(), replace(how, guide=model.guide(exact, ["cat", 1, "dog"])))
    wanted = torch.tensor([-MEAN, MEAN, MEAN] * 3)[:8]
    assert_close(guided.mean((1, 2, 3)), wanted, rtol=0, atol=0.05)
    assert_close((guided - wanted[:, None, None, None]).std(), torch.tensor(STD), rtol=0.1, atol=0)
    free = model.generate(model.uncond(), how).mean((1, 2, 3))
    assert_close(free.abs(), torch.full((8,), MEAN), rtol=0, atol=0.05)
    assert free.min() < 0 < free.max()


def test_each_picture_has_its_label_whatever_the_batch(plain: Model, classifier: LoadedClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    how = replace(plain.sampling(num_images=5, seed=3), guide=plain.guide(classifier, ["cat", "owl", "dog"], 20.0))
    together = plain.generate(plain.uncond(), how)
    monkeypatch.setattr(renderer, "MOST_AT_ONCE", 2)
    assert_close(plain.generate(plain.uncond(), how), together, rtol=1e-4, atol=1e-4)
    alone = plain.generate(plain.uncond(), replace(how, num_images=1, guide=plain.guide(classifier, ["owl"], 20.0)))
    assert (alone - together[:1]).abs().max() > 0.02  # the first one's label is not owl
    unguided = replace(how, guide=plain.guide(classifier, ["cat"], 0.0))
    assert torch.equal(plain.generate(plain.uncond(), unguided), plain.generate(plain.uncond(), replace(how, guide=None)))


def test_sample_leads_by_the_classifiers_own_names(plain: Model, tiny: Callable[..., Path], tiny_classifier: Callable[..., Path]) -> None:
    """A model that was trained with labels is conditioned on it too, and must have that name."""
    folder = tiny_classifier(label_names=("cat", "dog", "bee"))
    one, other, third = (
        np.array(plain.sample(label=label, classifier=folder, classifier_scale=20.0)[0]).astype(int) for label in ("bee", 2, "dog")
    )
    assert np.array_equal(one, other) and np.abs(one - third).max() > 1

    labelled = LatentDiffusion.from_pretrained(tiny("class", first_stage="identity"), device="cpu")
    guided = np.array(labelled.sample(label="dog", classifier=folder, classifier_scale=0.0)[0])
    assert np.array_equal(guided, np.array(labelled.sample(label="dog")[0]))
    with pytest.raises(UserError, match="unknown label 'bee'; allowed: cat, dog, owl"):
        labelled.sample(label="bee", classifier=folder)


PIXELS = LatentNormalization(channels=3, downsampling_factor=1)
MISFITS = {
    "a judge": ({"process": None}, "'tiny-classifier' was trained on clean samples (process: null), so it can judge but not guide"),
    "latents": (
        {"normalization": replace(PIXELS, digest="a" * 64)},
        "it was trained on latents of first stage aaaaaaaaaaaa, the model draws pixels",
    ),
    "size": ({"size": 32}, "its picture size is 32x32, the model's 16x16"),
    "channels": ({"normalization": replace(PIXELS, channels=1)}, "its number of channels is 1, the model's 3"),
    "process": ({"process": VPSDE()}, "its process is VPSDE(num_steps=1000, beta_min=0.1, beta_max=20.0), the model's DiscreteVP("),
}


@pytest.mark.parametrize("changes, message", MISFITS.values(), ids=MISFITS)
def test_a_classifier_that_does_not_fit_is_refused(plain: Model, tiny_classifier, changes: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        plain.sample(label="cat", classifier=tiny_classifier(**changes))
    assert message in str(caught.value)


def test_pixels_do_not_fit_a_latent_model(tiny: Callable[..., Path], classifier: LoadedClassifier) -> None:
    model = LatentDiffusion.from_pretrained(tiny("class"), device="cpu")
    with pytest.raises(
        UserError, match=f"it was trained on pixels, the model draws latents of first stage {model.spec.normalization.digest[:12]}"
    ):
        model.guide(classifier, ["cat"])
    fitting = replace(classifier, spec=replace(classifier.spec, normalization=model.spec.normalization))
    assert model.guide(fitting, ["owl"], 3.0).labels == (2,)
    for what, change in (("shift", {"shift": (0.2,)}), ("scale", {"scale": (1.4,)})):
        otherwise = replace(classifier, spec=replace(classifier.spec, normalization=replace(model.spec.normalization, **change)))
        with pytest.raises(UserError, match=f"its latents' {what} is "):
            model.guide(otherwise, ["owl"])


def test_other_mistakes_are_refused(plain: Model, classifier: LoadedClassifier) -> None:
    with pytest.raises(UserError, match="classifier guidance needs a label, the class to lead to"):
        plain.sample(classifier=classifier)
    with pytest.raises(UserError, match="unknown label 'owll'; allowed: cat, dog, owl. Did you mean 'owl'"):
        plain.sample(label="owll", classifier=classifier)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="the classifier's scale must be a number from 0 up"):
            plain.sample(label="owl", classifier=classifier, classifier_scale=wrong)
