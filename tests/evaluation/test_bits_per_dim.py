"""bits/dim of whole models whose answer is known in closed form: on pixels, and on latents of a linear autoencoder."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from evaluations import LDM, call, write_images
from evaluations import measured as measured_by_command
from torch import Tensor, nn
from torch.backends import cudnn
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

from ldm.checkpoints.model import LatentDiffusionSpec, SamplingDefaults
from ldm.core.errors import UserError
from ldm.data.facts import PIXELS, DataFacts
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.likelihood import flow_density
from ldm.diffusion.network_input import Time
from ldm.diffusion.prediction import VelocityPrediction
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.rectified_flow import RectifiedFlow
from ldm.diffusion.processes.vp_sde import VPSDE
from ldm.evaluation import likelihood as evaluate_likelihood
from ldm.evaluation.conditions import EvaluationConditions
from ldm.evaluation.dataset import DrawnFrom
from ldm.evaluation.likelihood import bits_per_dim
from ldm.evaluation.likelihood_task import LikelihoodConfig
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.first_stage.identity import IdentityConfig
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.first_stage.stage import FirstStage
from ldm.networks.unet import UNetConfig
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.samplers.ddim import DDIM

COUNT, SIDE = 20, 16
ASKED = {"probe": "rademacher", "first_noise": 1e-3, "tolerance": 1e-5}


class Exact(nn.Module):
    """What a perfect network says of data N(mean, std^2), a channel at a time."""

    def __init__(self, process: NoiseProcess, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.process, self.mean, self.std = process, mean.reshape(1, -1, 1, 1), std.reshape(1, -1, 1, 1)

    def forward(self, x: Tensor, network_time: Tensor, condition: object) -> Tensor:
        t = network_time.double() / (self.process.num_steps - 1)
        alpha, sigma = self.process.scales(t, x)
        off = (x - alpha * self.mean) / ((alpha * self.std) ** 2 + sigma**2)
        return sigma * off - (self.mean + alpha * self.std**2 * off)  # eps - x0


class VarianceLogits(Exact):
    """The same, and a variance that it calls its own: that of q(x_t | x_s)."""

    def forward(self, x: Tensor, network_time: Tensor, condition: object) -> Tensor:
        return torch.cat([super().forward(x, network_time, condition), torch.ones_like(x)], dim=1)


def model_of(
    first_stage: FirstStage, config: object, process: NoiseProcess, mean: Tensor, std: Tensor, kind: type[Exact] = Exact
) -> LatentDiffusion:
    spec = LatentDiffusionSpec(
        name="exact",
        size=SIDE,
        first_stage=config,
        normalization=first_stage.normalization,
        denoiser=UNetConfig(channels=32, multipliers=(1,), heads=1),
        process=process,
        prediction=VelocityPrediction(),
        network_input=Time(),
        learned_variance=kind is VarianceLogits,
        conditioning={},
        sampling=SamplingDefaults(sampler=DDIM()),
    )
    parts = {"network": kind(process, mean, std), "conditioners": spec.build_conditioners()}
    return LatentDiffusion(spec=spec, first_stage=first_stage, device=torch.device("cpu"), **parts)


class Drawn(SimpleNamespace):
    def __len__(self) -> int:
        return self.count


def drawn(images: Tensor) -> DrawnFrom:
    """Pictures as a data set."""
    samples = [SimpleNamespace(image=image, captions=(), label=-1) for image in images]
    data = Drawn(
        facts=DataFacts(has=frozenset((PIXELS,))),
        count=len(images),
        sample=lambda i, epoch: samples[i],
        size_of=lambda i: tuple(images.shape[2:]),
    )
    return DrawnFrom(place="drawn", split="val", data=data, count=len(images))


def measured(model: LatentDiffusion, images: Tensor, steps: int | None = None, variance: str | None = None) -> tuple[dict, dict]:
    settings = LikelihoodConfig(count=COUNT, steps=steps, variance=variance, **ASKED)
    found = bits_per_dim(EvaluationConditions(model=model, source=drawn(images[:COUNT])), drawn(images), settings, seed=0, is_held_out=True)
    return {metric.name: metric for metric in found.metrics}, found.about


def levels(x: Tensor) -> Tensor:
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def test_pixels():
    """Both the flow and the bound give the data's own bits; the terms make up the bound."""
    torch.manual_seed(0)
    mean, std = torch.tensor([0.1]), torch.tensor([0.2])
    config = IdentityConfig(image_channels=1)
    images = levels(mean + std * torch.randn(COUNT, 1, SIDE, SIDE))
    found, about = measured(model_of(config.build(), config, VPSDE(), mean, std), images, 100, "large")
    law = Normal(0.1, 0.2)
    share = torch.diff(law.cdf((torch.arange(257, dtype=torch.float64) - 0.5) / 127.5 - 1))
    entropy = -(share * share.log2()).sum().item()
    error = about["standard_error"]
    assert abs(found["bits_per_dim"].value - entropy) < 4 * error["bits_per_dim"] + 0.01
    assert abs(found["bits_per_dim_bound"].value - entropy) < 4 * error["bits_per_dim_bound"] + 0.03  # as many bits more as 100 steps cost
    parts = sum(found[f"bits_per_dim_{name}"].value for name in ("prior", "steps", "data"))
    assert parts == pytest.approx(found["bits_per_dim_bound"].value, rel=1e-6)
    assert about["bound"]["steps"] == 100 and about["pictures"] == COUNT and about["flow"]["evaluations"]["most"] > 6
    assert about["flow"]["first_time"] == pytest.approx(1e-5, rel=0.02)


