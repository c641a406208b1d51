"""`python load.py` of the models that no pipeline of diffusers runs, with the VQ first stages of their published versions."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from interop_rows import ROWS, VQ, write_row
from PIL import Image
from test_diffusers import CPU, GUIDANCE, TOLERANCE, noise, our_image
from torch import Tensor
from torch.testing import assert_close

from ldm.checkpoints.model import load_latent_diffusion
from ldm.conditioning.inpaint_mask import MaskedImages
from ldm.conditioning.inputs import ConditionInputs
from ldm.interop.diffusers.export import export_diffusers
from ldm.interop.ours import Ours

pytestmark = pytest.mark.parity
SIDE = 32  # of the images, in pixels
VQ_F4 = replace(VQ, multipliers=(1, 1, 1), num_codes=8192)  # as many codes as published: with few, decoding would hide differences
STAGES = {
    "class": VQ_F4,
    "map": replace(VQ_F4, middle_attention=False),
    "boxes": VQ_F4,
    "inpainting": replace(VQ_F4, middle_attention=False),
    "text": VQ_F4,
}
AS_PROGRAMS = ("class", "inpainting", "text")  # a start takes seconds, so the others run in this process


@pytest.fixture(scope="module")
def exported(module_folder: Path) -> Callable[[str], tuple[Path, Path]]:
    """By name: a model of ours, and its parts for diffusers."""

    def make(name: str) -> tuple[Path, Path]:
        ours, folder = module_folder / name, module_folder / f"{name}-diffusers"
        if not ours.exists():
            write_row(ours, replace(ROWS[name], first_stage=STAGES[name], scale=1.0), SIDE)
            export_diffusers(Ours.open(ours), folder)
        return ours, folder

    return make


def example(name: str, ours: Path) -> ConditionInputs:
    """The program's default condition as our inputs."""
    hole, image = torch.ones(1, 1, SIDE, SIDE), torch.full((1, 3, SIDE, SIDE), -1.0)
    inputs = {
        "class": {"class": torch.tensor([0])},
        "map": {"map": torch.zeros(1, SIDE, SIDE, dtype=torch.long)},
        "boxes": {"boxes": torch.tensor([[[0, 0.2, 0.2, 0.8, 0.8]]])},
        "text": {"text": ("a picture",)},
    }
    if name == "inpainting":
        latent = load_latent_diffusion(ours, CPU).first_stage.encode(image).detach()
        return ConditionInputs(count=1, values={"mask": MaskedImages(hole, latent)})
    return ConditionInputs(count=1, values=inputs[name])


def written(folder: Path) -> Tensor:
    """sample.png, (1, 3, SIDE, SIDE) in [0, 1]."""
    with Image.open(folder / "sample.png") as file:
        image = torch.from_numpy(np.array(file)).permute(2, 0, 1)[None] / 255
    assert image.shape == (1, 3, SIDE, SIDE) and image.std() > 0.02, "the image is flat"
    return image


@pytest.mark.parametrize("name", STAGES)
def test_it_writes_our_image_of_the_same_noise(name: str, exported, monkeypatch: pytest.MonkeyPatch):
    """Run like `python load.py`, except for the noise."""
    ours, folder = exported(name)
    x = noise(ours)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape: x.reshape(shape))
        patch.setattr(sys, "argv", ["load.py"])
        runpy.run_path(str(folder / "load.py"), run_name="__main__")
    inputs = example(name, ours)
    if name == "inpainting":  # guidance does not apply to a mask alone
        mine = our_image(ours, inputs, inputs, 1.0)
    else:
        mine, unguided = (our_image(ours, inputs, guidance=guidance) for guidance in (GUIDANCE, 1.0))
        assert (mine - unguided).abs().max() > 0.05, "the image does not depend on the condition"
    assert_close(written(folder), (mine / 2 + 0.5).clamp(0, 1), rtol=0, atol=TOLERANCE + 0.5 / 255)


@pytest.mark.parametrize("name", AS_PROGRAMS)
def test_it_runs_as_a_program(name: str, exported, tmp_path: Path):
    """In another working directory, in a process of its own."""
    folder = exported(name)[1]
    (folder / "sample.png").unlink(missing_ok=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, str(folder / "load.py")], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote {folder / 'sample.png'}\n"
    written(folder)


def test_its_flags_are_read_and_others_refused(exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    program = str(exported("text")[1] / "load.py")
    images = []
    for prompt in ("a red heart", "a tree"):
        torch.manual_seed(0)
        out = tmp_path / f"{prompt}.png"
        monkeypatch.setattr(sys, "argv", ["load.py", "--prompt", prompt, "--steps", "2", "--out", str(out)])
        runpy.run_path(program, run_name="__main__")
        assert capsys.readouterr().out == f"wrote {out}\n"
        images.append(out.read_bytes())
    assert images[0] != images[1]
    monkeypatch.setattr(sys, "argv", ["load.py", "--label", "3"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(program, run_name="__main__")
