"""The pictures of docs/diffusion.md: processes, predictions, and how fast each solver closes in on an exact answer.

    python benchmarks/diffusion_pictures.py --out docs

The solvers are run on a denoiser that is exact (a mixture of two Gaussians), so what is drawn is their own error and nothing else's: of
deterministic ones the distance from the exact flow, of stochastic ones that of all draws from the exact distribution.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

from ldm.core.random import Streams
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.grid import LogSNR, Uniform
from ldm.diffusion.prediction import (
    EDMPrediction,
    EpsPrediction,
    Prediction,
    ScorePrediction,
    VelocityPrediction,
    VPrediction,
    X0Prediction,
)
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.processes.edm import EDM
from ldm.diffusion.processes.rectified_flow import RectifiedFlow
from ldm.diffusion.processes.sub_vp_sde import SubVPSDE
from ldm.diffusion.processes.ve_sde import VESDE
from ldm.diffusion.processes.vp_sde import VPSDE
from ldm.samplers.ddim import DDIM
from ldm.samplers.ddpm import DDPM
from ldm.samplers.dpmpp_2m import DPMpp2M
from ldm.samplers.dpmpp_2m_sde import DPMpp2MSDE
from ldm.samplers.heun import Heun
from ldm.samplers.langevin import AnnealedLangevin
from ldm.samplers.ode import ODE
from ldm.samplers.pc import PredictorCorrector
from ldm.samplers.pndm import PNDM
from ldm.samplers.sampler import Counted, Sampler, step_noise
from ldm.samplers.unipc import UniPC

PROCESSES: dict[str, NoiseProcess] = {
    "discrete_vp, linear β": DiscreteVP(spacing="linear", beta_first=1e-4, beta_last=0.02),
    "discrete_vp, scaled-linear β": DiscreteVP(),
    "discrete_vp, cosine β": DiscreteVP(spacing="cosine"),
    "sub_vp_sde": SubVPSDE(),
    "ve_sde": VESDE(),
    "edm": EDM(),
    "rectified_flow": RectifiedFlow(),
    "vp_sde (as linear β)": VPSDE(),
}
PREDICTIONS: dict[str, Prediction] = {
    "eps": EpsPrediction(),
    "x0": X0Prediction(),
    "v": VPrediction(),
    "velocity": VelocityPrediction(),
    "edm, sigma_data 1 (as v)": EDMPrediction(sigma_data=1.0),
    "edm, sigma_data 0.5": EDMPrediction(sigma_data=0.5),
    "score": ScorePrediction(),
}
SOLVERS: dict[str, Sampler] = {
    "ddim = euler": DDIM(),
    "pndm": PNDM(),
    "heun, frame flow": Heun(),
    "heun, frame ratio": Heun(frame="ratio"),
    "dpmpp_2m": DPMpp2M(),
    "unipc": UniPC(),
}
STOCHASTIC: dict[str, Sampler] = {
    "ddim, eta 0 (no noise)": DDIM(),
    "ddpm = euler_ancestral = ddim, eta 1": DDPM(),
    "heun, churn 40": Heun(s_churn=40.0),
    "dpmpp_2m_sde": DPMpp2MSDE(),
    "pc, euler_maruyama, no corrections": PredictorCorrector(predictor="euler_maruyama", corrections=0),
    "pc": PredictorCorrector(),
    "langevin": AnnealedLangevin(),
}
DASHES = ("-", "--", "-.", ":")  # some curves lie on each other
POINTS, STEPS = 1024, (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
DRAWS, VALUES = 64, 1024  # pictures, and values in each: `pc` measures a picture's norms, so one value would not do


@dataclass(frozen=True)
class Mixture:
    """Two Gaussians of std 0.3 at -1 and 1, with its exact denoiser."""

    process: NoiseProcess

    def draw(self, x: Tensor, t: Tensor) -> Tensor:
        """Of x's shape, from the exact distribution at t (), a pure function of the generator below."""
        random = torch.Generator().manual_seed(1)
        kind = torch.randint(2, x.shape, generator=random) * 2 - 1
        x0 = kind + 0.3 * torch.randn(x.shape, generator=random, dtype=x.dtype)
        return self.process.blend(Estimate(x0=x0, eps=torch.randn(x.shape, generator=random, dtype=x.dtype)), t)

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = self.process.scales(t, x_t)
        centres = torch.tensor([-1.0, 1.0], dtype=x_t.dtype)
        variance = alpha**2 * 0.09 + sigma**2
        off = x_t[..., None] - alpha[..., None] * centres
        share = (-(off**2) / (2 * variance[..., None])).softmax(-1)
        score = -(share * off).sum(-1) / variance
        eps = -sigma * score
        return Estimate(x0=(x_t - sigma * eps) / alpha, eps=eps)


def main() -> None:
    """Draws all three."""
    parser = argparse.ArgumentParser(description="The pictures of docs/diffusion.md.")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the pictures (default: docs)")
    out = parser.parse_args().out
    matplotlib.use("agg")
    _draw_processes(out / "processes.png")
    _draw_predictions(out / "predictions.png")
    _draw_solvers(out / "solvers.png")
    print(f"done: processes.png, predictions.png, solvers.png in {out}")


