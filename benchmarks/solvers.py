"""FID against network evaluations for every solver, on one trained model, from the same noise.

    python benchmarks/solvers.py --model runs/mnist-sde/checkpoint --data data/mnist --out benchmarks/solvers

Results lie in OUT/solvers.jsonl, a line each; what is there is not measured again, so the command can be stopped and called again. The
last call draws OUT/solvers.png. A solver gets as many steps as its evaluations allow; `ode`, which sizes its own strides, stands where its
tolerance puts it. `ddim` is also `euler` in either frame, and `ddpm` `euler_ancestral`: their steps are the same (tests/samplers).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import matplotlib
import torch
from kept import check_asked
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor
from tqdm import tqdm

from ldm import LatentDiffusion
from ldm.app.cli import run
from ldm.core.errors import UserError
from ldm.core.files import write_file
from ldm.core.random import Streams
from ldm.core.settings import Precision
from ldm.diffusion.estimate import Denoise
from ldm.evaluation.dataset import Preprocessing, training_images
from ldm.metrics.features import InceptionFeatures
from ldm.metrics.frechet import FrechetReference
from ldm.pipelines.sampling import Sampling
from ldm.samplers.ddim import DDIM
from ldm.samplers.ddpm import DDPM
from ldm.samplers.dpmpp_2m import DPMpp2M
from ldm.samplers.dpmpp_2m_sde import DPMpp2MSDE
from ldm.samplers.heun import Heun
from ldm.samplers.langevin import AnnealedLangevin
from ldm.samplers.ode import ODE
from ldm.samplers.pc import PredictorCorrector
from ldm.samplers.pndm import PNDM
from ldm.samplers.sampler import Counted, Sampler
from ldm.samplers.unipc import UniPC

FEW, MANY = (5, 10, 20, 50), (250, 1000)
AT_ONCE = 100
SAME = {"ddim": "ddim = euler", "ddpm": "ddpm = euler_ancestral"}


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A solver, how often a step asks the network, and what that costs beside the steps."""

    sampler: Sampler
    a_step: int = 1
    beside: int = 0
    evaluations: tuple[int, ...] = FEW

    def steps(self, evaluations: int) -> int:
        """As many as so many evaluations allow; 0 = none."""
        return (evaluations - self.beside) // self.a_step


ENTRANTS = {
    "ddpm": Entrant(sampler=DDPM(), evaluations=FEW + MANY),
    "ddim": Entrant(sampler=DDIM(), evaluations=FEW + MANY),
    "pndm": Entrant(sampler=PNDM(), beside=1),
    "euler_maruyama": Entrant(sampler=PredictorCorrector(predictor="euler_maruyama", corrections=0)),
    "heun": Entrant(sampler=Heun(), a_step=2, beside=-1),
    "dpmpp_2m": Entrant(sampler=DPMpp2M()),
    "dpmpp_2m_sde": Entrant(sampler=DPMpp2MSDE()),
    "unipc": Entrant(sampler=UniPC()),
    "pc": Entrant(sampler=PredictorCorrector(), a_step=2, beside=-1),
    "langevin": Entrant(sampler=AnnealedLangevin(rounds=2), a_step=2, beside=1),
} | {f"ode {tolerance:g}": Entrant(sampler=ODE(rtol=tolerance, atol=tolerance), evaluations=(0,)) for tolerance in (1e-1, 1e-2, 1e-3)}


