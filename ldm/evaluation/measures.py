"""What is measured of generated pictures: one function a metric, or two that belong together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.evaluation.dataset import DrawnFrom
from ldm.metrics import bootstrap
from ldm.metrics.frechet import FrechetReference
from ldm.metrics.inception_score import SPLITS, logits_of, score_and_interval
from ldm.metrics.kernel import KernelReference
from ldm.metrics.manifold import NEIGHBOURS, SMALLEST, precision_recall, recall_error
from ldm.metrics.neighbours import chance, nearest, ranks
from ldm.metrics.report import Metric
from ldm.metrics.sliced import DIRECTIONS, SEED, SlicedReference
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.sampling import Sampling
from ldm.pretrained import class_layer

TOP = 5
CLOSE = 0.05  # of held-out pictures are nearer to the training set than what is called close


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """All that a measure may read. Features are (., 2048).

    Attributes:
        model, how: what made the pictures.
        training: pictures of the training split.
        source: pictures whose captions, labels and more were the conditions, in order, again from the first if more pictures were made.
        is_held_out: whether `source` were kept out of training.
        has_captions: whether captions were conditions.
        reference: features of `training`.
        real: of all of `source`.
        generated: one row a picture made; picture i was made under the conditions of picture i of `source`.
        second: `reference` and `generated` in a second feature space, if one is wanted.
    """

    model: LatentDiffusion
    how: Sampling
    training: DrawnFrom
    source: DrawnFrom
    is_held_out: bool
    has_captions: bool
    reference: Tensor
    real: Tensor
    generated: Tensor
    second: tuple[Tensor, Tensor] | None = None


def _fid(seen: Evaluated) -> list[Metric]:
    reference = FrechetReference(seen.reference)
    about = f"Heusel et al. 2017, to {len(seen.reference)} training pictures. Few pictures raise it: compare equal numbers only"
    return [_distance(seen, "fid", reference.distance, partial(reference.replicates, progress=True), about)]


def _kid(seen: Evaluated) -> list[Metric]:
    reference = KernelReference(seen.reference)
    about = f"Binkowski et al. 2018, all pictures at once, to {len(seen.reference)} training pictures. Without bias"
    found = _distance(seen, "kid", reference.distance, reference.replicates, about)
    if found.interval is None and found.value is not None and len(seen.generated) >= bootstrap.SMALLEST:
        found = replace(found, interval=bootstrap.normal(found.value, reference.standard_error(seen.generated)))
    return [found]


def _mind(seen: Evaluated) -> list[Metric]:
    reference = SlicedReference(seen.reference)
    count = min(len(seen.generated), len(seen.reference))
    about = f"Berthet et al. 2026: {DIRECTIONS} directions, seed {SEED}, {count} pictures of each, as torch-fidelity. Fewer raise it"
    return [_distance(seen, "mind", reference.distance, partial(reference.replicates, progress=True), about, count)]


def _second(seen: Evaluated) -> list[Metric]:
    if seen.second is None:
        return []
    reference, generated = seen.second
    distance = FrechetReference(reference)
    about = f"as FID, of 2,048 features of Keras' ResNet50, to {len(reference)} training pictures. Its scale is not that of FID"
    found = _distance(
        replace(seen, generated=generated), "fd_resnet50", distance.distance, partial(distance.replicates, progress=True), about
    )
    return [replace(found, title="FD, ResNet50")]


def _distance(
    seen: Evaluated,
    name: str,
    distance: Callable[[Tensor], float],
    replicates: Callable[[Tensor, Tensor], Tensor],
    about: str,
    used: int | None = None,
) -> Metric:
    """Of the generated pictures to the training set, with an interval where they are few; `used`: how many of them count, if not all."""
    count, value, interval = used or len(seen.generated), distance(seen.generated), None
    if bootstrap.has_interval(count):
        interval = bootstrap.around(value, replicates(seen.generated, bootstrap.draws(count)))
    return Metric(name=name, title=name.upper(), value=value, interval=interval, pictures=count, better="lower", about=about)


def _precision_recall(seen: Evaluated) -> list[Metric]:
    generated, count = seen.generated, len(seen.generated)
    values: tuple[float | None, float | None] = None, None
    intervals: list[bootstrap.Interval | None] = [None, None]
    if enough := min(count, len(seen.reference)) >= SMALLEST:
        precision, recall = values = precision_recall(generated, seen.reference)
        intervals[0] = bootstrap.of_share(precision, count)
        if 2 * SMALLEST <= count < bootstrap.FEW:
            intervals[1] = bootstrap.of_share_with_error(recall, recall_error(generated, seen.reference), count)
    texts = ("share of generated pictures within the training set's balls", "share of training pictures within the generated set's balls")
    return [
        Metric(
            name=name,
            title=name.capitalize(),
            value=value,
            interval=interval,
            pictures=pictures,
            better="higher",
            about=f"Kynkaanniemi et al. 2019, k = {NEIGHBOURS}: {text}. Few pictures make larger balls"
            if enough
            else f"needs at least {SMALLEST} pictures of each",
        )
        for name, value, interval, pictures, text in zip(
            ("precision", "recall"), values, intervals, (count, len(seen.reference)), texts, strict=True
        )
    ]


def _inception_score(seen: Evaluated) -> list[Metric]:
    value, interval, about = None, None, f"Salimans et al. 2016, {SPLITS} parts"
    try:
        layer = class_layer()
        if len(seen.generated) >= SPLITS:
            value, interval = score_and_interval(logits_of(seen.generated, layer))
        else:
            about = f"needs at least {SPLITS} pictures"
    except UserError as error:
        about = str(error)
    return [
        Metric(
            name="inception_score",
            title="Inception Score",
            value=value,
            interval=interval,
            pictures=len(seen.generated),
            better="higher",
            about=about,
        )
    ]


def _memorisation(seen: Evaluated) -> list[Metric]:
    """How near generated pictures are to training pictures, beside how near held-out ones are."""
    generated = nearest(seen.generated, seen.reference)
    own = nearest(seen.real, seen.reference) if seen.is_held_out else None

    def median(rows: Tensor) -> Tensor:
        return rows.quantile(0.5, dim=1)

    def metric(name: str, title: str, values: Tensor | None, about: str) -> Metric:
        return Metric(
            name=name,
            title=title,
            value=None if values is None else median(values[None]).item(),
            interval=None if values is None else bootstrap.of_statistic(values, median),
            pictures=len(seen.generated) if values is None else len(values),
            better="",
            about=about if values is not None else "needs held-out pictures (--split val)",
        )

    close = None if own is None else (generated < own.quantile(CLOSE)).double().mean().item()
    return [
        metric(
            "nearest_training", "Nearest training picture", generated, "median Euclidean distance in feature space, of generated pictures"
        ),
        metric("nearest_training_held_out", "  the same of held-out pictures", own, "what to compare nearest_training with"),
        Metric(
            name="close_to_training",
            title="Close to a training picture",
            value=close,
            interval=None if close is None else bootstrap.of_share(close, len(generated)),
            pictures=len(generated),
            better="",
            about=f"share of generated pictures nearer to one than {1 - CLOSE:.0%} of held-out pictures are: {CLOSE:.2f} is expected, "
            "much more says that training pictures are repeated"
            if close is not None
            else "needs held-out pictures (--split val)",
        ),
    ]


def _prompt_fidelity(seen: Evaluated) -> list[Metric]:
    """Whether the picture made from caption i leads back to picture i."""
    names = ("retrieval_top_1", "retrieval_top_5")
    titles = ("Caption's picture is nearest", f"  is among the nearest {TOP}")
    captions = [next(iter(seen.source.data.sample(i, 0).captions), None) for i in range(seen.source.count)] if seen.has_captions else [None]
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    groups = torch.tensor([numbers[caption] for caption in captions])
    wanted = groups[torch.arange(len(seen.generated)) % len(groups)]
    has_caption = wanted != numbers.get(None, -1)  # a picture without a caption was made from none
    wanted, generated = wanted[has_caption], seen.generated[has_caption]
    if not len(generated):
        why = "no captions were given: the model takes none, or the data have none"
        return [
            Metric(name=name, title=title, value=None, pictures=0, better="higher", about=why)
            for name, title in zip(names, titles, strict=True)
        ]
    found = ranks(generated, wanted, seen.real, groups)
    about = (
        f"how often, among the {len(groups)} real pictures of the split, in Inception's feature space, the picture made from a caption has "
        "a picture of that caption {where}; by chance {chance:.3f}. It measures likeness to one picture, not what the text says"
    )
    shares = [(found <= top).double().mean().item() for top in (1, TOP)]
    return [
        Metric(
            name=name,
            title=title,
            value=share,
            interval=bootstrap.of_share(share, len(found)),
            pictures=len(found),
            better="higher",
            about=about.format(where=where, chance=chance(wanted, groups, top)),
        )
        for name, title, share, top, where in zip(names, titles, shares, (1, TOP), ("nearest", f"among the nearest {TOP}"), strict=True)
    ]


MEASURES: tuple[Callable[[Evaluated], list[Metric]], ...] = (
    _fid,
    _kid,
    _mind,
    _second,
    _precision_recall,
    _inception_score,
    _memorisation,
    _prompt_fidelity,
)
"""In the order of the table. A new metric is one more function here."""
