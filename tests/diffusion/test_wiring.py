"""A config's mathematical settings reach objective, checkpoint and sampling; inconsistent ones are refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm.app.train_ldm import TrainLDM
from ldm.checkpoints.model import LatentDiffusionSpec
from ldm.config.loader import build, dump, read
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.diffusion.importance import LossMemory
from ldm.diffusion.network_input import TableIndex, Time
from ldm.diffusion.time_density import LogNormal, UniformSteps
from ldm.pipelines.latent_diffusion import LatentDiffusion

CONFIG = Path(__file__).parents[2] / "configs/ldm/emoji-text.yaml"
OPTIONAL = ("density", "network_input", "loss", "learned_variance", "vlb_weight")


def config(**changes: object) -> TrainLDM:
    """The shipped config without its optional settings, changed."""
    content = {key: value for key, value in read(CONFIG).items() if key not in OPTIONAL}
    return build(content | changes, TrainLDM)


def test_a_config_names_density_input_loss_and_variance() -> None:
    plain = config().objective()
    assert plain.loss == "l2" and plain.levels is None
    assert plain.density == UniformSteps() and plain.network_input == TableIndex()

    changed = config(density={"kind": "log_normal", "std": 0.9}, network_input="time", loss="l1").objective()
    assert changed.density == LogNormal(std=0.9)
    assert changed.network_input == Time() and changed.loss == "l1"

    pixels = {"kind": "identity"}
    changed = config(learned_variance=True, vlb_weight=0.001, density="importance", first_stage=pixels).objective()
    assert isinstance(changed.density, LossMemory) and changed.density.losses.shape == (1000, 10)
    assert changed.learned_variance and changed.vlb_weight == 0.001
    assert changed.levels == 256  # pixels


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learned_variance": True}, "no loss term"),
        ({"vlb_weight": 0.001}, "set learned_variance to true"),
        ({"loss": "vlb"}, "weighting to constant"),
        ({"loss": "vlb", "weighting": "constant", "density": "uniform_time"}, "density to uniform or importance"),
        ({"process": "rectified_flow", "prediction": "eps"}, "'eps' is undefined at zero SNR"),
        ({"process": "rectified_flow", "network_input": "edm"}, "no finite network_time"),
        ({"process": "rectified_flow", "weighting": "snr"}, "'snr' is 0 at zero SNR"),
        ({"process": {"kind": "ve_sde", "sigma_min": 60}}, "sigma_min < sigma_max"),
        ({"density": "lognormal"}, "Did you mean 'log_normal'"),
        ({"loss": "l3"}, "allowed: l2, l1, vlb"),
    ],
)
def test_inconsistent_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**changes)


def test_checkpoints_without_the_newer_keys_read_as_before(tiny: Callable[..., Path]) -> None:
    content = dump(LatentDiffusion.from_pretrained(tiny("class"), device="cpu").spec)
    old = {key: value for key, value in content.items() if key not in ("network_input", "learned_variance")}
    assert len(old) == len(content) - 2
    spec = build(old, LatentDiffusionSpec)
    assert spec == build(content, LatentDiffusionSpec)
    assert spec.network_input == TableIndex() and not spec.learned_variance


def test_the_pipelines_denoiser_is_the_checkpoints(tiny: Callable[..., Path]) -> None:
    """It uses the spec's network input and the spec's learned variance."""
    model = LatentDiffusion.from_pretrained(tiny("class"), device="cpu")
    spec = dataclasses.replace(model.spec, network_input=Time(), learned_variance=True)
    seen: list[Tensor] = []

    def network(x: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        seen.append(network_time)
        return torch.cat([x, torch.ones_like(x)], dim=1)

    got = dataclasses.replace(model, spec=spec, network=network).denoiser(torch.zeros(1, 2, 8, 8), torch.tensor([0.5]), Condition())
    assert seen[0].tolist() == [49.5]  # of 100 steps
    assert got.variance_logits.tolist() == torch.ones(1, 2, 8, 8).tolist()