def _draw_processes(path: Path) -> None:
    t = torch.linspace(1e-3, 1, 1000, dtype=torch.float64)
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for (name, process), dashes in zip(PROCESSES.items(), cycle(DASHES), strict=False):
        for axis, values in zip(axes, (process.alpha(t), process.sigma(t), process.log_snr(t)), strict=True):
            axis.plot(t, values, label=name, linestyle=dashes)
    axes[1].set_yscale("log")
    axes[2].set_ylim(-12, 16)
    for axis, title in zip(axes, ("alpha: what is left of the picture", "sigma: noise", "log-SNR"), strict=True):
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("t")
        axis.grid(alpha=0.3)
    axes[2].legend(fontsize=8, loc="upper right")
    _save(figure, path)


def _draw_predictions(path: Path) -> None:
    process = PROCESSES["discrete_vp, cosine β"]
    log_snr = torch.linspace(-8, 8, 400, dtype=torch.float64)
    t = process.time_at(log_snr)
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for (name, prediction), dashes in zip(PREDICTIONS.items(), cycle(DASHES), strict=False):
        gain = prediction.x0_gain(process.alpha(t), process.sigma(t))
        axes[0].plot(log_snr, gain, label=name, linestyle=dashes)
        axes[1].plot(log_snr, gain**-2, label=name, linestyle=dashes)
    axes[0].set_title("error of x0 for one unit of error of the output", fontsize=11)
    axes[1].set_title("weight of x0's squared error where the loss is the output's", fontsize=11)
    for axis in axes:
        axis.set_yscale("log")
        axis.set_xlabel("log-SNR (more picture to the right)")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=9)
    _save(figure, path)


def _draw_solvers(path: Path) -> None:
    figure, panels = pyplot.subplots(2, 2, figsize=(10.5, 8), layout="constrained")
    axes = panels.flatten()[:3]
    panels[1, 1].axis("off")
    axes[0].sharey(axes[1])
    for axis, name, grid in zip(axes, ("discrete_vp, cosine β", "edm"), (Uniform(), LogSNR()), strict=False):
        _draw_flow(axis, name, grid)
    axes[0].set_ylabel("distance from the exact flow")
    axes[0].legend(fontsize=9)
    _draw_stochastic(axes[2], "discrete_vp, cosine β")
    panels[1, 1].legend(*axes[2].get_legend_handles_labels(), title="stochastic, at the left", fontsize=9, loc="upper left")
    for axis in axes:
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("network evaluations")
        axis.grid(alpha=0.3, which="both")
    _save(figure, path)


def _draw_flow(axis: Axes, name: str, grid: Uniform | LogSNR) -> None:
    process = PROCESSES[name]
    streams = Streams.of(0, "solvers", samples=range(POINTS))
    first, end = _ends(process, grid, 0.98 if name != "edm" else 1.0)
    noise = streams.normal("start", (1,)).double()
    x = process.blend(Estimate(x0=torch.zeros_like(noise), eps=noise), first)
    ends = torch.stack([first, end])
    exact = ODE(rtol=1e-10, atol=1e-10).sample(Mixture(process), x, ends, process, step_noise(streams, x))
    even = isinstance(grid, LogSNR)
    runs = {
        label: [(solver, _between(process, first, end, steps, even_in_log_snr=even)) for steps in STEPS]
        for label, solver in SOLVERS.items()
    }
    runs["ode, by tolerance"] = [(ODE(rtol=tolerance, atol=tolerance), ends) for tolerance in TOLERANCES]
    for label, entries in tqdm(runs.items(), desc=name, unit="solver"):
        asked, errors = [], []
        for solver, times in entries:
            counted = Counted(Mixture(process))
            found = solver.sample(counted, x, times, process, step_noise(streams, x))
            asked.append(counted.evaluations)
            errors.append((found - exact).square().mean().sqrt().item())
        axis.plot(asked, errors, marker=".", label=label)
    axis.set_title(f"{name}; steps even in {'log-SNR' if even else 't'}", fontsize=11)


def _draw_stochastic(axis: Axes, name: str) -> None:
    process = PROCESSES[name]
    mixture = Mixture(process)
    streams = Streams.of(0, "solvers", samples=range(DRAWS))
    first, end = _ends(process, Uniform(), 0.98)
    noise = streams.normal("start", (VALUES,)).double()
    x = mixture.draw(noise, first)
    exact = mixture.draw(noise, end).flatten().sort().values
    for label, solver in tqdm(STOCHASTIC.items(), desc="stochastic", unit="solver"):
        asked, errors = [], []
        for steps in STEPS:
            counted = Counted(mixture)
            found = solver.sample(counted, x, _between(process, first, end, steps, even_in_log_snr=False), process, step_noise(streams, x))
            asked.append(counted.evaluations)
            errors.append((found.flatten().sort().values - exact).abs().mean().item())
        axis.plot(asked, errors, marker=".", label=label)
    axis.set_title(f"stochastic; {name}", fontsize=11)
    axis.set_ylabel("distance from the exact distribution (Wasserstein 1)")


def _ends(process: NoiseProcess, grid: Uniform | LogSNR, start: float) -> tuple[Tensor, Tensor]:
    """Where solving begins, and where it ends: short of data."""
    return grid.times(process, STEPS[-1], start)[0], process.time_at(torch.tensor(6.0, dtype=torch.float64))


def _between(process: NoiseProcess, first: Tensor, end: Tensor, steps: int, *, even_in_log_snr: bool) -> Tensor:
    """steps + 1 times from first to end, short of data, where the exact flow is smooth and orders show."""
    share = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if not even_in_log_snr:
        return torch.lerp(first, end, share)
    levels = process.log_snr(torch.stack([first, end]))
    times = process.time_at(torch.lerp(levels[0], levels[1], share))
    times[0] = first
    return times


def _save(figure, path: Path) -> None:  # noqa: ANN001
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
