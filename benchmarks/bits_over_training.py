"""bits/dim over training: each checkpoint that a run kept (train.keep_every), measured on the same held-out pictures and plotted.

    python benchmarks/bits_over_training.py --run runs/mnist-sde --data data/mnist --bits-per-dim 64 --out outputs/bits-mnist-sde

Flags that are not its own go to scripts/evaluate.py, of which each checkpoint is one call: its evaluation.json stays in OUT, and is not
measured again. That script also makes two pictures in two steps, since it always makes some; they are not looked at.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
from kept import evaluated
from matplotlib import pyplot as plt

from ldm.app.cli import run

OF_PIXELS = {"bits_per_dim": "exact, by the probability flow", "bits_per_dim_bound": "variational bound"}
OF_LATENTS = {"bits_per_dim": "bound of both stages"}


def main() -> None:
    """Measures the checkpoints that are missing, and draws all."""
    parser = argparse.ArgumentParser(description="bits/dim of a run's kept checkpoints.")
    parser.add_argument("--run", type=Path, required=True, help="folder of a run that kept checkpoints")
    parser.add_argument("--data", required=True, help="its pictures")
    parser.add_argument("--bits-per-dim", default="64", metavar="COUNT", help="held-out pictures (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/bits-over-training"), help="folder for results (default: %(default)s)")
    options, further = parser.parse_known_args()
    kept = sorted(path for path in (options.run / "checkpoints").glob("step-*") if not path.name.endswith("-lora"))
    if not kept:
        parser.error(f"{options.run}/checkpoints holds none: train with train.keep_every=1000")
    draw({int(path.name.removeprefix("step-")): measured(path, options, further) for path in kept}, options.out / "bits.png")
    print(f"bits.png in {options.out}")


def measured(checkpoint: Path, options: argparse.Namespace, further: list[str]) -> dict[str, dict[str, float | None]]:
    """The metrics of a checkpoint: name -> value, interval and more."""
    asked = ["--data", options.data, "--bits-per-dim", options.bits_per_dim]
    least = ["--num-images", "2", "--reference-images", "2", "--sampler", "ddim", "--steps", "2"]
    return evaluated(options.out / checkpoint.name, str(checkpoint), [*asked, *least, *further])


def draw(found: dict[int, dict[str, dict]], path: Path) -> None:
    """A curve each, with the interval of the mean over the pictures."""
    matplotlib.use("Agg")
    figure, panel = plt.subplots(figsize=(6, 3.6), layout="constrained")
    shown = OF_PIXELS if all("bits_per_dim_bound" in metrics for metrics in found.values()) else OF_LATENTS
    for name, label in shown.items():
        rows = {step: metrics[name] for step, metrics in found.items()}
        (line,) = panel.plot(list(rows), [row["value"] for row in rows.values()], marker="o", label=label)
        low, high = zip(*(row["interval"] or (row["value"], row["value"]) for row in rows.values()), strict=True)
        panel.fill_between(list(rows), low, high, color=line.get_color(), alpha=0.15)
    panel.set(xlabel="training steps", ylabel="bits/dim", xlim=(0, None))
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run(lambda _: main())
