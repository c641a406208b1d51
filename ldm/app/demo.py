"""`scripts/demo.py`: the whole journey in minutes, as one page of commands and what they made."""

from __future__ import annotations

import argparse
import html
import io
import itertools
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image, ImageDraw

from ldm.core.errors import UserError
from ldm.core.files import Outputs
from ldm.data.config import DataConfig
from ldm.data.open import open_dataset
from ldm.pipelines.canvas import to_pil

PROMPTS = ("a red heart", "a smiling yellow face", "dog face", "a house", "a green tree", "a sad crying face")
SIMPLE = (
    "a red heart",
    "a smiling yellow face",
    "a green tree",
    "a blue button",
    "an orange",
    "a purple heart",
    "a brown bear",
    "a black square",
)  # after minutes of training a model knows colours, and little of shapes
VAE_STEPS, LDM_STEPS = 300, 400
INPUTS = ("inputs/picture.png", "inputs/mask.png")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A command on the page: what it shows, and the pictures it leaves, each with a caption. Scenes of one title are one section."""

    title: str
    text: str
    command: tuple[str, ...]
    pictures: tuple[tuple[Path, str], ...] = field(default=())


def main(options: argparse.Namespace) -> None:
    """Runs all scenes and writes the page."""
    out: Path = options.out
    outputs = Outputs(out)
    outputs.check("index.html", *INPUTS)
    outputs.write(_inputs())
    runs = next(folder for number in itertools.count(1) if not (folder := out / "runs" / str(number)).exists())  # the demos before stay

    device = () if options.device == "auto" else ("--device", options.device)
    scenes = [replace(scene, command=(*scene.command, *device)) for scene in _scenes(out, runs)]
    seconds = []
    for number, scene in enumerate(scenes, 1):
        print(f"\n[{number}/{len(scenes)}] {scene.title}\n$ {shlex.join(('python', *scene.command))}", flush=True)
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *scene.command], check=False)
        if done.returncode:
            raise UserError(f"the demo stopped: the command above ended with exit code {done.returncode}")
        seconds.append(time.perf_counter() - started)
    outputs.write({"index.html": _page(scenes, seconds, out)})
    print(f"\nall of it on one page: {(out / 'index.html').resolve()}")


def _inputs() -> dict[str, bytes]:
    """A held-out picture and a mask over its middle, as a user would have them."""
    held_out = open_dataset(DataConfig(train="emoji-128", val="emoji-128", size=128), "val", 0)
    picture = to_pil(next(held_out.some(1)).image[None])[0]
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).ellipse((64, 30, 118, 100), fill=255)
    files = {}
    for name, image in zip(INPUTS, (picture, mask), strict=True):
        png = io.BytesIO()
        image.save(png, "PNG")
        files[name] = png.getvalue()
    return files


def _scenes(out: Path, runs: Path) -> list[Scene]:
    grid = out / "txt2img"
    drawn = [
        Scene(
            title="Text to image",
            text="The shipped model, 20 steps, four pictures each.",
            command=("scripts/txt2img.py", "--prompt", prompt, "--out", str(grid / prompt.replace(" ", "-"))),
            pictures=((grid / prompt.replace(" ", "-") / "grid.png", prompt),),
        )
        for prompt in PROMPTS
    ]
    inputs, painted = out / "inputs", out / "inpaint"
    vae, ldm = runs / "vae", runs / "ldm"
    return [
        *drawn,
        Scene(
            title="Inpainting",
            text="White in the mask is painted; every other pixel comes back bit-identical. Four paintings.",
            command=(
                "scripts/inpaint.py", "--image", str(inputs / "picture.png"), "--mask", str(inputs / "mask.png"), "--out", str(painted),
            ),
            pictures=((inputs / "picture.png", "picture"), (inputs / "mask.png", "mask"), (painted / "grid.png", "paintings")),
        ),
        Scene(
            title="Stage one from scratch",
            text=f"A KL autoencoder after {VAE_STEPS} steps, about two minutes, without its adversary, which comes later in a real run: "
            "held-out pictures above, their reconstructions below.",
            command=(
                "scripts/train_vae.py", "--run-dir", str(vae), f"train.steps={VAE_STEPS}", f"train.sample_every={VAE_STEPS}",
                "loss.disc_factor=0",
            ),
            pictures=((vae / "samples" / f"step-{VAE_STEPS:08d}.png", "reconstructions"), (vae / "curves.png", "curves")),
        ),
        Scene(
            title="Stage two from scratch",
            text=f"A text-to-image model on that autoencoder's latents after {LDM_STEPS} steps. "
            "It has seen each picture a few times only: shapes and colours begin to show. The shipped model was trained for hours.",
            command=(
                "scripts/train_ldm.py", "--run-dir", str(ldm), f"first_stage.checkpoint={vae / 'checkpoint'}", "data.cache_views=1",
                f"train.steps={LDM_STEPS}", f"train.sample_every={LDM_STEPS}", "train.optimizer.warmup_steps=50",
                f"prompts=[{', '.join(SIMPLE)}]",
            ),
            pictures=((ldm / "samples" / f"step-{LDM_STEPS:08d}.png", "samples"), (ldm / "curves.png", "curves")),
        ),
    ]  # fmt: skip


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { margin-bottom: .2rem; } h2 { margin: 2.2rem 0 .3rem; font-size: 1.2rem; }
pre { background: #f4f4f4; padding: .6rem .8rem; border-radius: 6px; white-space: pre-wrap; font-size: .85rem; }
figure { display: inline-block; margin: .3rem 1rem .3rem 0; vertical-align: top; max-width: 100%; }
figcaption { color: #666; font-size: .85rem; } img { max-width: 100%; min-height: 128px; image-rendering: auto; border: 1px solid #eee; }
"""


def _page(scenes: Sequence[Scene], seconds: Sequence[float], out: Path) -> str:
    sections = []
    title = ""
    for scene, taken in zip(scenes, seconds, strict=True):
        if scene.title != title:
            title = scene.title
            sections.append(f"<h2>{html.escape(title)}</h2>\n<p>{html.escape(scene.text)}</p>")
        figures = "".join(
            f'<figure><img src="{html.escape(str(path.relative_to(out)))}" alt="{html.escape(caption)}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for path, caption in scene.pictures
        )
        command = html.escape(shlex.join(("python", *scene.command)))
        sections.append(f"<pre>{command}</pre>\n{figures}\n<p><small>{taken:.0f} s</small></p>")
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>ldm: demo</title><style>{STYLE}</style>\n'
        "<h1>Latent diffusion, from pictures to pictures</h1>\n"
        f"<p>Everything below was made on this machine, in {sum(seconds) / 60:.1f} minutes, by the commands shown.</p>\n"
        + "\n".join(sections)
        + "\n</html>\n"
    )