def test_a_learned_variance_is_the_bounds_own():
    """One that was learned to be the large one costs what the large one costs, and choosing another is refused."""
    torch.manual_seed(0)
    config = IdentityConfig(image_channels=1)
    images, gaussian = levels(0.2 * torch.randn(COUNT, 1, 4, 4)), (VPSDE(), torch.zeros(1), torch.tensor([0.2]))
    large, _ = measured(model_of(config.build(), config, *gaussian), images, 20, "large")
    small, about = measured(model_of(config.build(), config, *gaussian), images, 20)
    own, says = measured(model_of(config.build(), config, *gaussian, VarianceLogits), images, 20)
    for name in ("steps", "data"):
        assert own[f"bits_per_dim_{name}"].value == pytest.approx(large[f"bits_per_dim_{name}"].value, rel=1e-5)
    assert small["bits_per_dim_steps"].value > large["bits_per_dim_steps"].value + 0.1
    assert (about["bound"]["variance"], says["bound"]["variance"]) == ("small", "learned")
    with pytest.raises(UserError, match="this one has its own"):
        measured(model_of(config.build(), config, *gaussian, VarianceLogits), images, 20, "small")


class Linear(FirstStage):
    """x = w z + bias a patch of 2 x 2, z of two channels, w with orthogonal columns; q is N(its true posterior's mean, std^2)."""

    def __init__(self, tau: float, prior: tuple[Tensor, Tensor], widened: float, normalization: LatentNormalization) -> None:
        super().__init__(image_channels=1, latent_channels=2, downsampling_factor=2)
        self.w = torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.2, -0.2, 0.2, -0.2]])
        self.bias, self.normalization = 0.1, normalization
        mean, std = prior
        variance = 1 / (self.w.square().sum(1) / tau**2 + std**-2)
        self.std = widened * variance.sqrt()
        self.read, self.rest = variance[:, None] * self.w / tau**2, variance * mean / std**2

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        patches = torch.nn.functional.pixel_unshuffle(images, 2) - self.bias
        mean = torch.einsum("zp,bphw->bzhw", self.read, patches) + self.rest[:, None, None]
        return mean, self.std[:, None, None].expand_as(mean)

    def _decode(self, raw_latent: Tensor) -> Tensor:
        return torch.nn.functional.pixel_shuffle(torch.einsum("zp,bzhw->bphw", self.w, raw_latent), 2) + self.bias

    def reconstruct(self, images, noise):
        raise NotImplementedError

    @property
    def last_layer(self):
        raise NotImplementedError


