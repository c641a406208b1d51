"""The configs of the classic systems: each can be built, and is what its first lines say; and what the benchmarks draw of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ldm.app.description import describe
from ldm.app.train_classifier import TrainClassifier
from ldm.app.train_ldm import TrainLDM
from ldm.config.loader import build, load
from ldm.core.errors import UserError
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.processes.vp_sde import VPSDE
from ldm.samplers.sampler import Sampler

ROOT = Path(__file__).parents[2]
PIXEL = ROOT / "configs" / "pixel"
CLASSIFIERS = sorted(path.stem for path in (ROOT / "configs" / "classifier").iterdir())
HO = DiscreteVP(spacing="linear", num_steps=1000, beta_first=1e-4, beta_last=0.02)  # Ho et al. 2020, sec. 4
STRETCHED = DiscreteVP(spacing="linear", num_steps=300, beta_first=3.3333e-4, beta_last=6.6667e-2)
PROCESSES = {
    "mnist-ddpm": STRETCHED,
    "mnist-sde": VPSDE(beta_min=0.1, beta_max=20.0),
    "pets-attention": HO,
    "pets-no-attention": HO,
    "cifar10-iddpm": DiscreteVP(spacing="cosine", num_steps=1000),
}


def test_the_table_is_of_all_pixel_configs():
    assert {path.stem for path in PIXEL.iterdir()} == set(PROCESSES)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_classic_system_has_its_published_process(name: str):
    config = load(PIXEL / f"{name}.yaml", TrainLDM)
    assert (config.name, config.process, config.first_stage.kind) == (name, PROCESSES[name], "identity")
    assert describe(PIXEL / f"{name}.yaml").parameters["denoiser"] > 1e6


def test_the_scaled_table_ends_where_ho_et_als_does():
    short, table = STRETCHED.alpha(torch.tensor(1.0)), HO.alpha(torch.tensor(1.0))
    assert 0.8 < (short / table).item() < 1.2
    unscaled = DiscreteVP(spacing="linear", num_steps=300, beta_first=1e-4, beta_last=0.02)
    assert unscaled.alpha(torch.tensor(1.0)).item() ** 2 == pytest.approx(0.048, abs=5e-4)


def test_improved_ddpm_samples_with_the_variance_that_it_learns():
    """And its documented other half, the fixed one, is sampled by the same config."""
    config = load(PIXEL / "cifar10-iddpm.yaml", TrainLDM)
    fixed = load(PIXEL / "cifar10-iddpm.yaml", TrainLDM, ["learned_variance=false", "vlb_weight=null"])
    assert config.learned_variance and config.vlb_weight == 0.001 and not fixed.learned_variance
    assert config.sampling == fixed.sampling and config.sampling.sampler == build("ddpm", Sampler)


@pytest.mark.parametrize(
    "config, override, said",
    [
        ("ldm/emoji.yaml", "sampling.threshold=clip", "sampling.threshold is for models on pixels.*set it to null"),
        ("pixel/mnist-ddpm.yaml", "sampling.steps=301", "301 sampling steps requested.*use at most 300"),
        ("pixel/mnist-ddpm.yaml", "process.zero_terminal_snr=true; sampling.sampler=heun frame=ratio", "`ratio` cannot start"),
        ("ldm/emoji.yaml", "sampling.guidance=-1", "guidance must be a number from 0 up"),
        ("pixel/mnist-ddpm.yaml", "sampling.sampler=ddpm variance=learned", "learns no variance: set ddpm's to small or large"),
    ],
)
def test_sampling_that_the_model_cannot_have_is_refused_before_it_is_trained(config: str, override: str, said: str):
    with pytest.raises(UserError, match=said):
        load(ROOT / "configs" / config, TrainLDM, override.split("; "))


def test_the_pair_differs_by_attention_alone():
    with_it, without = (load(PIXEL / f"pets-{name}.yaml", TrainLDM) for name in ("attention", "no-attention"))
    assert (with_it.denoiser.attention, without.denoiser.attention) == ((2, 4, 8), ())
    for key in ("data", "process", "train", "sampling", "prediction", "weighting"):
        assert getattr(with_it, key) == getattr(without, key)
    assert describe(PIXEL / "pets-attention.yaml").parameters["denoiser"] == 12_957_763


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_is_of_the_noise_of_the_model_that_it_names(name: str):
    """The judge, which sees clean pictures, is of none."""
    config = load(ROOT / "configs" / "classifier" / f"{name}.yaml", TrainClassifier)
    text = (ROOT / "configs" / "classifier" / f"{name}.yaml").read_text()
    if config.process is None:
        assert "judge" in name
    elif config.first_stage.kind == "identity":
        assert "mnist-ddpm.yaml" in text and config.process == STRETCHED


def test_the_sweep_draws_all_that_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By the names that an evaluation has; what it could not have is left out."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "guidance_sweep", raising=False)
    import guidance_sweep
    from matplotlib import pyplot as plt

    drawn = []
    monkeypatch.setattr(plt.Axes, "set", lambda self, **said: drawn.append(said.get("title")))
    measured = {"fid": 3.0, "precision": 0.5, "recall": 0.4, "inception_score": None, "inception_score_by_judge": 9.0, "judge_hits": 0.9}
    guidance_sweep.draw({0.0: measured, 1.0: measured}, "scale", tmp_path / "sweep.png")
    plt.close("all")
    assert [title for title in drawn if title] == [
        "FID", "precision", "recall", "Inception Score by our classifier", "class hit",
    ]  # fmt: skip
    assert (tmp_path / "sweep.png").stat().st_size > 1000


def test_salt_is_a_bright_pixel_with_none_but_dark_ones_around(monkeypatch: pytest.MonkeyPatch):
    """At an edge too; a stroke has none, nor has a ground that is not black."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from same_noise import Measured, drawn, has_salt

    images = torch.full((5, 1, 28, 28), -1.0)
    images[0, 0, 9, 9] = images[1, 0, 0, 27] = 0.0
    images[2, 0, 9:11, 9] = 0.0
    images[3] += 0.4
    images[3, 0, 9, 9] = 0.0
    assert has_salt(images).tolist() == [True, True, False, False, False]

    rows = [Measured(group=group, name="ddim", fid=1.0, salted=0.0, difference=0.0, shown=images) for group in ("one", "one", "other")]
    one, more = drawn(rows[:1]), drawn(rows)
    assert one.width == more.width and one.height < more.height
