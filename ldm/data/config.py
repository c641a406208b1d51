"""Which pictures a run trains on, and how they are brought to one size."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ldm.core.errors import UserError
from ldm.core.settings import Size, as_config, height_width
from ldm.data.buckets import Buckets, sizes_of

Fit = Literal["centre", "random", "pad", "stretch"]
"""How a picture of another shape is brought to a size: its centre or a random part is kept, or the whole, padded or stretched."""

Depth = Literal[8, 16]
"""Bits a channel of pictures."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of a training picture, with its mask and map; the same for one (seed, epoch, sample).

    Attributes:
        flip: chance of a mirror image. Wrong where text or arrows would turn.
        shift: most that it is moved by, as a share of the side, each way.
        zoom: smallest and largest factor; above 1 shows a part, below 1 leaves a border in the background's colour.
        rotate: most degrees, either way.
        brightness, contrast, saturation: most that they change by, as a share, either way; RGB only.
        hue: most that it turns by, as a share of the circle, at most 0.5; RGB only.
    """

    flip: float = 0.0
    shift: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    rotate: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "shift", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name} must be from 0 to 1, got {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5 or not 0 <= self.rotate <= 180:
            raise UserError(f"augment.hue must be from 0 to 0.5 and rotate from 0 to 180, got {self.hue}, {self.rotate}")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise UserError(f"augment.zoom must be two positive factors, the smaller first, got {self.zoom}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """
    Attributes:
        train: `emoji-128`; a folder of pictures; a folder that scripts/prepare_data.py made; a .tar shard or a brace range of them,
            `shard-{000000..000009}.tar`; or, if allow_remote, URLs or `pipe:` commands of such shards.
        val: held-out pictures, likewise; the same as train = the held-out split that is in it; null = none.
        size: [height, width] of the images in pixels, or the side of a square.
        buckets: several sizes in place of that one, of which each picture takes the one of the nearest shape; `size` is then what is drawn
            where no other is asked for. None = one size.
        fit: how a picture of another shape is brought to that size. `centre` scales it until it covers the size and keeps its centre;
            `random` keeps another part in each epoch; `pad` scales it until it fits in and lays it on the background; `stretch` scales its
            sides apart from each other.
        channels: 1 = grey, 3 = RGB, else as many as the pictures (.npy arrays of (H, W, C)) have.
        background: RGB, 0 to 255, that transparent pictures are laid on.
        depth: bits a channel that are kept of picture files, and that files of drawn pictures have: 8, or 16 for grey pictures and arrays.
        levels: which numbers are black and white in pictures and arrays of more than 8 bits a channel; null = 0 and the largest possible,
            for floats 0 and 1 (in .npy arrays -1 and 1), beyond which they are refused.
        map_void: class that means "unknown" in maps, as 255 often does; null = none does.
        augment: random changes of training pictures.
        cache_latents: stage two encodes `cache_views` augmented views of each picture once; false = at every use.
        cache_views: see cache_latents.
        max_lost: share of records that may be unreadable before the run stops.
        allow_remote: whether train and val may name URLs and commands.
        remote_cache: GiB of this disk that what was read of prepared sets at URLs may take.
        workers: processes that read ahead of training, pictures or cached latents; 0 = none, for small pictures.
    """

    train: str
    val: str | None = None
    size: Size
    buckets: Buckets | None = None
    fit: Fit = "centre"
    channels: int = 3
    background: tuple[int, int, int] = (255, 255, 255)
    depth: Depth = 8
    levels: tuple[float, float] | None = None
    map_void: int | None = None
    augment: Augment = field(default_factory=Augment)
    cache_latents: bool = True
    cache_views: int = 1
    max_lost: float = 0.01
    allow_remote: bool = False
    remote_cache: float = 20.0
    workers: int = 0

    def __post_init__(self) -> None:
        if min(height_width(self.size)) < 1:
            raise UserError(f"data.size must be at least 1 pixel a side, got {as_config(self.size)}")
        for name in ("channels", "cache_views"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.remote_cache < math.inf:
            raise UserError(f"data.remote_cache must be at least 0 GiB, got {self.remote_cache}")
        if not 0 <= self.max_lost <= 1 or self.workers < 0:
            raise UserError(f"data.max_lost must be from 0 to 1 and data.workers at least 0, got {self.max_lost}, {self.workers}")
        if not all(0 <= level <= 255 for level in self.background):
            raise UserError(f"data.background must be three levels from 0 to 255, got {self.background}")
        if self.levels is not None and not -math.inf < self.levels[0] < self.levels[1] < math.inf:
            raise UserError(f"data.levels must be two numbers, black before white, as in [0, 4095], got {list(self.levels)}")
        if self.map_void is not None and self.map_void < 0:
            raise UserError(f"data.map_void must be a class of the maps, as 255, got {self.map_void}")

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of all images that are trained on."""
        return sizes_of(self.size, self.buckets)

    @property
    def largest(self) -> tuple[int, int]:
        """(height, width) of those with the most pixels."""
        return max(self.sizes, key=math.prod)
