"""The command line of `scripts/evaluate.py`: a model in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from ldm.app.arguments.sampling import add_sampling_flags
from ldm.app.cli import Parser
from ldm.core.errors import UserError
from ldm.core.settings import Precision
from ldm.diffusion.settings import FIRST_NOISE, Probe
from ldm.evaluation.settings import BITS_IMAGES, MOST, TOLERANCE, Variance

EXAMPLES = """examples:
  python scripts/evaluate.py vae --model checkpoints/emoji --data emoji-128
      how well the first stage gives held-out pictures back
  python scripts/evaluate.py ldm --model checkpoints/emoji --data emoji-128 --num-images 500 --steps 20
      how good generated pictures are, and which stage is the limit
  python scripts/evaluate.py ldm --model runs/mine-ldm/checkpoint --data pictures/train --held-out pictures/test --json
  python scripts/evaluate.py ldm --model checkpoints/emoji --data emoji-128 --num-images 16 --bits-per-dim 16
      also what held-out pictures cost under the model; slow
  python scripts/evaluate.py ldm --model runs/mine-ldm/checkpoint --data mine --judge runs/mine-judge/checkpoint --save-images
      also by a classifier of one's own, and the pictures kept in OUT/pictures for other tools

The features of the data are kept in ~/.cache/ldm/features (or $LDM_CACHE/features), so a second evaluation is quicker.
"""
ONLY_BITS = ("bound_steps", "bound_variance", "probe", "first_noise", "tolerance")
GUIDING = ("guidance", "guidance_interval", "guidance_rescale", "threshold", "classifier", "classifier_scale")
ONLY_SAMPLING = ("sampler", "grid", "steps", *GUIDING)
ONLY_LDM = (*ONLY_SAMPLING, "precision", "held_out", "reference_images", "judge", "resnet50", "save_images", "bits_per_dim", *ONLY_BITS)


def main(arguments: Sequence[str]) -> None:
    """Evaluates a model."""
    parser = Parser("Measure a model: its first stage (vae), or the pictures it makes (ldm).", EXAMPLES)
    measured = "vae: PSNR, SSIM, LPIPS, rFID; ldm: FID, KID, precision, recall, ..."
    parser.add_argument("stage", choices=("vae", "ldm"), metavar="{vae,ldm}", help=measured)
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--data", required=True, help="pictures, as a config's data.train: a built-in name, a folder, shards")
    parser.add_argument("--held-out", help="held-out pictures, if --data has no such split (ldm)")
    parser.add_argument(
        "--split",
        choices=("val", "train"),
        default="val",
        help="pictures that are reconstructed, or whose captions, labels and more are conditions (default: %(default)s, held-out)",
    )
    parser.add_argument("--num-images", type=int, help="pictures to reconstruct or to make (default: as many as the split has)")
    parser.add_argument(
        "--reference-images", type=int, metavar="N", help=f"training pictures to compare with (ldm; default: all, {MOST:,} at most)"
    )
    parser.add_argument("--precision", choices=get_args(Precision), help="of the networks that sample (ldm; default: fp32)")
    parser.add_argument("--background", help="R,G,B that transparent pictures are laid on (default: as the model was trained)")
    add_sampling_flags(parser)
    parser.add_argument("--classifier", help="checkpoint of a noise-aware classifier that guides each picture to its label (ldm)")
    parser.add_argument("--classifier-scale", type=float, help="how strongly; 1 = Bayes' rule (ldm; default: 1)")
    parser.add_argument("--judge", help="checkpoint of a classifier of clean pictures that judges them (ldm)")
    parser.add_argument(
        "--resnet50", action="store_true", default=None, help="also the Frechet distance on ResNet50's features (ldm; fetches 95 MB once)"
    )
    parser.add_argument("--save-images", action="store_true", default=None, help="keep the pictures in OUT/pictures (ldm)")
    _add_bits(parser)
    parser.add_argument("--seed", type=int, default=0, help="picture i depends on (seed, i) only (default: %(default)s)")
    parser.add_device()
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table, and nothing else on stdout")
    parser.add_argument("--out", type=Path, help="folder for the results (default: outputs/evaluate-vae or -ldm)")
    options = parser.parse_args(arguments)
    if options.stage == "vae":
        for name in ONLY_LDM:
            if getattr(options, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} is for ldm only; vae makes no new pictures")
    if options.held_out is not None and options.split == "train":
        raise UserError("--held-out names pictures for --split val: leave out one of the two")
    for name in ONLY_BITS:
        if getattr(options, name) is not None and options.bits_per_dim is None:
            raise UserError(f"--{name.replace('_', '-')} goes with --bits-per-dim, which is not given")
    if options.classifier_scale is not None and options.classifier is None:
        raise UserError("--classifier-scale needs --classifier CHECKPOINT")
    if options.num_images is not None and options.num_images < 2:
        raise UserError(f"--num-images must be at least 2 (a distance between sets needs two pictures), got {options.num_images}")
    if options.reference_images is not None and options.reference_images < 2:
        raise UserError(
            f"--reference-images must be at least 2 (a distance between sets needs two pictures), got {options.reference_images}"
        )
    if options.bits_per_dim is not None and options.precision not in (None, "fp32"):
        raise UserError(f"bits/dim are computed in fp32: leave out --precision {options.precision}")
    options.out = options.out or Path(f"outputs/evaluate-{options.stage}")
    options.background = None if options.background is None else _levels(options.background)

    from ldm.app import evaluate

    evaluate.main(options)


def _add_bits(parser: Parser) -> None:
    parser.add_argument(
        "--bits-per-dim",
        nargs="?",
        type=int,
        const=BITS_IMAGES,
        metavar="COUNT",
        help="bits/dim of the first COUNT pictures of the split; slow (ldm; default: not computed; without COUNT: %(const)s)",
    )
    parser.add_argument("--bound-steps", type=int, metavar="N", help="of the bound's chain; pixels only (default: the process's own)")
    parser.add_argument("--bound-variance", choices=get_args(Variance), help="of its steps, where the model learns none (default: small)")
    parser.add_argument("--probe", choices=get_args(Probe), help="of the flow's divergence (default: rademacher)")
    parser.add_argument("--first-noise", type=float, metavar="R", help=f"sigma / alpha at which the flow ends (default: {FIRST_NOISE:g})")
    parser.add_argument("--tolerance", type=float, help=f"of the flow's solver (default: {TOLERANCE:g}; published numbers: 1e-5)")


def _levels(text: str) -> tuple[Any, ...]:
    levels = text.split(",")
    if len(levels) != 3 or not all(level.strip().isdigit() and int(level) <= 255 for level in levels):
        raise UserError(f"--background must be three levels from 0 to 255, e.g. 255,255,255, got {text!r}")
    return tuple(int(level) for level in levels)
