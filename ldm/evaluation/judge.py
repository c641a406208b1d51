"""An independent classifier's verdict on generated pictures: whether each is clearly of some class, and of the wanted one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.checkpoints.classifier import LoadedClassifier, load_classifier
from ldm.core.errors import UserError
from ldm.core.settings import Size, height_width, in_pixels
from ldm.data.facts import LABELS
from ldm.evaluation.dataset import AT_ONCE, DrawnFrom
from ldm.metrics import bootstrap
from ldm.metrics.features import as_shown
from ldm.metrics.inception_score import SPLITS, score_and_interval
from ldm.metrics.report import Metric


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A classifier of clean pictures, trained apart from the model.

    Attributes:
        checkpoint: as the user named it.
        classifier: on `device`.
        classes: its index of each of the data's label names; None = the data's labels have none, and are its indices.
    """

    checkpoint: str
    classifier: LoadedClassifier
    classes: tuple[int, ...] | None
    device: torch.device

    @staticmethod
    def open(checkpoint: str, source: DrawnFrom, size: Size, channels: int, device: torch.device) -> Judge:
        """A judge of pictures of a size and so many channels, and of the labels that `source` has.

        Raises:
            UserError: not a classifier; one for guidance, or of other pictures, or that lacks one of the labels.
        """
        classifier = load_classifier(checkpoint, device)
        spec, names = classifier.spec, source.data.facts.label_names
        unfit = f"--judge {checkpoint}"
        if spec.process is not None:
            raise UserError(f"{unfit} is noise-aware, for guidance; a judge is trained on clean pictures (process: null)")
        if not spec.sees_pixels:
            raise UserError(f"{unfit} was trained on latents; a judge is trained on pixels")
        if (height_width(spec.size), spec.normalization.channels) != (height_width(size), channels):
            seen = f"{in_pixels(spec.size)} and {spec.normalization.channels} channel{'s' * (spec.normalization.channels > 1)}"
            raise UserError(f"{unfit} was trained on pictures of {seen}; the model makes them of {in_pixels(size)} and {channels}")
        missing = [name for name in names if name not in spec.label_names]
        if missing:
            raise UserError(f"{unfit} has no label {missing[0]!r}, which {source.place} has; it has {', '.join(spec.label_names)}")
        classes = tuple(spec.label_names.index(name) for name in names) if names else None
        return Judge(checkpoint=checkpoint, classifier=classifier, classes=classes, device=device)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """(B, classes) float64 on the CPU, of pictures (B, C, size, size) in [-1, 1] as an 8-bit file shows them."""
        return self.classifier.logits(as_shown(images).to(self.device)).cpu().double()

    def index_of(self, label: int) -> int:
        """Its index of a label of the data; -1 = none.

        Raises:
            UserError: a number that it does not know.
        """
        if label < 0 or self.classes is None:
            return self.classifier.index_of(label) if label >= 0 else -1
        return self.classes[label]

    def hits_on(self, source: DrawnFrom) -> Tensor:
        """Whether it is right, of each labelled picture of a split: (M,) bool."""
        found = []
        with tqdm(total=source.count, desc="judge, real pictures", unit="picture", dynamic_ncols=True) as bar:
            for start in range(0, source.count, AT_ONCE):
                samples = [source.data.sample(i, 0) for i in range(start, min(start + AT_ONCE, source.count))]
                labels = torch.tensor([self.index_of(sample.label) for sample in samples])
                classes = self.logits(torch.stack([sample.image for sample in samples])).argmax(1)
                found.append((classes == labels)[labels >= 0])
                bar.update(len(samples))
        return torch.cat(found)

    def plain(self) -> dict[str, object]:
        """For the JSON."""
        spec = self.classifier.spec
        return {
            "checkpoint": self.checkpoint,
            "name": spec.name,
            "digest": self.classifier.digest,
            "labels": list(spec.label_names),
            "accuracy_when_trained": spec.accuracy,
        }


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judge's verdict on generated pictures, and on real ones.

    Attributes:
        judge: who.
        wanted: (N,), its index of each generated picture's wanted class, -1 = none; None = no classes are wanted.
        real: (M,) bool, whether it was right of each labelled real picture; None = none has a label.
        is_held_out: whether the real pictures were kept out of the model's training.
    """

    judge: Judge
    wanted: Tensor | None
    real: Tensor | None
    is_held_out: bool

    @staticmethod
    def begin(judge: Judge, labels: Sequence[int] | None, source: DrawnFrom, is_held_out: bool) -> Verdict:
        """Judges the real pictures.

        Args:
            judge: who.
            labels: the data's, of each picture that is to be generated; None = no classes are wanted.
            source: the real pictures.
            is_held_out: see Verdict.

        Raises:
            UserError: a label that the judge does not know.
        """
        wanted = None if labels is None else torch.tensor([judge.index_of(label) for label in labels])
        return Verdict(
            judge=judge, wanted=wanted, real=judge.hits_on(source) if LABELS in source.data.facts.has else None, is_held_out=is_held_out
        )

    def metrics(self, logits: Tensor) -> list[Metric]:
        """Rows of the table, by the judge's logits (N, classes) of the generated pictures."""
        enough = len(logits) >= SPLITS
        value, interval = score_and_interval(logits) if enough else (None, None)
        score = Metric(
            name="inception_score_by_judge",
            title=f"Inception Score by the judge {self.judge.classifier.spec.name}",
            value=value,
            interval=interval,
            pictures=len(logits),
            better="higher",
            about=f"Salimans et al. 2016's formula, {SPLITS} parts, with this classifier in Inception's place: not the published score"
            if enough
            else f"needs at least {SPLITS} pictures",
        )
        hits = None if self.wanted is None else (logits.argmax(1) == self.wanted)[self.wanted >= 0]
        where = "held-out" if self.is_held_out else "training"
        return [
            score,
            _share("judge_hits", "  it sees the wanted class", hits, "higher", "of generated pictures, by top-1", "no labels were given"),
            _share(
                "judge_accuracy",
                f"  its accuracy on {where} pictures",
                self.real,
                "",
                f"of real {where} pictures, by top-1: what the share above compares with",
                "the data have no labels",
            ),
        ]


def _share(name: str, title: str, hits: Tensor | None, better: Literal["higher", ""], about: str, why: str) -> Metric:
    """The share of `hits` that are true; `why` there are none."""
    value = None if hits is None or not len(hits) else hits.double().mean().item()
    return Metric(
        name=name,
        title=title,
        value=value,
        interval=None if value is None or hits is None else bootstrap.of_share(value, len(hits)),
        pictures=0 if hits is None else len(hits),
        better=better,
        about=why if value is None else about,
    )
