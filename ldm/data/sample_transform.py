"""One record to one sample: decoded, brought to size, augmented, with a caption chosen."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.random import generator
from ldm.core.settings import height_width
from ldm.data.batch import Sample
from ldm.data.config import DataConfig
from ldm.data.formats import HEAD, format_of
from ldm.data.images import decode_array, decode_deep, decode_image, decode_map, decode_mask, image_levels, image_tensor
from ldm.data.record import Record
from ldm.data.transforms import UNKNOWN, Placement, augmented, fitted, fitted_boxes, fitted_levels, fitted_map

Split = Literal["train", "val"]
READ = (
    "size",
    "buckets",
    "fit",
    "channels",
    "background",
    "depth",
    "levels",
    "map_void",
    "augment",
)  # what of the config decides how a record looks
BLACK = -1.0  # what arrays are padded with: theirs is no colour


@dataclass(frozen=True, kw_only=True)
class SampleTransform:
    """How the records of one set become samples.

    Attributes:
        config, split, seed: of the set; held-out samples never change.
        label_names, map_names: in the order of their indices.
        has_masks, has_maps, has_boxes: whether every sample gets one, an empty one where its record has none.
    """

    config: DataConfig
    split: Split
    seed: int
    label_names: tuple[str, ...]
    map_names: tuple[str, ...]
    has_masks: bool
    has_maps: bool
    has_boxes: bool = False

    @property
    def digest(self) -> str:
        """Of all that a sample depends on besides its record."""
        how = {name: value for name, value in asdict(self.config).items() if name in READ}
        if how["fit"] == "centre":  # as before there were others, so that what was made of these samples stays
            del how["fit"]
        if how["depth"] == 8:  # likewise
            del how["depth"]
        if how["buckets"] is None:
            del how["buckets"]
        return hashlib.sha256(repr((sorted(how.items()), self.split, self.seed)).encode()).hexdigest()

    def __call__(self, record: Record, epoch: int, index: int, size: tuple[int, int] | None = None) -> Sample:
        """The record as it is in an epoch; what is random depends on (seed, epoch, index) only.

        Args:
            record, epoch, index: see above.
            size: (height, width) of the image; None = the config's.

        Raises:
            UserError: it cannot be decoded, or does not fit the config.
        """
        image, place, ground = self._image(record, epoch, index, size or height_width(self.config.size))
        mask, indices, boxes = self._mask(record, place), self._map(record, place), self._boxes(record, place)
        caption = record.captions[0] if record.captions else ""
        if self.split == "train":
            image, mask, indices, boxes = augmented(
                image, mask, indices, boxes, self.config.augment, ground, generator(self.seed, "augment", epoch, index)
            )
            caption = self.caption_of(record.captions, epoch, index)
        return Sample(
            name=record.name,
            image=image,
            caption=caption,
            label=self._label(record),
            mask=mask,
            map=indices,
            captions=record.captions,
            boxes=boxes,
            attributes=record.attributes,
        )

    def caption_of(self, captions: tuple[str, ...], epoch: int, index: int) -> str:
        """The caption that a training sample has in an epoch; "" if there is none."""
        if not captions:
            return ""
        return captions[int(torch.randint(len(captions), (), generator=generator(self.seed, "caption", epoch, index)))]

    def _image(self, record: Record, epoch: int, index: int, size: tuple[int, int]) -> tuple[Tensor, Placement, Tensor | None]:
        """The picture, where it lies, and the colour (C, 1, 1) around it; None if it is opaque and fills the image."""
        channels, background = self.config.channels, self.config.background
        is_array = format_of(record.image[:HEAD], record.suffix) == "NPY"
        if not is_array and self.config.depth == 8:
            picture = decode_image(record.image, record.name, suffix=record.suffix, levels=self.config.levels)
            is_opaque, levels = picture.mode in ("L", "RGB"), image_levels(picture, channels, background, record.name)
            del picture  # a large one needs its memory for the next step
            ground = image_tensor(Image.new("RGB", (1, 1), background), channels, background, record.name)
            place = self._placed(levels, epoch, index, size)
            return fitted_levels(levels, place, ground), place, None if is_opaque and self.config.fit != "pad" else ground
        if is_array:
            image = decode_array(record.image, record.name, levels=self.config.levels)
        else:
            image = decode_deep(record.image, record.name, suffix=record.suffix, levels=self.config.levels)
        if len(image) != channels:
            raise UserError(f"{record.name}: has {len(image)} channels, data.channels is {channels}")
        place, black = self._placed(image, epoch, index, size), torch.full((channels, 1, 1), BLACK)
        return fitted(image, place, black), place, black if self.config.fit == "pad" else None

    def _placed(self, stored: Tensor, epoch: int, index: int, size: tuple[int, int]) -> Placement:
        """Where a picture (..., H, W) comes to lie."""
        draw = generator(self.seed, "fit", epoch, index) if self.config.fit == "random" else None
        return Placement.of(stored.shape[-2:], size, self.config.fit, draw)

    def _mask(self, record: Record, place: Placement) -> Tensor | None:
        if not self.has_masks:
            return None
        if record.mask is None:
            return torch.zeros(1, *place.size)
        mask = decode_mask(record.mask, f"mask of {record.name}")
        _check_size("mask", mask, place.stored, record.name)
        return (fitted(mask, place) >= 0.5).float()

    def _map(self, record: Record, place: Placement) -> Tensor | None:
        if not self.has_maps:
            return None
        if record.map is None:
            return torch.full(place.size, UNKNOWN, dtype=torch.int64)
        indices = decode_map(record.map, f"map of {record.name}")
        _check_size("map", indices, place.stored, record.name)
        classes = fitted_map(indices, place)
        return classes if self.config.map_void is None else classes.where(classes != self.config.map_void, UNKNOWN)

    def _boxes(self, record: Record, place: Placement) -> Tensor | None:
        if not self.has_boxes:
            return None
        return fitted_boxes(torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 5), place)

    def _label(self, record: Record) -> int:
        if record.label is None:
            return -1
        if isinstance(record.label, int) and not self.label_names:
            return record.label
        if str(record.label) not in self.label_names:  # beside names a number is a name
            known = ", ".join(self.label_names) or "none"
            raise UserError(f"{record.name}: label {record.label!r} is not among the set's labels ({known})")
        return self.label_names.index(str(record.label))


def _check_size(what: str, given: Tensor, stored: tuple[int, int], key: str) -> None:
    if tuple(given.shape[-2:]) != stored:
        (height, width), (rows, columns) = given.shape[-2:], stored
        raise UserError(f"{key}: its {what} is {width}x{height}, the picture {columns}x{rows}; they must be of one size")
