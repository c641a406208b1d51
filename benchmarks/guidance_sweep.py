"""What guidance buys and what it costs: FID, precision, recall and our judge's Inception Score against the guidance scale, plotted.

    python benchmarks/guidance_sweep.py --model runs/mnist-ddpm/checkpoint --data data/mnist --judge runs/mnist-judge/checkpoint \\
        --classifier runs/mnist-classifier/checkpoint --out outputs/mnist-guidance
    python benchmarks/guidance_sweep.py --model checkpoints/emoji --data emoji-128 --out outputs/emoji-guidance

Flags that are not its own go to scripts/evaluate.py (--steps 50 --precision bf16 --reference-images 10000). With --classifier the scale
is the classifier's, without it that of classifier-free guidance. Each scale is one call of scripts/evaluate.py, whose evaluation.json
stays in OUT; scales that have one are not measured again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
from kept import evaluated
from matplotlib import pyplot as plt

from ldm.app.cli import run

SHOWN = {
    "fid": "FID",
    "precision": "precision",
    "recall": "recall",
    "inception_score": "Inception Score",
    "inception_score_by_judge": "Inception Score by our classifier",
    "judge_hits": "class hit",
}
COLUMNS = 3


def main() -> None:
    """Measures the scales that are missing, and draws all."""
    parser = argparse.ArgumentParser(description="The trade-off of guidance, measured.")
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--data", required=True, help="its training pictures")
    parser.add_argument("--judge", help="classifier of clean pictures, for the Inception Score and the share of hits")
    parser.add_argument("--classifier", help="noise-aware classifier to guide by; without it, classifier-free guidance is swept")
    parser.add_argument("--scales", type=float, nargs="+", help="default: 0 0.5 1 2 4 8 with a classifier, 1 1.5 2 3 5 8 without")
    parser.add_argument("--num-images", type=int, default=1000, help="pictures a scale (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/guidance"), help="folder for results (default: %(default)s)")
    options, further = parser.parse_known_args()
    scales = options.scales or ([0, 0.5, 1, 2, 4, 8] if options.classifier else [1, 1.5, 2, 3, 5, 8])
    found = {scale: measured(options, further, scale) for scale in scales}
    draw(found, "classifier's scale" if options.classifier else "guidance", options.out / "guidance.png")
    print(f"guidance.png in {options.out}")


def measured(options: argparse.Namespace, further: list[str], scale: float) -> dict[str, float | None]:
    """Name -> value of every metric at a scale; None = it could not be had."""
    guided = ["--classifier", options.classifier, "--classifier-scale", str(scale)] if options.classifier else ["--guidance", str(scale)]
    judged = ["--judge", options.judge] if options.judge else []
    asked = ["--data", options.data, "--num-images", str(options.num_images), *guided, *judged, *further]
    metrics = evaluated(options.out / f"{scale:g}", options.model, asked)
    return {name: metric["value"] for name, metric in metrics.items()}


def draw(found: dict[float, dict[str, float | None]], axis: str, path: Path) -> None:
    """A panel a metric that all scales have."""
    matplotlib.use("Agg")
    names = [name for name in SHOWN if all(metrics.get(name) is not None for metrics in found.values())]
    rows = -(-len(names) // COLUMNS)
    figure, panels = plt.subplots(rows, COLUMNS, figsize=(3.4 * COLUMNS, 3.2 * rows), layout="constrained", squeeze=False)
    for panel in panels.flat[len(names) :]:
        panel.axis("off")
    for panel, name in zip(panels.flat, names, strict=False):
        panel.plot(list(found), [metrics[name] for metrics in found.values()], marker="o")
        panel.set(title=SHOWN[name], xlabel=axis)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run(lambda _: main())
