"""How good a model's pictures are, and which of its stages is the limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.config.loader import to_short_form
from ldm.core.distributed import ALONE, World
from ldm.core.errors import UserError
from ldm.core.precision import whole_float32
from ldm.data.findings import Finding
from ldm.data.open import has_held_out_split, is_same_place
from ldm.data.sample_transform import Split
from ldm.evaluation.conditions import EvaluationConditions
from ldm.evaluation.dataset import DrawnFrom, Preprocessing, Result, held_out_images, in_order, in_training_set, training_images
from ldm.evaluation.first_stage import LATENT, reconstructions
from ldm.evaluation.generated import COUNT, SavedImages, made
from ldm.evaluation.judge import Judge, Verdict
from ldm.evaluation.likelihood import bits_per_dim
from ldm.evaluation.likelihood_task import LikelihoodConfig
from ldm.evaluation.measures import MEASURES, Evaluated
from ldm.first_stage.identity import IdentityConfig
from ldm.metrics.attribution import Attribution, attribute
from ldm.metrics.features import Features, InceptionFeatures, ResNet50Features
from ldm.metrics.frechet import FrechetReference
from ldm.pipelines.classifier_guide import ClassifierGuide
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """
    Attributes:
        place: of the training pictures.
        held_out: of the held-out pictures; None = the split in `place`.
        split: whether held-out or training pictures give the conditions.
        background: that transparent pictures are laid on; None = as the model was trained.
        name: of the model, for the JSON.
        count: pictures to make; None = one for each picture of the split.
        reference_count: training pictures to compare with, from the first; None = all, MOST at most.
        classifier: checkpoint of one that guides each picture to its label; None = none does.
        classifier_scale: how strongly.
        judge: checkpoint of a classifier that judges the pictures; None = none does.
        bits: of bits/dim; None = it is not computed.
        folder: where the pictures are kept; None = they are not.
        has_resnet50: whether pictures are compared by ResNet50's features too.
    """

    place: str
    held_out: str | None
    split: Split
    background: tuple[int, int, int] | None
    name: str
    count: int | None
    reference_count: int | None
    classifier: str | None
    classifier_scale: float
    judge: str | None
    bits: LikelihoodConfig | None
    folder: SavedImages | None
    has_resnet50: bool = False


def evaluate_ldm(model: LatentDiffusion, how: Sampling, config: EvaluationConfig, world: World = ALONE) -> Result | None:
    """Every measure in MEASURES, and the failure attribution; what the judge says, and bits/dim.

    Of several processes each draws its share of the pictures and sees its share of all; the first has the result, the others None.

    Args:
        model: both stages.
        how: its num_images and guide are set here.
        config: see EvaluationConfig.
        world: the processes.

    Raises:
        UserError: no such data or split; fewer than 2 pictures; labels that the model, its classifier or the judge does not know; a
            classifier or a judge that does not fit.
    """
    spec = model.spec
    if spec.buckets is not None and (config.classifier, config.judge) != (None, None):
        raise UserError("classifiers and judges are of one image size, but this model was trained on several (data.buckets): leave it out")
    at_size = Preprocessing.of(spec, config.background)
    training = training_images(config.place, at_size, config.reference_count)
    source = training_images(config.place, at_size) if config.split == "train" else _held_out(config.place, config.held_out, at_size)
    is_held_out = config.split == "val"
    conditions = EvaluationConditions(model=model, source=source)
    conditions.check()
    how = replace(how, num_images=config.count or source.count)
    how = how if conditions.given else replace(how, guidance=1.0)  # unconditional: nothing to lead away from
    has_labels = conditions.has_labels or config.classifier is not None
    labels = conditions.labels(how.num_images) if has_labels and (config.classifier, config.judge) != (None, None) else None
    if config.classifier is not None and labels is not None:
        how = replace(how, guide=model.guide(config.classifier, conditions.guided_labels(labels), config.classifier_scale))
    judge = None if config.judge is None else Judge.open(config.judge, source, spec.size, spec.first_stage.image_channels, model.device)
    inception = InceptionFeatures(model.device)
    # What the user may have to correct comes before what takes long.
    verdict = None if judge is None else Verdict.begin(judge, labels, source, is_held_out)
    with whole_float32():
        bits = None if config.bits is None else bits_per_dim(conditions, training, config.bits, how.seed, is_held_out)

    reference = training.features(inception, "training pictures", world)
    shared = min(how.num_images, source.count)
    beside = source if conditions.has_captions else replace(source, count=shared)  # captions lead back to one picture among all
    real = beside.features(inception, "pictures whose captions, labels and more are the conditions", world)
    if isinstance(spec.first_stage, IdentityConfig):
        reconstructed = real[:shared]
    else:
        some = replace(source, count=shared)
        decoded = (given for _, given in reconstructions(model.first_stage, some, model.device, world))
        reconstructed = some.in_order(inception.of(decoded, shared, "reconstructions", world))
    second = ResNet50Features(model.device) if config.has_resnet50 else None
    beside_reference = None if second is None else training.features(second, "training pictures", world)
    generated, seconds, logits = _seen(conditions, how, inception, second, judge, config.folder, world)
    if not world.is_first:
        return None

    evaluated = Evaluated(
        model=model,
        how=how,
        training=training,
        source=source,
        is_held_out=is_held_out,
        has_captions=conditions.has_captions,
        reference=reference,
        real=real,
        generated=generated,
        second=None if beside_reference is None else (beside_reference, seconds),
    )
    metrics = [metric for measure in MEASURES for metric in measure(evaluated)]
    found = attribute(FrechetReference(reference), real[:shared], reconstructed, generated[:shared], progress=True)
    about: dict[str, Any] = {
        "model": {"checkpoint": config.name, "name": spec.name, "process": spec.process.kind, "prediction": spec.prediction.kind},
        "sampling": _how(how, config.classifier) | {"precision": model.precision},
        "data": {
            "reference": training.plain(),
            "conditions": source.plain(),
            "generated": how.num_images,
            "conditioned_on": list(conditions.given) or "nothing: unconditional",
            "guided_to": "labels, by the classifier" if how.guide is not None else "nothing",
            "order": "picture i is conditioned on what picture i of the split has, from the first again when they are used up",
            **({} if spec.buckets is None else {"sizes": "picture i is made of the size that picture i of the split is brought to"}),
        },
        "reconstruction": "none: the model draws pixels" if isinstance(spec.first_stage, IdentityConfig) else f"of {LATENT}",
        "preprocessing": at_size.plain(),
    }
    if verdict is not None:
        metrics += verdict.metrics(logits)
        about["judge"] = verdict.judge.plain()
    if bits is not None:
        metrics += bits.metrics
        about["bits_per_dim"] = bits.about
    if config.folder is not None:
        about[COUNT] = how.num_images
    trained = in_training_set(source, training) if is_held_out else []
    data = {**about["data"], "held_out_in_training": len(trained)}
    remarks = (Finding("held-out pictures that are in the training set too", tuple(trained)).line(),) if trained else ()
    return Result(about=about | {"data": data}, metrics=metrics, attribution=_plain(found), remarks=remarks)


def _held_out(place: str, held_out: str | None, how: Preprocessing) -> DrawnFrom:
    if held_out is not None:
        return held_out_images(held_out, how, shared=is_same_place(held_out, place))
    try:
        return held_out_images(place, how, shared=True)
    except UserError as error:
        if (Path(place).expanduser().exists() or place.endswith(".tar")) and not has_held_out_split(place):
            raise UserError(
                f"{place} has no held-out split: name held-out pictures, --held-out DATA, or --split train to take training pictures"
            ) from error
        raise


def _seen(
    conditions: EvaluationConditions,
    how: Sampling,
    inception: Features,
    second: Features | None,
    judge: Judge | None,
    folder: SavedImages | None,
    world: World,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features (num_images, 2048) of the generated pictures by both networks, and a judge's logits (num_images, classes).

    Of what is not there, (0,).
    """

    def seen() -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
        for numbers, images in made(conditions, how, world):
            if folder is not None:
                folder.add(images, numbers)
            none = torch.zeros(0)
            of_second = none if second is None else second(images)
            yield numbers, inception(images), of_second, none if judge is None else judge.logits(images).cpu()

    if folder is not None:
        world.on_first(folder.clear)
    groups, *found = zip(*world.in_turn(seen()), strict=True)
    if folder is not None and world.is_first:
        folder.finish(how.num_images)
    features, seconds, logits = (in_order(torch.cat(rows), groups) if rows[0].numel() else torch.zeros(0) for rows in found)
    return features, seconds, logits


