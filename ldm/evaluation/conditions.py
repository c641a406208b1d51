"""What each picture of a split is conditioned on: its caption, its label, its map, its boxes: whatever the model reads of a record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from ldm.conditioning.inputs import ConditionInputs
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.data.batch import Batch
from ldm.data.facts import CAPTIONS, LABELS
from ldm.evaluation.dataset import DrawnFrom
from ldm.pipelines.latent_diffusion import LatentDiffusion


@dataclass(frozen=True, kw_only=True)
class EvaluationConditions:
    """Picture i is conditioned on what picture i of the split has, from the first again when they are used up. Encoded when asked for.

    Attributes:
        model: that is evaluated.
        source: the split.
    """

    model: LatentDiffusion
    source: DrawnFrom

    @cached_property
    def given(self) -> tuple[str, ...]:
        """What of a record is used, e.g. ("captions", "labels"); none = all pictures are unconditional. Masks to inpaint are not."""
        has = self.source.data.facts.has
        return tuple(dict.fromkeys(part.reads for part in self.model.conditioners if part.is_in_records and part.reads in has))

    @property
    def has_captions(self) -> bool:
        return CAPTIONS in self.given

    @property
    def has_labels(self) -> bool:
        return LABELS in self.given

    def size_of(self, number: int) -> tuple[int, int]:
        """(height, width) of picture `number`, made as that of the split is brought to size."""
        return self.source.data.size_of(number % self.source.count)

    def uncond(self, number: int) -> Condition:
        """Of picture `number`, unconditional."""
        return self._uncond(self.size_of(number))

    @cached_property
    def _uncond(self) -> Callable[[tuple[int, int]], Condition]:
        return cache(lambda size: self.model.at_size(*size).encode_condition(self.model.uncond()))

    def condition(self, number: int) -> Condition:
        """Of picture `number`.

        Raises:
            UserError: a label that the model does not know.
        """
        if not self.given:
            return self.uncond(number)
        sample, facts = self.source.data.sample(number % self.source.count, 0), self.source.data.facts
        batch = Batch.of([replace(sample, caption=sample.captions[0] if sample.captions else "")])
        values = {name: part.of_batch(batch, facts) for name, part in self.model.conditioners.items() if part.reads in self.given}
        return self.model.at_size(*self.size_of(number)).encode_condition(
            ConditionInputs(count=1, values={name: value for name, value in values.items() if value is not None})
        )

    def labels(self, count: int) -> list[int]:
        """The data's labels of pictures 0 to count; -1 = it has none."""
        some = [self.source.data.sample(number, 0).label for number in range(min(count, self.source.count))]
        return [some[number % len(some)] for number in range(count)]

    def guided_labels(self, labels: Sequence[int]) -> list[str | int]:
        """Labels for a classifier to guide to: by their names, or as numbers if they have none.

        Raises:
            UserError: a picture that has none.
        """
        if min(labels) < 0:
            where = f"picture {labels.index(-1)} of {self.source.place}"
            raise UserError(f"--classifier guides each picture to the label of the data's, and {where} has none")
        names = self.source.data.facts.label_names
        return [names[label] if names else label for label in labels]

    def check(self) -> None:
        """Refuses, before any work, data whose labels or map's classes have names that the model does not know.

        Raises:
            UserError: so it is.
        """
        for part in self.model.conditioners:
            if part.reads in self.given:
                part.check(self.source.data.facts)
