"""Generated pictures, a batch at a time: an evaluation keeps what it measured of them, and the files if wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ldm.core.distributed import ALONE, World
from ldm.core.errors import UserError
from ldm.core.files import Outputs
from ldm.core.ownership import fits, recorded_in
from ldm.evaluation.conditions import EvaluationConditions
from ldm.pipelines.canvas import to_pil
from ldm.pipelines.sampling import Progress, Sampling, shifted

FOLDER = "pictures"
COUNT = "saved_pictures"  # key of the JSON that says how many an evaluation left in FOLDER


def made(conditions: EvaluationConditions, how: Sampling, world: World = ALONE) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers of pictures, and these (B, C, H, W) in [-1, 1], not clipped, of one size; how.num_images in all, those of one size together.

    Picture i is made under condition i, of the size of picture i of the split. Each process draws its own, see `World.in_turn`.

    Raises:
        UserError: a picture that is not finite.
    """
    bar = Progress()
    batches = [
        (at_size, some[first : first + at_size.at_once])
        for size, some in conditions.source.by_size(range(how.num_images)).items()
        for at_size in [conditions.model.at_size(*size)]
        for first in range(0, len(some), at_size.at_once)
    ][world.rank :: world.size]
    for place, (model, numbers) in enumerate(batches):
        cond = [conditions.condition(number) for number in numbers]
        uncond = cond if how.guidance == 1 else [conditions.uncond(number) for number in numbers]
        on_step = shifted(bar, place, len(batches)) if world.is_first else None
        now = replace(how, num_images=len(cond), on_step=on_step)
        images = model.render(cond, uncond, now, numbers=numbers)
        if not images.isfinite().all():
            raise UserError("some of the pictures came out as NaN or infinity: train the model longer, or take another sampler")
        yield numbers, images


@dataclass(frozen=True)
class SavedImages:
    """`OUT/pictures/00000.png` and on, nothing else, so that other tools can be pointed at it.

    Attributes:
        out: the evaluation's folder.
    """

    out: Path

    @property
    def path(self) -> Path:
        return self.out / FOLDER

    def check(self) -> None:
        """Refuses, before any work, a folder in which there is more than what the last evaluation left, or something changed since.

        Raises:
            UserError: so it is.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UserError(f"{self.path} is a file; the pictures need a folder of that name: choose another --out")
        other = sorted({path.name for path in self.path.iterdir()} - self._earlier())
        if other:
            raise UserError(
                f"{self.path} holds {other[0]}, which is of no finished evaluation, or was changed since: move it, or choose another --out"
            )

    def clear(self) -> None:
        """Removes what the last evaluation left, and the folder if nothing else is in it."""
        for name in self._earlier():
            (self.path / name).unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def add(self, images: Tensor, numbers: Sequence[int]) -> None:
        """Writes pictures (B, C, H, W) with these numbers."""
        self.path.mkdir(parents=True, exist_ok=True)
        for number, image in zip(numbers, to_pil(images), strict=True):
            image.save(self.path / _name(number))

    def finish(self, count: int) -> None:
        """Records so many pictures as this tool's."""
        Outputs(self.out).record(f"{FOLDER}/{_name(number)}" for number in range(count))

    def _earlier(self) -> set[str]:
        """What the last evaluation left, and nobody changed since."""
        listed = {Path(name): marks for name, marks in recorded_in(self.out).items()}
        return {name.name for name, marks in listed.items() if name.parent == Path(FOLDER) and fits(self.out / name, marks)}


def _name(number: int) -> str:
    return f"{number:05d}.png"
