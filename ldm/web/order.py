"""What a browser asks to have drawn, and the command line that draws it: the page and the scripts run the same code."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ldm.core.errors import UserError, unknown
from ldm.core.settings import height_width
from ldm.web.models import Description

MAX_SIDE = 2048  # of drawn pictures, in pixels
MAX_PIXELS = 1 << 24  # of all pictures of a call
MAX_ENLARGED = 1 << 20  # pixels of a picture to enlarge

Text = Annotated[str, Field(max_length=4000)]
Short = Annotated[str, Field(max_length=200)]
Files = Annotated[dict[Short, Short], Field(max_length=16)]
IN_FILES = ("class_map", "boxes")  # kinds of controls whose values are files


class Order(BaseModel):
    """
    Attributes:
        mode: which script draws, see `Description.modes`.
        cond: values by the names of the model's controls, as on a command line.
        files: uploads, by the names of controls, and `image` and `mask`.
        negative_prompt, sampler, steps, guidance, height, width, seed, num_images, strength: flags of the scripts; None = not given.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    mode: Literal["draw", "inpaint", "img2img", "upscale"]
    model: Annotated[str, Field(max_length=1000)]
    cond: Annotated[dict[Short, Text], Field(max_length=64)] = {}
    files: Files = {}
    negative_prompt: Text = ""
    sampler: Short | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    height: Annotated[int, Field(ge=8, le=MAX_SIDE)] | None = None
    width: Annotated[int, Field(ge=8, le=MAX_SIDE)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    num_images: Annotated[int, Field(ge=1, le=16)] = 4
    strength: Annotated[float, Field(gt=0, le=1)] | None = None

    def check(self, model: Description) -> None:
        """Refuses, by UserError, what the model does not take, and what would not fit in memory."""
        if self.mode not in model.modes:
            raise UserError(f"model {model.name} is not for {self.mode}; it does: {', '.join(model.modes) or 'nothing here'}")
        own = height_width(model.spec.size)
        pixels = (self.height or own[0]) * (self.width or own[1]) * self.num_images
        if self.mode != "upscale" and pixels > MAX_PIXELS:
            raise UserError(f"{pixels / 1e6:.0f} million pixels at once are too many for the page: fewer or smaller images")
        for name in (*self.cond, *self.files):
            if name not in model.controls and name not in ("image", "mask"):
                raise unknown("control", name, model.controls)
        for name in self.cond:
            if name not in model.controls or model.controls[name].kind in IN_FILES:
                raise UserError(f"{name} is given as a file, not as a text")
        for slot in SLOTS[self.mode]:
            if slot not in self.files:
                raise UserError(WANTED[slot])
        if self.mode == "img2img" and self.strength is None:
            raise UserError("img2img needs a strength, above 0 to 1")


SLOTS = {"draw": (), "inpaint": ("image", "mask"), "img2img": ("image",), "upscale": ("image",)}
WANTED = {"image": "choose a picture first", "mask": "paint over what is to be drawn anew first"}


class Command:
    """A script and its flags.

    Attributes:
        script: name of the file in scripts/, without `.py`.
        flags: (flag, value), in order; `--out` is the last.
    """

    def __init__(self, script: str, flags: list[tuple[str, str]]) -> None:
        self.script, self.flags = script, flags

    @property
    def arguments(self) -> list[str]:
        """For the script's parser. A value that looks like a flag is joined to its own."""
        return [word for flag, value in self.flags for word in ((f"{flag}={value}",) if value.startswith(("-", "~")) else (flag, value))]

    @property
    def line(self) -> str:
        """For a shell, from the folder that the page was started in; its pictures come to lie where the script puts them."""
        return shlex.join(["python", f"scripts/{self.script}.py", *Command(self.script, self.flags[:-1]).arguments])


def command_of(order: Order, model: Description, files: Mapping[str, Path], out: Path) -> Command:
    """The command that draws exactly what the order asks for.

    Args:
        files: where the order's files lie, by the same names.
        out: the folder for the pictures.
    """
    texts = model.of_kind("text")
    flags: list[tuple[str, str]] = [("--model", model.name)]
    script = {"draw": "sample"}.get(order.mode, order.mode)
    cond = {name: value for name, value in order.cond.items() if value.strip()}
    if order.mode == "draw":
        given = {name: str(files[name]) for name in order.files if name in model.controls}
        if len(texts) == 1 and cond.keys() == set(texts) and not given:
            script = "txt2img"
            flags.append(("--prompt", cond[texts[0]]))
        else:
            flags += [("--cond", f"{name}={value}") for name, value in {**cond, **given}.items()]
    else:
        flags += [(f"--{slot}", str(files[slot])) for slot in SLOTS[order.mode]]
        if order.mode != "upscale" and texts and (prompt := cond.get(texts[0])):
            flags.append(("--prompt", prompt))
    if order.mode == "img2img":
        flags.append(("--strength", repr(order.strength)))
    if order.negative_prompt.strip() and order.mode != "upscale" and texts:
        flags.append(("--negative-prompt", order.negative_prompt))
    sizes = ("height", "width") if order.mode != "upscale" else ()
    for name in ("sampler", "steps", "guidance", *sizes):
        value = getattr(order, name)
        if value is not None:
            flags.append((f"--{name}", repr(value) if isinstance(value, float) else str(value)))
    flags += [("--num-images", str(order.num_images)), ("--seed", str(order.seed)), ("--out", out.as_posix())]
    return Command(script, flags)