def main() -> None:
    """Measures what is not measured yet, and draws all."""
    parser = argparse.ArgumentParser(description="FID against network evaluations for every solver.")
    parser.add_argument("--model", required=True, help="checkpoint folder of an unconditional model")
    parser.add_argument("--data", required=True, help="its training pictures")
    parser.add_argument("--num-images", type=int, default=2000, help="pictures a solver (default: %(default)s)")
    parser.add_argument("--reference-images", type=int, help="training pictures to compare with (default: all)")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="of the network (default: %(default)s)")
    parser.add_argument("--grid", help="how steps are spaced (default: as the model says)")
    parser.add_argument("--out", type=Path, default=Path("outputs/solvers"), help="folder for results (default: %(default)s)")
    options = parser.parse_args()
    results = options.out / "solvers.jsonl"
    check_asked(results, options.model, {name: value for name, value in vars(options).items() if name not in ("model", "out")})
    model = LatentDiffusion.from_pretrained(options.model, precision=options.precision)
    common = model.sampling(guidance=1.0, grid=options.grid)
    inception = InceptionFeatures(model.device)
    at_size = Preprocessing(
        size=model.spec.size, fit=model.spec.fit, channels=model.first_stage.image_channels, background=model.spec.background
    )
    training = training_images(options.data, at_size, options.reference_images)
    reference = FrechetReference(training.features(inception, "training pictures"))
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(line["solver"], line["asked"]) for line in lines}
    for name, entrant in ENTRANTS.items():
        for asked in entrant.evaluations:
            if (name, asked) in done or (asked and entrant.steps(asked) < 1):
                continue
            began = time.perf_counter()
            try:
                pictures, evaluations = sampled(model, entrant, asked, common, options.num_images, f"{name}, {asked}")
            except UserError as error:  # not defined for this process, or for so many steps
                print(f"{name}, {asked}: left out: {error}")
                continue
            features = inception.of(pictures.split(50), len(pictures), f"{name}, {asked}")
            line = {
                "solver": name,
                "asked": asked,
                "evaluations": evaluations,
                "fid": reference.distance(features),
                "pictures": len(pictures),
                "seconds": round(time.perf_counter() - began, 1),
            }
            lines.append(line)
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
    order = list(ENTRANTS)
    draw(sorted(lines, key=lambda line: (order.index(line["solver"]), line["evaluations"])), options.out / "solvers.png")


def sampled(model: LatentDiffusion, entrant: Entrant, asked: int, common: Sampling, count: int, said: str) -> tuple[Tensor, float]:
    """(count, C, size, size) in [-1, 1], and how often the network was asked for each picture, on average over batches."""
    counters: list[Counted] = []

    def counting(denoise: Denoise, streams: Streams) -> Denoise:
        counters.append(Counted(denoise))
        return counters[-1]

    how = replace(common, sampler=entrant.sampler, steps=entrant.steps(asked) if asked else 1)
    nothing = model.encode_condition(model.uncond())
    pictures = []
    for first in tqdm(range(0, count, AT_ONCE), desc=said, unit="batch", dynamic_ncols=True):
        conditions = [nothing] * min(AT_ONCE, count - first)
        pictures.append(model.render(conditions, conditions, how, numbers=range(first, first + len(conditions)), wrap=counting))
    return torch.cat(pictures), sum(counter.evaluations for counter in counters) / len(counters)


def draw(lines: list[dict[str, float]], path: Path) -> None:
    """One curve a solver."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        curves.setdefault(str(line["solver"]).split()[0], []).append((line["evaluations"], line["fid"]))
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for number, (name, points) in enumerate(curves.items()):
        axes.plot(
            *zip(*sorted(points), strict=True),
            marker="o",
            markersize=4,
            label=SAME.get(name, name),
            color=colours[2 * number % 19],
        )
    axes.set(xscale="log", yscale="log", xlabel="network evaluations a picture", ylabel="FID")
    axes.set_xticks([*FEW, *MANY])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.grid(which="both", alpha=0.2)
    axes.legend(ncols=2, fontsize=8)
    figure.savefig(path, dpi=110)
    write_file(path.with_suffix(".md"), table(lines))


def table(lines: list[dict[str, float]]) -> str:
    """The same as a Markdown table."""
    rows = [f"| {line['solver']} | {line['evaluations']:g} | {line['fid']:.2f} |" for line in lines]
    return "\n".join(["| solver | evaluations | FID |", "|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    run(lambda _: main())
