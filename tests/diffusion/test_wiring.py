"""What a config says of the mathematics reaches objective, checkpoint and sampling; what makes no sense is refused by name."""

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
    """The shipped config without what it need not say, changed."""
    content = {key: value for key, value in read(CONFIG).items() if key not in OPTIONAL}
    return build(content | changes, TrainLDM)


def test_a_config_names_density_input_loss_and_variance() -> None:
    plain = config().objective()
    assert plain.loss == "l2" and plain.levels is None
    assert plain.density == UniformSteps() and plain.network_input == TableIndex()

    said = config(density={"kind": "log_normal", "std": 0.9}, network_input="time", loss="l1").objective()
    assert said.density == LogNormal(std=0.9)
    assert said.network_input == Time() and said.loss == "l1"

    pixels = {"kind": "identity"}
    said = config(learned_variance=True, vlb_weight=0.001, density="importance", first_stage=pixels).objective()
    assert isinstance(said.density, LossMemory) and said.density.losses.shape == (1000, 10)
    assert said.learned_variance and said.vlb_weight == 0.001
    assert said.levels == 256  # pixels


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"learned_variance": True}, "never taught"),
        ({"vlb_weight": 0.001}, "set learned_variance to true"),
        ({"loss": "vlb"}, "weighting to constant"),
        ({"loss": "vlb", "weighting": "constant", "density": "uniform_time"}, "density to uniform or importance"),
        ({"process": "rectified_flow", "prediction": "eps"}, "'eps' says nothing"),
        ({"process": "rectified_flow", "network_input": "edm"}, "no network_time"),
        ({"process": "rectified_flow", "weighting": "snr"}, "weighs nothing"),
        ({"process": {"kind": "ve_sde", "sigma_min": 60}}, "sigma_min < sigma_max"),
        ({"density": "lognormal"}, "Did you mean 'log_normal'"),
        ({"loss": "l3"}, "allowed: l2, l1, vlb"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        config(**changes)


def test_checkpoints_from_before_read_as_they_were(tiny: Callable[..., Path]) -> None:
    content = dump(LatentDiffusion.from_pretrained(tiny("class"), device="cpu").spec)
    old = {key: value for key, value in content.items() if key not in ("network_input", "learned_variance")}
    assert len(old) == len(content) - 2
    spec = build(old, LatentDiffusionSpec)
    assert spec == build(content, LatentDiffusionSpec)
    assert spec.network_input == TableIndex() and not spec.learned_variance


def test_the_pipelines_denoiser_is_the_checkpoints(tiny: Callable[..., Path]) -> None:
    """Fed by the spec's network input, read with the spec's variance."""
    model = LatentDiffusion.from_pretrained(tiny("class"), device="cpu")
    spec = dataclasses.replace(model.spec, network_input=Time(), learned_variance=True)
    seen: list[Tensor] = []

    def network(x: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        seen.append(network_time)
        return torch.cat([x, torch.ones_like(x)], dim=1)

    got = dataclasses.replace(model, spec=spec, network=network).denoiser(torch.zeros(1, 2, 8, 8), torch.tensor([0.5]), Condition())
    assert seen[0].tolist() == [49.5]  # of 100 steps
    assert got.variance_logits.tolist() == torch.ones(1, 2, 8, 8).tolist()
