"""Both stages on arrays of two channels of 16 bits, and on grey pictures of 16 bits, from the files to what is drawn and measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import PIXELS, arguments

from ldm import LatentDiffusion
from ldm.app.arguments import evaluate, sample, train_ldm, train_vae
from ldm.app.finetuning import completed
from ldm.app.train_ldm import TrainLDM
from ldm.checkpoints.model import load_first_stage, read_spec
from ldm.config.loader import load
from ldm.core.errors import UserError
from ldm.diffusion.bound import PIXEL_LEVELS
from ldm.evaluation.conditions import EvaluationConditions
from ldm.evaluation.dataset import Preprocessing, training_images
from ldm.evaluation.likelihood import LikelihoodConfig, bits_per_dim
from ldm.pipelines.canvas import to_pil
from ldm.pipelines.numbers import as_numbers

STEPS = ["data.size=16", "data.depth=16", "train.steps=2"]


def fields(count: int, channels: int) -> np.ndarray:
    """(count, 16, 16, channels) uint16 over the whole range."""
    return np.random.default_rng(0).integers(0, 2**16, (count, 16, 16, channels), dtype=np.uint16)


def write(folder: Path, channels: int) -> Path:
    for number, field in enumerate(fields(6, channels)):
        path = folder / ("even" if number % 2 else "odd") / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        if channels == 1:
            Image.fromarray(field[..., 0]).save(path.with_suffix(".png"))
        else:
            np.save(path, field)
    return folder


@pytest.fixture(scope="module", params=[2, 1])
def trained(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, int]:
    """`data`, `vae` and `ldm`, and the number of channels."""
    folder, channels = tmp_path_factory.mktemp("deep"), request.param
    data, keys = write(folder / "data", channels), [*STEPS, f"data.channels={channels}"]
    train_vae.main(arguments("vae", folder / "vae", data, *keys, f"first_stage.image_channels={channels}"))
    train_ldm.main(arguments("ldm", folder / "ldm", data, *keys, f"first_stage.checkpoint={folder / 'vae/checkpoint'}"))
    return folder, channels


def test_checkpoints_say_the_depth(trained: tuple[Path, int]) -> None:
    folder, channels = trained
    assert load_first_stage(folder / "vae/checkpoint", torch.device("cpu"))[1].depth == 16
    assert load_first_stage(folder / "ldm/checkpoint", torch.device("cpu"))[1].depth == 16
    assert read_spec(folder / "ldm/checkpoint").depth == 16
    known = completed({"init_from": str(folder / "ldm/checkpoint"), "denoiser": {}})
    assert known["data"] == {"size": 16, "buckets": None, "fit": "centre", "depth": 16, "channels": channels}


def test_what_is_drawn_has_16_bits(trained: tuple[Path, int], tmp_path: Path) -> None:
    folder, channels = trained
    checkpoint = folder / "ldm/checkpoint"
    sample.main(["--model", str(checkpoint), "--steps", "2", "--num-images", "2", "--label", "odd", "--out", str(tmp_path)])
    model = LatentDiffusion.from_pretrained(checkpoint, device="cpu")
    images = model.generate(model.inputs({}, label="odd"), model.sampling(steps=2, num_images=2))
    suffix = "png" if channels == 1 else "npy"
    assert json.loads((tmp_path / "parameters.json").read_text())["pictures"] == [f"000.{suffix}", f"001.{suffix}"]
    for number, wanted in enumerate(as_numbers(images, model.spec)):
        path = tmp_path / f"{number:03d}.{suffix}"
        if channels == 1:
            with Image.open(path) as picture:
                found, bits = np.array(picture)[..., None], path.read_bytes()[24]
                assert bits == 16 and "parameters" in picture.info
        else:
            found = np.load(path, allow_pickle=False)
        assert found.dtype.kind == "u" and found.shape == (16, 16, channels) and np.array_equal(found, wanted)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.mode == "RGB"
    sample.main(["--model", str(checkpoint), "--steps", "2", "--num-images", "1", "--label", "odd", "--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.glob("00*")) == [f"000.{suffix}"]  # one call's, as of 8 bits


def test_a_first_stage_of_two_channels_is_evaluated(trained: tuple[Path, int], tmp_path: Path) -> None:
    folder, channels = trained
    if channels == 1:
        return  # as any grey one, with Inception
    evaluate.main(
        ["vae", "--model", str(folder / "vae/checkpoint"), "--data", str(folder / "data"), "--split", "train", "--out", str(tmp_path)]
    )
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["preprocessing"]["depth"] == 16 and {"l1", "psnr"} <= set(found["metrics"]) and "rfid" not in found["metrics"]


def test_numbers_come_back_as_they_went_in(trained: tuple[Path, int]) -> None:
    folder, channels = trained
    spec = read_spec(folder / "ldm/checkpoint")
    stored = fields(3, channels)
    images = torch.from_numpy(stored.astype(np.float32)).permute(0, 3, 1, 2).mul(2 / 65535).sub(1)
    assert np.array_equal(as_numbers(images, spec), stored) and as_numbers(images, spec).dtype == np.uint16
    twelve = as_numbers(images, replace(spec, levels=(0, 4095)))
    assert twelve.dtype == np.uint16 and np.abs(twelve - stored / 65535 * 4095).max() < 0.501
    hounsfield = as_numbers(images, replace(spec, levels=(-1000, 3000)))
    assert hounsfield.dtype == np.float32 and np.abs(hounsfield - (stored / 65535 * 4000 - 1000)).max() < 0.01
    assert as_numbers(images, replace(spec, depth=8)).dtype == np.uint8
    assert to_pil(images)[0].mode == ("RGB" if channels == 2 else "L")
    with pytest.raises(UserError, match="config key 'data.depth'"):
        train_vae.main(arguments("vae", folder / "other", folder / "data", "data.depth=12"))


def test_bits_per_dim_of_16_bits_is_refused(trained: tuple[Path, int]) -> None:
    folder, channels = trained
    model = LatentDiffusion.from_pretrained(folder / "ldm/checkpoint", device="cpu")
    how = Preprocessing(size=16, channels=channels, background=(0, 0, 0), depth=16)
    source = training_images(str(folder / "data"), how)
    asked = LikelihoodConfig(count=2, steps=2, variance=None, probe="rademacher", first_noise=1e-3, tolerance=1e-3)
    with pytest.raises(UserError, match="on 256 levels, but this model was trained with data.depth=16: leave out --bits-per-dim"):
        bits_per_dim(EvaluationConditions(model=model, source=source), source, asked, 0, False)


def test_only_pixels_of_8_bits_lie_on_256_levels(tmp_path: Path) -> None:
    config = tmp_path / "pixels.yaml"
    config.write_text(PIXELS)
    found = [load(config, TrainLDM, ["data.train=x", f"data.depth={depth}"]).objective().levels for depth in (8, 16)]
    assert found == [PIXEL_LEVELS, None]
