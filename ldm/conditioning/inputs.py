"""What is told, as values: before any network has seen it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ConditionInputs:
    """Everything that conditioners may read, for B pictures. None = nothing is told by it to any picture.

    "Nothing" is a value of each input, so a row can be dropped by changing values: caption "", label -1, mask all ones over the latent
    of a picture that is all hole, class "unknown" all over the map, no boxes, a grey small picture.

    Attributes:
        count: B.
        captions: B texts; "" = nothing.
        labels: (B,) int64; -1 = nothing.
        masks: (B, 1, H, W) in pixels; above 0 = to be painted.
        masked_latents: (B, C, h, w), normalised latents of the pictures with a hole where they are to be painted, see `InpaintMaskConfig`.
        hole_latent: (C, h, w), the normalised latent of a picture that is all hole; needed by a model with `inpaint_mask`.
        maps: (B, H, W) int64 in [0, num_classes); -1 or num_classes = unknown.
        boxes: (B, K, 5) float: class index, then left, top, right, bottom as shares of the picture from 0 to 1; class -1 = no box.
        low_resolution: (B, C, H, W) in [-1, 1], of any size.
    """

    count: int
    captions: tuple[str, ...] | None = None
    labels: Tensor | None = None
    masks: Tensor | None = None
    masked_latents: Tensor | None = None
    hole_latent: Tensor | None = None
    maps: Tensor | None = None
    boxes: Tensor | None = None
    low_resolution: Tensor | None = None

    def __post_init__(self) -> None:
        for name in _PER_ROW:
            value = getattr(self, name)
            assert value is None or len(value) == self.count, f"{len(value)} {name} for {self.count} pictures"

    def part(self, start: int, stop: int) -> ConditionInputs:
        """Rows start to stop."""
        told = {name: getattr(self, name) for name in _PER_ROW}
        parts = {name: value if value is None else value[start:stop] for name, value in told.items()}
        return ConditionInputs(count=len(range(self.count)[start:stop]), hole_latent=self.hole_latent, **parts)


_PER_ROW = tuple(field.name for field in fields(ConditionInputs) if field.name not in ("count", "hole_latent"))