@pytest.mark.parametrize("widened", [1.0, 2.0])
def test_latents_of_a_linear_autoencoder(widened):
    """With the true posterior as q the bound is -log2 P(x), and the measured noise is the model's own; with a wider q it is known too."""
    torch.manual_seed(0)
    tau, prior = 0.06, (torch.tensor([0.5, -0.3]), torch.tensor([1.5, 0.7]))
    normalization = LatentNormalization(channels=2, downsampling_factor=2, shift=(0.4, -0.1), scale=(0.5, 3.0))
    first_stage = Linear(tau, prior, widened, normalization)
    raw = prior[0][:, None, None] + prior[1][:, None, None] * torch.randn(10 * COUNT, 2, SIDE // 2, SIDE // 2)
    decoded = first_stage._decode(raw)
    images = levels(decoded + tau * torch.randn_like(decoded))
    shift, scale = torch.tensor(normalization.shift), torch.tensor(normalization.scale)
    model = model_of(first_stage, KLAutoencoderConfig(), RectifiedFlow(), (prior[0] - shift) * scale, prior[1] * scale)
    found, about = measured(model, images)

    w = first_stage.w.double()
    law = MultivariateNormal(prior[0].double() @ w + 0.1, w.T @ (prior[1].double() ** 2)[:, None].mul(w) + tau**2 * torch.eye(4))
    patches = torch.nn.functional.pixel_unshuffle(images[:COUNT].double(), 2).movedim(1, -1)
    true = -law.log_prob(patches).mean().item() / 4 / math.log(2) - math.log2(2 / 255)
    # A wider q's latents give pictures back less well, which the noise takes in; they are further from the prior's mean, and freer.
    variance = (first_stage.std / widened).double() ** 2
    noise = (tau**2 + (widened**2 - 1) * (variance * w.square().sum(1)).sum().item() / 4) ** 0.5
    further = (widened**2 - 1) * (variance / prior[1] ** 2).sum().item() / 2
    excess = (4 * math.log(noise / tau) + further - 2 * math.log(widened)) / 4 / math.log(2)
    assert about["decoder_noise"]["kind"] == "gaussian" and about["decoder_noise"]["scale"] == pytest.approx(noise, rel=0.02)
    value, error = found["bits_per_dim"].value, about["standard_error"]["bits_per_dim"]
    assert error < 0.03 and abs(value - true - excess) < 4 * error + 0.01
    total = found["bits_per_dim_reconstruction"].value + found["bits_per_dim_latent"].value - found["bits_per_dim_entropy"].value
    assert total == pytest.approx(value, rel=1e-6)


def test_the_decoders_noise_is_of_pictures_that_are_not_evaluated():
    """The first ones of a split are; so it is measured on the last ones, as many as are left."""
    stored, seen = 8, []
    normalization = LatentNormalization(channels=2, downsampling_factor=2)
    first_stage = Linear(0.06, (torch.zeros(2), torch.ones(2)), 1.0, normalization)

    def sample(index: int, epoch: int) -> SimpleNamespace:
        seen.append(index)
        return SimpleNamespace(image=levels(0.2 * torch.randn(1, SIDE, SIDE)))

    class Data:
        def __len__(self) -> int:
            return stored

        def size_of(self, index: int) -> tuple[int, int]:
            return SIDE, SIDE

    data = Data()
    data.sample = sample
    training = DrawnFrom(place="drawn", split="train", data=data, count=2)
    task = SimpleNamespace(conditions=SimpleNamespace(model=SimpleNamespace(device=torch.device("cpu"))), seed=0, about={})
    evaluate_likelihood._decoder_noise(first_stage, training, stored - 3, task)
    assert seen == [3, 4, 5, 6, 7] and task.about["decoder_noise"]["measured_on"].startswith("5 training pictures")
    with pytest.raises(UserError, match="none is left"):
        evaluate_likelihood._decoder_noise(first_stage, training, 0, task)


BITS = "--bits-per-dim 3 --tolerance 0.5 --num-images 2"  # a random network's flow is not smooth


def test_the_command_on_pixels(home, monkeypatch, capsys):
    found = measured_by_command(f"{LDM} --model plain {BITS}", monkeypatch, capsys)
    about, metrics = found["bits_per_dim"], found["metrics"]
    assert about["bound"] == {"steps": 100, "variance": "small", "x0": "clipped to [-1, 1]"}  # the process's own 100
    assert about["conditioned_on"].startswith("nothing") and about["flow"]["first_time"] < 1 / 100
    for name in ("", "_bound", "_prior", "_steps", "_data"):
        assert metrics[f"bits_per_dim{name}"]["pictures"] == 3 and about["standard_error"][f"bits_per_dim{name}"] >= 0
    assert metrics["bits_per_dim_prior"]["value"] == 0  # zero terminal SNR
    assert any(line.startswith("Bits/dim, bound") for line in Path("made/evaluation.txt").read_text().splitlines())
    fewer = measured_by_command(f"{LDM} --model plain {BITS} --bound-steps 10 --probe gaussian", monkeypatch, capsys)
    assert fewer["bits_per_dim"]["bound"]["steps"] == 10 and fewer["bits_per_dim"]["flow"]["probe"] == "gaussian"
    assert fewer["metrics"]["bits_per_dim_bound"]["value"] > metrics["bits_per_dim_bound"]["value"]


def test_the_command_on_latents_reports_its_conditions(home, monkeypatch, capsys):
    """The labels of the evaluated pictures, without guidance; the decoder's noise is of the training pictures that are left."""
    for name in ("cat", "owl"):
        write_images(home / "classes" / name, 3, 5, captions=False)
    conditions, bind = [], Denoiser.bind
    monkeypatch.setattr(Denoiser, "bind", lambda self, condition: conditions.append(condition.vector) or bind(self, condition))
    words = f"ldm --model labels --data classes --split train --steps 1 {BITS}"
    exact = []
    monkeypatch.setattr(evaluate_likelihood, "flow_density", lambda *args: exact.append(not cudnn.allow_tf32) or flow_density(*args))
    found = measured_by_command(words.replace("dim 3", "dim 4"), monkeypatch, capsys)
    model = LatentDiffusion.from_pretrained("labels", "cpu")
    expected = [model.encode_condition(model.inputs({}, label=label)).vector for label in (0, 0, 0, 2)]  # cat, dog, owl
    assert_close(conditions[0], torch.cat(expected))
    about = found["bits_per_dim"]
    assert about["conditioned_on"] == ["labels"] and about["guidance"].startswith("none")
    assert exact == [True] and cudnn.allow_tf32
    assert about["decoder_noise"]["measured_on"].startswith("2 training pictures")
    assert found["metrics"]["bits_per_dim"]["value"] > 0
    about = measured_by_command(f"{LDM} --model labels --reference-images 2 {BITS}", monkeypatch, capsys)["bits_per_dim"]
    assert about["decoder_noise"]["measured_on"].startswith("12 training pictures")  # all, with however few others are compared


MISTAKES = {
    "one picture": ("--bits-per-dim 1", "at least 2 pictures for its standard error"),
    "a chain without bits": ("--bound-steps 10", "--bound-steps goes with --bits-per-dim, which is not given"),
    "too long a chain": ("--bits-per-dim 2 --bound-steps 101", "use at most 100"),
    "one step": ("--bits-per-dim 2 --bound-steps 1", "at least 2 steps, got 1"),
    "no noise level": ("--bits-per-dim 2 --first-noise 1", "between 0 and 1, got 1"),
    "no tolerance": ("--bits-per-dim 2 --tolerance 0", "--tolerance must be between 0 and 1, got 0"),
    "a chain of latents": ("--model model --bits-per-dim 2 --bound-steps 10", "are for models on pixels"),
    "no pictures left": ("--model model --split train --bits-per-dim 12", "none is left: lower --bits-per-dim"),
    "unknown probe": ("--bits-per-dim 2 --probe uniform", "invalid choice: 'uniform'"),
}


@pytest.mark.parametrize("words, said", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_before_pictures_are_made(home, stand_in, words, said, monkeypatch, capsys):
    asked = LDM.replace("--held-out val ", "") if "--split train" in words else LDM
    assert call(f"{asked} --model plain {words} --out made", monkeypatch) == 2
    assert said in capsys.readouterr().err and stand_in.calls == 0


def test_a_vq_first_stage_has_none(home, tiny, stand_in, monkeypatch, capsys):
    """It draws no latent: the entropy that the bound takes off would be minus infinity."""
    (home / "codes").symlink_to(tiny(first_stage="vq"))
    assert call(f"{LDM} --model codes --bits-per-dim 2 --out made", monkeypatch) == 2
    assert "a VQ first stage draws no latent" in capsys.readouterr().err and stand_in.calls == 0
