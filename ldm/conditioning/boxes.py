"""A layout of boxes, each an object's class and two corners, as tokens for a transformer trained together with the denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ldm.conditioning.conditioner import Conditioner, Examples, context_of
from ldm.conditioning.control import BoxList, Control
from ldm.conditioning.shown import box_images
from ldm.conditioning.transformer import TokenTransformer, TransformerConfig, projection
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.family import kind
from ldm.data.batch import Batch
from ldm.data.facts import BOXES, DataFacts
from ldm.data.record import boxes_of
from ldm.data.sources.folder import read_boxes


@kind("boxes")
@dataclass(frozen=True, kw_only=True)
class BoxesConfig(TransformerConfig):
    """LDM: width 512, depth 16, 30 boxes, a vocabulary of 8192.

    Attributes:
        num_classes: classes are 0 to num_classes - 1.
        max_boxes: more are cut.
        vocabulary: of tokens. A number stands for a class, or for a place on a grid of as many rows and columns as fit; the last is
            "no box".
    """

    reads: ClassVar[str] = BOXES
    num_classes: int
    depth: int = 16
    max_boxes: int = 30
    vocabulary: int = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 1 or self.max_boxes < 1 or self.vocabulary < 5:
            raise UserError(
                f"num_classes and max_boxes must be at least 1 and vocabulary at least 5, got {self.num_classes}, {self.max_boxes}, "
                f"{self.vocabulary}"
            )
        if self.num_classes >= self.vocabulary:
            raise UserError(f"a vocabulary of {self.vocabulary} has no room for {self.num_classes} classes and 'no box'")

    @property
    def grid(self) -> int:
        """Places a side: the most whose square leaves the last token free."""
        return int((self.vocabulary - 1) ** 0.5)

    def build(self, *, context_width: int | None, latent_channels: int) -> Boxes:
        """See `ConditionerConfig.build`."""
        return Boxes(self, context_of("boxes", context_width))


class Boxes(Conditioner[Tensor]):
    """Three tokens a box, its class and its corners at the top left and bottom right, then two for the corners of the picture.

    Its input: (B, K, 5) float: class index, then left, top, right, bottom as shares of the image from 0 to 1; class -1 = no box. No
    box at all is the null input.

    Source: Rombach et al. 2022, sec. 4.3.1; the tokens are those of Esser et al.'s layout models, whose last two name the part of the
    picture that was cut out: all of it here.
    """

    uses_tokens = True

    def __init__(self, config: BoxesConfig, context_width: int) -> None:
        super().__init__(config)
        self.config = config
        self.encoder = TokenTransformer(config, config.vocabulary, 3 * config.max_boxes + 2)
        self.projection = projection(config.width, context_width)

    def forward(self, value: Tensor, latent_size: tuple[int, int]) -> Condition:
        """Tokens (B, 3 max_boxes + 2, context width).

        Raises:
            UserError: a class outside 0 to num_classes - 1; a corner outside the picture.
        """
        return Condition(tokens=self.projection(self.encoder(self.tokens(value).to(self.device), None)))

    def tokens(self, boxes: Tensor) -> Tensor:
        """(B, K, 5) to (B, 3 max_boxes + 2) int64; see the class.

        Raises:
            UserError: see `forward`.
        """
        config = self.config
        boxes = boxes[:, : config.max_boxes]
        labels, corners = boxes[..., 0].long(), boxes[..., 1:].reshape(*boxes.shape[:2], 2, 2)  # (B, K), (B, K, 2 corners, x y)
        there = labels >= 0
        wrong = labels[labels >= config.num_classes]
        if len(wrong):
            raise UserError(f"a box has class {int(wrong[0])}; this model knows 0 to {config.num_classes - 1}")
        if ((corners < 0) | (corners > 1))[there].any():
            raise UserError("a box's corners must be shares of the picture's width and height, from 0 to 1")
        columns, rows = (corners * (config.grid - 1)).round().long().unbind(-1)
        triples = torch.cat([labels[..., None], rows * config.grid + columns], dim=-1)
        tokens = torch.full((len(boxes), 3 * config.max_boxes + 2), config.vocabulary - 1)
        tokens[:, : 3 * boxes.shape[1]] = triples.where(there[..., None], config.vocabulary - 1).flatten(1)
        tokens[:, -2], tokens[:, -1] = 0, config.grid**2 - 1
        return tokens

    @property
    def controls(self) -> dict[str, Control]:
        return {"": BoxList(count=self.config.num_classes, most=self.config.max_boxes)}

    def null(self, count: int, latent_size: tuple[int, int]) -> Tensor:
        return torch.full((count, 1, 5), -1.0)

    def of_batch(self, batch: Batch, facts: DataFacts) -> Tensor | None:
        return batch.boxes

    def examples(
        self, batch: Batch, facts: DataFacts, count: int, prompts: tuple[str, ...], latent_size: tuple[int, int]
    ) -> Examples | None:
        """The records' boxes that are read, drawn; and in words, class and corners."""
        if batch.boxes is None:
            return None
        boxes = batch.boxes[:count, : self.config.max_boxes]
        words = ("; ".join(_in_words(*box) for box in each if box[0] >= 0) for each in boxes.tolist())
        return Examples(value=boxes, shown=box_images(boxes, batch.images.shape[-1]), words=tuple(words))

    def of_user(self, value: Any) -> Tensor:
        """A list of [class, left, top, right, bottom], or a JSON file's path.

        Raises:
            UserError: not that; no box, or more than max_boxes.
        """
        try:
            boxes = read_boxes(Path(value)) if isinstance(value, str | Path) else boxes_of(value)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(str(error)) from error
        if not 1 <= len(boxes) <= self.config.max_boxes:
            raise UserError(f"this model takes 1 to {self.config.max_boxes} boxes, got {len(boxes)}")
        return torch.tensor(boxes, dtype=torch.float32)[None]

    @property
    def num_unused(self) -> int:
        """See `Conditioner.num_unused`."""
        return self.encoder.num_unused


def _in_words(index: float, *corners: float) -> str:
    return f"{index:.0f} at " + " ".join(f"{share:.2f}" for share in corners)
