"""Which first stage makes stage two easy: several that differ in one term of the loss, the same stage two on each, three seeds.

    python benchmarks/first_stage.py --terms plain equivariance mirror

Every run is a training of the ordinary scripts in OUT, so that the same command goes on after a stop; evaluations that are there are not
made again. The first stage goes on from checkpoints/emoji by configs/vae/emoji-styles-f4.yaml; stage two is configs/ldm/emoji-styles.yaml,
shortened.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from kept import evaluated

from ldm.app.cli import run

SCRIPTS = Path(__file__).parents[1] / "scripts"
CONFIGS = Path(__file__).parents[1] / "configs"
TERMS = {
    "plain": ("loss.equivariance_weight=0",),
    "equivariance": ("loss.equivariance_weight=0.5", "loss.equivariance_mirror=false"),
    "mirror": ("loss.equivariance_weight=0.5", "loss.equivariance_mirror=true"),
}
OF_FIRST_STAGE = {"psnr": "PSNR, dB", "lpips": "LPIPS", "rfid": "rFID", "ifid": "iFID"}
OF_PICTURES = {"fid": "FID", "mind": "MIND", "kid": "KID"}
STUDENT = 4.303  # of two degrees of freedom, 95 %: three seeds


def main() -> None:
    """Trains and measures what is missing, and prints both tables."""
    parser = argparse.ArgumentParser(description="First stages that differ in one term, by what stage two makes of them.")
    parser.add_argument("--terms", nargs="+", choices=TERMS, default=list(TERMS), help="first stages (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of stage two (default: 0 1 2)")
    parser.add_argument("--data", default="data/emoji-styles", help="the prepared set (default: %(default)s)")
    parser.add_argument("--first-steps", type=int, default=2500, help="of stage one (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3000, help="of stage two (default: %(default)s)")
    parser.add_argument("--num-images", type=int, default=1000, help="pictures a model (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/first-stage"), help="folder of the runs (default: %(default)s)")
    options = parser.parse_args()

    data = [f"data.train={options.data}", f"data.val={options.data}"]
    first: dict[str, dict[str, Any]] = {}
    second: dict[str, list[dict[str, Any]]] = {}
    for term in options.terms:
        stage = options.out / term
        trained("train_vae", "vae/emoji-styles-f4", stage, *data, f"train.steps={options.first_steps}", *TERMS[term])
        first[term] = reconstructed(stage, options.data)
        for seed in options.seeds:
            folder = options.out / f"{term}-{seed}"
            keys = (
                f"first_stage.checkpoint={stage / 'checkpoint'}",
                f"train.steps={options.steps}",
                f"seed={seed}",
                "train.keep_best=null",
            )
            trained("train_ldm", "ldm/emoji-styles", folder, *data, *keys)
            asked = ["--data", options.data, "--num-images", str(options.num_images), "--precision", "bf16"]
            second.setdefault(term, []).append(evaluated(folder / "evaluation", str(folder / "checkpoint"), asked))
    print(table(first, second))


def trained(script: str, config: str, folder: Path, *keys: str) -> None:
    """Trains into a folder, from where it stopped."""
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), "--config", str(CONFIGS / f"{config}.yaml"), "--run-dir", str(folder), *keys]
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def reconstructed(stage: Path, data: str) -> dict[str, Any]:
    """What scripts/evaluate.py finds of a first stage, and the spectrum of its last diagnostics."""
    results = stage / "evaluation" / "evaluation.json"
    if not results.is_file():
        command = [sys.executable, str(SCRIPTS / "evaluate.py"), "vae", "--model", str(stage / "checkpoint"), "--data", data]
        done = subprocess.run([*command, "--out", str(results.parent)], check=False)
        if done.returncode:
            sys.exit(done.returncode)
    found: dict[str, Any] = {name: metric["value"] for name, metric in json.loads(results.read_text())["metrics"].items()}
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return found | {"high": next(row["val/latent_high_share"] for row in reversed(rows) if "val/latent_high_share" in row)}


def table(first: dict[str, dict[str, Any]], second: dict[str, list[dict[str, Any]]]) -> str:
    """Both, in Markdown: of the pictures the mean over seeds, with its 95 % interval where there are three."""
    names = [*OF_FIRST_STAGE.values(), "high frequencies", *OF_PICTURES.values()]
    lines = ["| first stage | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for term, found in first.items():
        cells = [f"{found[name]:.4g}" for name in OF_FIRST_STAGE] + [f"{found['high']:.1%}"]
        for name in OF_PICTURES:
            values = [metrics[name]["value"] for metrics in second[term]]
            spread = f" ± {STUDENT * stdev(values) / len(values) ** 0.5:.2g}" if len(values) == 3 else ""
            cells.append(f"{mean(values):.4g}{spread}")
        lines.append(f"| {term} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(lambda _: main())
