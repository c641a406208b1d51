"""How good a model's pictures are, and which of its stages is the limit."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ldm.app.evaluate_measures import MEASURES, Evaluated
from ldm.app.evaluate_vae import LATENT, reconstructions
from ldm.app.evaluation import AT_ONCE, DrawnFrom, Preprocessing, Result, held_out_pictures, training_pictures
from ldm.app.sampling_run import Progress
from ldm.conditioning.class_label import ClassLabel
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.data.decoder import Split
from ldm.first_stage.identity import IdentityConfig
from ldm.metrics.attribution import Attribution, attribute
from ldm.metrics.features import InceptionFeatures
from ldm.metrics.frechet import FrechetReference
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.sampling import Sampling


def evaluate_ldm(
    model: LatentDiffusion,
    how: Sampling,
    place: str,
    held_out: str | None,
    split: Split,
    background: tuple[int, int, int],
    name: str,
    count: int | None,
) -> Result:
    """Every measure in MEASURES, and the failure attribution.

    Args:
        model: both stages.
        how: its num_images is set here.
        place: of the training pictures.
        held_out: of the held-out pictures; None = the split in `place`.
        split: whether held-out or training pictures tell what to make.
        background: that transparent pictures are laid on.
        name: of the model, for the JSON.
        count: pictures to make; None = one for each picture of the split.

    Raises:
        UserError: no such data or split; fewer than 2 pictures; labels that the model does not know.
    """
    spec = model.spec
    at_size = Preprocessing(size=spec.size, channels=spec.first_stage.image_channels, background=background)
    training = training_pictures(place, at_size)
    told = training if split == "train" else _held_out(place, held_out, at_size)
    how = replace(how, num_images=count or told.count)
    conditions, said = _conditions(model, told, how.num_images)
    how = how if said else replace(how, guidance=1.0)  # nothing told: nothing to lead away from

    inception = InceptionFeatures(model.device)
    reference = training.features(inception, "training pictures")
    real = told.features(inception, "pictures whose captions and labels are told")
    shared = min(how.num_images, told.count)
    if isinstance(spec.first_stage, IdentityConfig):
        reconstructed = real[:shared]
    else:
        some = replace(told, count=shared)
        reconstructed = inception.of((given for _, given in reconstructions(model.first_stage, some)), shared, "reconstructions")
    pictures = _made(model, conditions, how)
    generated = inception.of(pictures.split(AT_ONCE), len(pictures), "generated pictures")

    evaluated = Evaluated(
        model=model,
        how=how,
        training=training,
        told=told,
        is_held_out=split == "val",
        tells_captions="captions" in said,
        reference=reference,
        real=real,
        generated=generated,
    )
    metrics = [metric for measure in MEASURES for metric in measure(evaluated)]
    found = attribute(FrechetReference(reference), real[:shared], reconstructed, generated[:shared], progress=True)
    about = {
        "model": {"checkpoint": name, "name": spec.name, "process": spec.process.kind, "prediction": spec.prediction.kind},
        "sampling": {"sampler": how.sampler.kind, "grid": how.grid.kind, "steps": how.steps, "guidance": how.guidance, "seed": how.seed},
        "data": {
            "reference": training.plain(),
            "told": told.plain(),
            "generated": how.num_images,
            "told_of_them": list(said) or "nothing: unconditional",
            "order": "picture i is told what picture i of the split has, from the first again when they are used up",
        },
        "reconstruction": f"of {LATENT}",
        "preprocessing": at_size.plain(),
    }
    return Result(about=about, metrics=metrics, attribution=_plain(found))


def _held_out(place: str, held_out: str | None, how: Preprocessing) -> DrawnFrom:
    if held_out is not None:
        return held_out_pictures(held_out, how, shared=held_out == place)
    try:
        return held_out_pictures(place, how, shared=True)
    except UserError as error:
        raise UserError(f"{error} (in an evaluation: --held-out DATA, or --split train)") from error


def _conditions(model: LatentDiffusion, told: DrawnFrom, count: int) -> tuple[list[Condition], tuple[str, ...]]:
    """What is told of the first pictures, at most `count`, and which of captions and labels that is; one untold condition if neither."""
    labels = next((part for part in model.conditioners if isinstance(part, ClassLabel)), None)
    reads_text = any(part.reads_text for part in model.conditioners) and told.data.has_captions
    reads_labels = labels is not None and told.data.has_labels
    if not reads_text and not reads_labels:
        return [model.tell(model.untold())], ()
    made = []
    for number in range(min(count, told.count)):
        sample = told.data.sample(number, 0)
        inputs = model.untold()
        if reads_text and sample.captions:
            inputs = replace(inputs, captions=(sample.captions[0],))
        if labels is not None and reads_labels and sample.label >= 0:
            names = told.data.label_names
            inputs = replace(inputs, labels=torch.tensor([labels.index_of(names[sample.label] if names else sample.label)]))
        made.append(model.tell(inputs))
    return made, (*(["captions"] if reads_text else []), *(["labels"] if reads_labels else []))


def _made(model: LatentDiffusion, conditions: list[Condition], how: Sampling) -> Tensor:
    """(num_images, C, size, size) in [-1, 1]; picture i is told condition i, from the first again when they are used up."""
    told = [conditions[number % len(conditions)] for number in range(how.num_images)]
    untold = told if how.guidance == 1 else [model.tell(model.untold())] * len(told)
    pictures = model.render(told, untold, replace(how, on_step=Progress()))
    if not pictures.isfinite().all():
        raise UserError("some of the pictures came out as NaN or infinity: train the model longer, or take another sampler")
    return pictures


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
