"""The checkpoint that ships with the repository, checkpoints/emoji."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm import LatentDiffusion
from ldm.data.config import DataConfig
from ldm.data.open import open_dataset
from ldm.pipelines.edit import inpaint
from ldm.pipelines.latent_diffusion import SamplingOptions

FOLDER = Path(__file__).parents[2] / "checkpoints" / "emoji"
REFERENCE = Path(__file__).parent / "emoji-seed-7.png"
MIB = 1 << 20


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return LatentDiffusion.from_pretrained(FOLDER, device="cpu")


def test_it_is_small_enough_to_ship() -> None:
    sizes = [file.stat().st_size for file in FOLDER.iterdir()]
    assert max(sizes) <= 16 * MIB
    assert sum(sizes) <= 48_000_000


def test_it_takes_all_four_conditions(model: LatentDiffusion) -> None:
    kinds = {config.kind for config in model.spec.conditioning.values()}
    assert kinds == {"bert_pretrained", "class_label", "inpaint_mask", "semantic_map"}


def test_held_out_pictures_are_reconstructed_to_33_db(model: LatentDiffusion) -> None:
    data = open_dataset(DataConfig(train="emoji-128", val="emoji-128", size=model.spec.size), "val", 0)
    images = torch.stack([sample.image for sample in data.some(None)])
    with torch.no_grad():
        again = torch.cat([model.first_stage.decode(model.first_stage.encode(part)) for part in images.split(31)]).clamp(-1, 1)
    psnr = 10 * torch.log10(4 / (again - images).square().flatten(1).mean(1))
    assert len(psnr) == 155
    assert psnr.mean() >= 33


def test_a_red_heart_is_red(model: LatentDiffusion) -> None:
    for image in model.text_to_image("a red heart", num_images=4, seed=0):
        pixels = np.asarray(image).reshape(-1, 3).astype(float)
        coloured = pixels[pixels.min(1) < 200]
        assert 0.15 < len(coloured) / len(pixels) < 0.9
        assert coloured[:, 0].mean() > 1.8 * max(coloured[:, 1].mean(), coloured[:, 2].mean())


def test_its_images_at_a_seed_stay_as_they_were(model: LatentDiffusion) -> None:
    """Text, class and inpainting, left to right; with earlier releases' noise, as drawn before checkpoints had a format number."""
    options: SamplingOptions = {"steps": 8, "seed": 7}
    drawn = [*model.text_to_image("a smiling cat", **options), *model.sample(label="food-drink", **options)]
    mask = Image.new("L", drawn[0].size)
    mask.paste(255, (16, 32, 48, 56))
    drawn += inpaint(model, drawn[0], mask, model.sampling(**options), "a smiling cat")
    now = np.concatenate([np.asarray(image) for image in drawn], axis=1)
    assert np.abs(now.astype(int) - np.asarray(Image.open(REFERENCE))).max() <= 1