def _how(how: Sampling, classifier: str | None) -> dict[str, object]:
    interval = how.guidance_interval
    found: dict[str, object] = {
        "sampler": to_short_form(how.sampler),
        "grid": to_short_form(how.grid),
        "steps": how.steps,
        "guidance": how.guidance,
        "guidance_interval": "all noise levels" if interval is None else f"sigma / alpha from {interval[0]:g} to {interval[1]:g}",
        "guidance_rescale": how.guidance_rescale,
        "threshold": how.threshold or "none",
        "seed": how.seed,
    }
    if isinstance(how.guide, ClassifierGuide):
        guide = how.guide.classifier
        found["classifier"] = {"checkpoint": classifier, "name": guide.spec.name, "digest": guide.digest, "scale": how.guide.scale}
    return found


def _plain(found: Attribution) -> dict[str, object]:
    return {
        "line": found.line,
        "pictures_of_each": found.pictures,
        "fid_real": found.real,
        "fid_reconstructed": found.reconstructed,
        "fid_generated": found.generated,
        "stage_one_adds": {"value": found.stage_one.value, "interval": found.stage_one.interval},
        "stage_two_adds": {"value": found.stage_two.value, "interval": found.stage_two.interval},
        "about": "FID of as many real, reconstructed and generated pictures to the training pictures; FID depends on how many they are",
    }
