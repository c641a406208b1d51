"""What is told of each picture of a split: its caption, its label, its map, its boxes, itself made small; whatever the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ldm.conditioning.boxes import Boxes
from ldm.conditioning.class_label import ClassLabel
from ldm.conditioning.conditioner import Conditioner, check_names
from ldm.conditioning.low_resolution import LowResolution
from ldm.conditioning.semantic_map import SemanticMap
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.evaluation.dataset import DrawnFrom
from ldm.pipelines.latent_diffusion import LatentDiffusion


@dataclass(frozen=True, kw_only=True)
class Telling:
    """Picture i is told what picture i of the split has, from the first again when they are used up. Encoded when asked for.

    Attributes:
        model: that is told.
        told: the split.
    """

    model: LatentDiffusion
    told: DrawnFrom

    @property
    def tells_captions(self) -> bool:
        return any(part.reads_text for part in self.model.conditioners) and self.told.data.has_captions

    @property
    def tells_labels(self) -> bool:
        return self._class_label is not None and self.told.data.has_labels

    @cached_property
    def said(self) -> tuple[str, ...]:
        """What is told, e.g. ("captions", "labels"); none = all pictures are unconditional. Masks of holes are not."""
        data = self.told.data
        told = {
            "captions": self.tells_captions,
            "labels": self.tells_labels,
            "maps": self._semantic_map is not None and data.has_maps,
            "boxes": self._has(Boxes) and data.has_boxes,
            "small pictures": self._has(LowResolution),
        }
        return tuple(name for name, is_told in told.items() if is_told)

    @cached_property
    def nothing(self) -> Condition:
        """Of one picture."""
        return self.model.tell(self.model.untold())

    def condition(self, number: int) -> Condition:
        """Of picture `number`.

        Raises:
            UserError: a label that the model does not know.
        """
        if not self.said:
            return self.nothing
        sample = self.told.data.sample(number % self.told.count, 0)
        inputs = self.model.untold()
        if self.tells_captions and sample.captions:
            inputs = replace(inputs, captions=(sample.captions[0],))
        if self._class_label is not None and self.tells_labels and sample.label >= 0:
            inputs = replace(inputs, labels=torch.tensor([self._class_label.index_of(self._named(sample.label))]))
        if "maps" in self.said and sample.map is not None:
            inputs = replace(inputs, maps=sample.map[None])
        if "boxes" in self.said and sample.boxes is not None:
            inputs = replace(inputs, boxes=sample.boxes[None])
        if "small pictures" in self.said:
            inputs = replace(inputs, low_resolution=sample.image[None])
        return self.model.tell(inputs)

    def labels(self, count: int) -> list[int]:
        """The data's labels of pictures 0 to count; -1 = it has none."""
        some = [self.told.data.sample(number, 0).label for number in range(min(count, self.told.count))]
        return [some[number % len(some)] for number in range(count)]

    def to_lead_to(self, labels: Sequence[int]) -> list[str | int]:
        """Labels by their names, or as numbers if they have none.

        Raises:
            UserError: a picture that has none.
        """
        if min(labels) < 0:
            where = f"picture {labels.index(-1)} of {self.told.place}"
            raise UserError(f"--classifier leads each picture to the label of the data's, and {where} has none")
        return [self._named(label) for label in labels]

    def check(self) -> None:
        """Refuses, before any work, data whose labels or map's classes have names that the model does not know.

        Raises:
            UserError: so it is.
        """
        if self._class_label is not None and self.tells_labels:
            for name in self.told.data.label_names:
                self._class_label.index_of(name)
        if self._semantic_map is not None and "maps" in self.said:
            check_names("semantic_map", self._semantic_map.config.names, self.told.data.map_names)

    def _named(self, label: int) -> str | int:
        names = self.told.data.label_names
        return names[label] if names else label

    @property
    def _class_label(self) -> ClassLabel | None:
        return next((part for part in self.model.conditioners if isinstance(part, ClassLabel)), None)

    @property
    def _semantic_map(self) -> SemanticMap | None:
        return next((part for part in self.model.conditioners if isinstance(part, SemanticMap)), None)

    def _has(self, wanted: type[Conditioner]) -> bool:
        return any(isinstance(part, wanted) for part in self.model.conditioners)
