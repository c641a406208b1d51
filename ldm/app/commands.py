"""The commands of `ldm`, each of which is a script of a checkout, and how texts name them."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """
    Attributes:
        script: its name in `scripts/` and in `ldm.app.arguments`.
        does: in a few words.
        module: its command line; None = ldm.app.arguments.SCRIPT.
    """

    script: str
    does: str
    module: str | None = None


COMMANDS = {
    "txt2img": Command("txt2img", "pictures of a text"),
    "sample": Command("sample", "pictures of a class, a map, boxes, attributes, or unconditional ones"),
    "inpaint": Command("inpaint", "part of a picture painted anew"),
    "img2img": Command("img2img", "a picture noised and denoised towards a prompt"),
    "upscale": Command("upscale", "a small picture drawn large"),
    "invert": Command("invert", "the noise of a picture, and what the model draws from it under another prompt"),
    "interpolate": Command("interpolate", "from one picture, prompt or seed to another"),
    "encode": Command("encode", "pictures to latents, a file each"),
    "decode": Command("decode", "latents to pictures"),
    "prepare": Command("prepare_data", "a folder of pictures to a data set"),
    "train-vae": Command("train_vae", "stage one: train an autoencoder"),
    "train-ldm": Command("train_ldm", "stage two: train a latent diffusion model"),
    "train-classifier": Command("train_classifier", "train a classifier, to guide a model by or to judge it by"),
    "evaluate": Command("evaluate", "measure a model: FID, KID, precision, reconstruction, ..."),
    "describe": Command("describe", "what a config costs before it runs: parameters, memory, operations"),
    "convert": Command("convert", "checkpoints of CompVis's code, Stable Diffusion and diffusers to ours, and back"),
    "app": Command("app", "a page in the browser: draw, paint maps, inpaint, watch runs", module="ldm.web.arguments"),
    "env": Command("env", "what this machine has: devices, kernels, memory, pretrained networks, packages"),
}
_BY_SCRIPT = {command.script: name for name, command in COMMANDS.items()}
_CALL = re.compile(r"(?P<torchrun>\btorchrun [^\n]*?)?(?P<python>\bpython )?\bscripts/(?P<script>\w+)\.py\b")


class Caller:
    """How the tool was called: by a script of a checkout, or by `ldm`. Texts then name commands as their reader can type them.

    Attributes:
        command: of `ldm`, empty while it has none; None where a script was called.
    """

    def __init__(self) -> None:
        self.command: str | None = None

    @property
    def prog(self) -> str | None:
        """The program's name in help; None = the script's own."""
        return None if self.command is None else f"ldm {self.command}".rstrip()

    def worded(self, text: str) -> str:
        """A text with `ldm txt2img` in place of `python scripts/txt2img.py`, if `ldm` was called; scripts that are no command stay."""
        return text if self.command is None else _CALL.sub(_as_command, text)


CALLER = Caller()


def _as_command(call: re.Match[str]) -> str:
    name = _BY_SCRIPT.get(call["script"])
    if name is None:
        return call[0]
    return f"{call['torchrun']}-m ldm {name}" if call["torchrun"] else f"ldm {name}"
