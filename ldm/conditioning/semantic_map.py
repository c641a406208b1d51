"""A map of classes, brought to the latent's size and concatenated to the noisy latent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.conditioning.conditioner import Conditioner, ConditionerConfig, Examples, check_names
from ldm.conditioning.control import ClassMap, Control
from ldm.conditioning.shown import map_images
from ldm.core.condition import Condition
from ldm.core.errors import UserError, described
from ldm.core.family import kind
from ldm.data.batch import Batch
from ldm.data.facts import MAPS, DataFacts
from ldm.data.images import open_map

UNKNOWN = -1  # num_classes means the same, for maps that come as pictures


@kind("semantic_map")
@dataclass(frozen=True, kw_only=True)
class SemanticMapConfig(ConditionerConfig):
    """
    Attributes:
        num_classes: indices are 0 to num_classes - 1; num_classes itself means "unknown"; None = as many as the training data has.
        names: the classes' names, if they have any.
        channels: None = one channel a class; a number = a learned mix of the classes into so many (LDM: 3).
        shares: whether a latent cell has each class's share of its pixels, or only the class at its centre. Halving a one-hot map by
            bilinear interpolation is the mean of 2x2 pixels, so this is LDM's rescaling: twice for downsampling factor 4.
    """

    reads: ClassVar[str] = MAPS
    num_classes: int | None = None
    names: tuple[str, ...] = ()
    channels: int | None = None
    shares: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.num_classes is not None and self.num_classes < 1) or (self.channels is not None and self.channels < 1):
            raise UserError(f"num_classes and channels must be at least 1, got {self.num_classes}, {self.channels}")
        if self.names and len(self.names) != self.num_classes:
            raise UserError(f"{len(self.names)} class names for {self.num_classes} classes")

    @property
    def classes(self) -> int:
        """num_classes, once it is known.

        Raises:
            UserError: it was left open, and there was no training data to take it from.
        """
        if self.num_classes is None:
            raise UserError("semantic_map needs num_classes: only training can infer it, from its data")
        return self.num_classes

    @property
    def is_open(self) -> bool:
        """See `ConditionerConfig.is_open`."""
        return self.num_classes is None

    def fitted(self, facts: DataFacts) -> ConditionerConfig:
        """See `ConditionerConfig.fitted`."""
        super().fitted(facts)
        if self.num_classes in (None, len(facts.map_names)) and not self.names:
            return replace(self, num_classes=len(facts.map_names), names=facts.map_names)
        check_names("semantic_map", self.names, facts.map_names)
        return self

    def build(self, *, context_width: int | None, latent_channels: int) -> SemanticMap:
        """See `ConditionerConfig.build`."""
        return SemanticMap(self)


class SemanticMap(Conditioner[Tensor]):
    """Each latent cell's class, one-hot, or the shares of its classes. "Unknown" is zero in every channel and needs none of its own.

    Its input: (B, H, W) int64 in [0, num_classes), of any size; -1 or num_classes = unknown. All unknown is the null
    input.
    """

    def __init__(self, config: SemanticMapConfig) -> None:
        super().__init__(config)
        self.config = config
        self.concat_channels = config.channels or config.classes
        self.mix = nn.Identity() if config.channels is None else nn.Conv2d(config.classes, config.channels, 1, bias=False)

    def forward(self, value: Tensor, latent_size: tuple[int, int]) -> Condition:
        """Channels (B, K, h, w).

        Raises:
            UserError: a class outside -1 to num_classes.
        """
        num_classes = self.config.classes
        wrong = value[(value < UNKNOWN) | (value > num_classes)]
        if len(wrong):
            raise UserError(f"the map has class {int(wrong[0])}; this model knows 0 to {num_classes - 1} ({num_classes} = unknown)")
        return Condition(concat=self.mix(self._shares(value, latent_size)))

    def _shares(self, maps: Tensor, latent_size: tuple[int, int]) -> Tensor:
        """(B, classes, h, w): of each class in each latent cell's n x n pixels; n = 1: the pixel at its centre."""
        height, width = latent_size
        n = max(1, -(-maps.shape[1] // height), -(-maps.shape[2] // width)) if self.config.shares else 1
        pixels = F.interpolate(maps[:, None].float(), size=(n * height, n * width), mode="nearest-exact")[:, 0].long()
        classes = pixels.where(pixels != UNKNOWN, self.config.classes).to(self.device)
        cells = rearrange(classes, "b (h n) (w m) -> b (h w) (n m)", n=n, m=n)
        count = torch.zeros(*cells.shape[:2], self.config.classes + 1, device=self.device)
        count.scatter_add_(2, cells, torch.ones(cells.shape, device=self.device))
        return rearrange(count[..., :-1] / n**2, "b (h w) k -> b k h w", h=height)

    @property
    def controls(self) -> dict[str, Control]:
        return {"": ClassMap(count=self.config.classes, names=self.config.names)}

    def null(self, count: int, latent_size: tuple[int, int]) -> Tensor:
        return torch.full((count, 1, 1), UNKNOWN)

    def of_batch(self, batch: Batch, facts: DataFacts) -> Tensor | None:
        return batch.maps

    def examples(
        self, batch: Batch, facts: DataFacts, count: int, prompts: tuple[str, ...], latent_size: tuple[int, int]
    ) -> Examples | None:
        """The records' maps, in colours; and which classes are in them."""
        if batch.maps is None:
            return None
        maps, names = batch.maps[:count], self.config.names or tuple(map(str, range(self.config.classes)))
        words = (", ".join(names[i] for i in each.unique().tolist() if 0 <= i < len(names)) for each in maps)
        return Examples(value=maps, shown=map_images(maps, self.config.classes), words=tuple(words))

    def of_user(self, value: Any) -> Tensor:
        """(H, W) class indices, or an image file's path.

        Raises:
            UserError: something else; a file that cannot be read.
        """
        if isinstance(value, str | Path):
            return open_map(Path(value))[None]
        if not isinstance(value, Tensor) or value.ndim != 2 or value.is_floating_point():
            raise UserError(f"a map is a file's path, or a tensor (H, W) of whole class indices, got {described(value)}")
        return value[None]

    def check(self, facts: DataFacts) -> None:
        """See `Conditioner.check`."""
        if MAPS in facts.has:
            check_names("semantic_map", self.config.names, facts.map_names)
