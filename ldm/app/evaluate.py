"""`scripts/evaluate.py`: a model in numbers."""

from __future__ import annotations

import argparse
import json
import sys

import torch

from ldm.app.sampling_run import check_folder, sampling_of
from ldm.core.distributed import World
from ldm.core.files import Outputs
from ldm.core.version import __version__
from ldm.diffusion.settings import FIRST_NOISE
from ldm.evaluation.dataset import Result
from ldm.evaluation.first_stage import evaluate_vae
from ldm.evaluation.generated import FOLDER, SavedImages
from ldm.evaluation.latent_diffusion import EvaluationConfig, evaluate_ldm
from ldm.evaluation.likelihood_task import LikelihoodConfig
from ldm.evaluation.settings import TOLERANCE
from ldm.metrics.bootstrap import FEW
from ldm.metrics.report import table
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pretrained.table import TABLE


def main(options: argparse.Namespace) -> None:
    """Evaluates a model."""
    world = World.join(options.device)
    try:
        world.on_first(lambda: _check(options))
        result = _evaluate(options, world)
    finally:
        world.leave()
    if result is not None:
        _tell(result, options, world.device)


def _check(options: argparse.Namespace) -> None:
    """Refuses, before any work, places that cannot be written."""
    check_folder(options.out)
    Outputs(options.out).check("evaluation.json", "evaluation.txt")
    if options.stage == "ldm" and options.save_images:
        SavedImages(options.out).check()


def _tell(result: Result, options: argparse.Namespace, device: torch.device) -> None:
    """Writes it, and shows it."""
    whole = {
        "stage": options.stage,
        "metrics": {metric.name: metric.plain() for metric in result.metrics},
        **({"attribution": result.attribution} if result.attribution else {}),
        **result.about,
        "extractor": {"name": "Inception v3 of 2015-12-05, 2048 features", "sha256": TABLE["fid-inception"].sha256},
        "intervals": f"95 %, of fewer than {FEW} pictures: bootstrap over the evaluated pictures; of more: normal, KID only; "
        "of shares, Wilson's, for recall with the error by jackknife; null = none",
        "tool": f"ldm {__version__}",
        "torch": torch.__version__,
        "device": device.type,
    }
    text = json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    shown = "\n".join([table(result.metrics), *([result.attribution["line"]] if result.attribution else []), *result.remarks])
    if not options.save_images:
        SavedImages(options.out).clear()
    Outputs(options.out).write({"evaluation.json": text, "evaluation.txt": shown + "\n"})
    last = f"{f'{FOLDER}/, ' if options.save_images else ''}evaluation.json and evaluation.txt in {options.out}"
    if options.json:
        print(text, end="")
        print(last, file=sys.stderr)
    else:
        print(f"{shown}\n{last}")


def _bits(options: argparse.Namespace) -> LikelihoodConfig | None:
    if options.bits_per_dim is None:
        return None
    return LikelihoodConfig(
        count=options.bits_per_dim,
        steps=options.bound_steps,
        variance=options.bound_variance,
        probe=options.probe or "rademacher",
        first_noise=FIRST_NOISE if options.first_noise is None else options.first_noise,
        tolerance=TOLERANCE if options.tolerance is None else options.tolerance,
    )


def _evaluate(options: argparse.Namespace, world: World) -> Result | None:
    if options.stage == "vae":
        return evaluate_vae(options.model, options.data, options.split, options.background, options.num_images, world)
    folder = SavedImages(options.out) if options.save_images else None
    config = EvaluationConfig(
        place=options.data,
        held_out=options.held_out,
        split=options.split,
        background=options.background,
        name=options.model,
        count=options.num_images,
        reference_count=options.reference_images,
        classifier=options.classifier,
        classifier_scale=1.0 if options.classifier_scale is None else options.classifier_scale,
        judge=options.judge,
        bits=_bits(options),
        folder=folder,
        has_resnet50=bool(options.resnet50),
    )
    model = LatentDiffusion.from_pretrained(options.model, world.device, options.precision or "fp32")
    return evaluate_ldm(model, sampling_of(model, options), config, world)
