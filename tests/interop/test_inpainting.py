"""The published inpainting-big, conditioned on an image with a black hole and a mask of -1 and 1: import, export, sampling, refusals."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from interop_rows import KL, ROWS, SIZE, stable, write_clip, write_row
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from ldm import LatentDiffusion
from ldm.app import cli
from ldm.app.arguments import inpaint
from ldm.checkpoints.folder import Checkpoint
from ldm.checkpoints.model import LatentDiffusionSpec, load_first_stage
from ldm.conditioning.inpaint_mask import InpaintMaskConfig
from ldm.core.errors import UserError
from ldm.interop.compvis.export import export_compvis
from ldm.interop.diffusers.export import pipeline_of
from ldm.interop.importing import import_checkpoint
from ldm.interop.ours import Ours
from ldm.pipelines.edit import inpaint as inpainted

BLACK = InpaintMaskConfig(convention="inpainting_big")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A tiny model as CompVis's code saves it: its conditioner is its first stage, so the file has that twice."""
    export_compvis(Ours.open(write_row(tmp_path / "ours", ROWS["inpainting"])), tmp_path / "last.safetensors")
    tensors = load_file(tmp_path / "last.safetensors")
    start = "first_stage_model."
    again = {f"cond_stage_model.{name.removeprefix(start)}": t.clone() for name, t in tensors.items() if name.startswith(start)}
    torch.save({"state_dict": tensors | again}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def changed(file: Path, **params: object) -> None:
    config = yaml.safe_load(file.with_suffix(".yaml").read_text())
    config["model"]["params"] |= params
    file.with_suffix(".yaml").write_text(yaml.safe_dump(config))


def test_the_yaml_is_as_the_published_one(file: Path):
    params = yaml.safe_load(file.with_suffix(".yaml").read_text())["model"]["params"]
    assert (params["cond_stage_config"], params["cond_stage_key"], params["concat_mode"]) == ("__is_first_stage__", "masked_image", True)
    assert "conditioning_key" not in params and params["scale_factor"] == 1
    assert params["unet_config"]["params"]["in_channels"] == 7
    assert params["first_stage_config"]["params"]["ddconfig"]["attn_type"] == "none"


def test_the_second_copy_of_the_first_stage_is_passed_over_if_it_is_equal(file: Path, tmp_path: Path):
    notes = import_checkpoint(file, tmp_path / "again", config=file.with_suffix(".yaml"))
    assert "passed over cond_stage_model.*: a copy of the first stage" in notes
    assert Checkpoint.open(tmp_path / "again").spec(LatentDiffusionSpec).conditioning == {"mask": BLACK}
    tensors = torch.load(file, weights_only=True)["state_dict"]
    tensors["cond_stage_model.quant_conv.bias"] += 1
    torch.save({"state_dict": tensors}, file)
    with pytest.raises(UserError, match="cond_stage_model.quant_conv.bias differs from first_stage_model.quant_conv.bias"):
        import_checkpoint(file, tmp_path / "third", config=file.with_suffix(".yaml"))


def test_the_networks_input_is_that_of_the_published_script(file: Path, tmp_path: Path):
    """Noise; the latent of (1 - mask) * image, mapped from [0, 1] to [-1, 1]; and the mask, mapped likewise and resized by nearest."""
    import_checkpoint(file, tmp_path / "again", config=file.with_suffix(".yaml"))
    model = LatentDiffusion.from_pretrained(tmp_path / "again", device="cpu")
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    mask = draw.random((SIZE, SIZE)) > 0.7
    inputs = []
    model.network.register_forward_pre_hook(lambda _, args: inputs.append((args[0], args[2].concat)))
    (result,) = inpainted(model, Image.fromarray(image), Image.fromarray(mask), model.sampling(steps=2, seed=1))

    batch = {"image": torch.from_numpy(image).float().permute(2, 0, 1)[None] / 255, "mask": torch.from_numpy(mask).float()[None, None]}
    batch["masked_image"] = (1 - batch["mask"]) * batch["image"]
    masked, signs = (batch[name] * 2 - 1 for name in ("masked_image", "mask"))
    latent = model.first_stage.encode(masked)
    expected = torch.cat([latent, F.interpolate(signs, size=latent.shape[2:])], dim=1)
    assert len(inputs) == 2 and all(x.shape[1] == 3 for x, _ in inputs)
    for _, concat in inputs:
        assert_close(concat, expected, rtol=0, atol=1e-5)
    assert np.array_equal(np.array(result)[~mask], image[~mask])


def test_an_imported_model_inpaints_by_the_script(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    import_checkpoint(file, tmp_path / "again", config=file.with_suffix(".yaml"))
    Image.new("RGB", (21, 17), "red").save(tmp_path / "a.png")
    Image.fromarray(np.pad(np.full((17, 9), 255, np.uint8), ((0, 0), (0, 12)))).save(tmp_path / "hole.png")
    arguments = (
        f"--model {tmp_path}/again --image {tmp_path}/a.png --mask {tmp_path}/hole.png --steps 2 --num-images 1 --out {tmp_path}/out"
    )
    monkeypatch.setattr(sys, "argv", ["inpaint.py", *arguments.split()])
    with pytest.raises(SystemExit) as exit_:
        cli.run(inpaint.main)
    assert exit_.value.code == 0, capsys.readouterr().err
    with Image.open(tmp_path / "out" / "000.png") as painted:
        pixels = np.array(painted)
    assert (pixels[:, 9:] == (255, 0, 0)).all() and not (pixels[:, :9] == (255, 0, 0)).all()


def test_a_measured_scale_becomes_the_autoencoders(tmp_path: Path):
    """CompVis's code does not scale the first stage's condition, so the scale must be 1 there."""
    ours = write_row(tmp_path / "ours", replace(ROWS["inpainting"], normalization={"shift": (0.3,), "scale": (0.7,)}))
    notes = export_compvis(Ours.open(ours), tmp_path / "model.safetensors")
    assert any("one scale only" in note for note in notes)
    import_checkpoint(tmp_path / "model.safetensors", tmp_path / "again", config=tmp_path / "model.yaml")
    one, other = (load_first_stage(folder, torch.device("cpu"))[0] for folder in (ours, tmp_path / "again"))
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))
    assert other.normalization.scale == (1.0,)
    assert_close(other.encode(image), one.encode(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "params, message",
    [
        ({"cond_stage_key": "image"}, "only models conditioned on masked_image by concatenation"),
        ({"conditioning_key": "crossattn"}, "conditioned on masked_image by concatenation"),
        ({"scale_factor": 0.5}, "scale_factor is 0.5; only 1 can be imported"),
        ({"scale_by_std": True}, "sets scale_by_std"),
    ],
)
def test_another_convention_is_refused(params: dict[str, object], message: str, file: Path, tmp_path: Path):
    changed(file, **params)
    with pytest.raises(UserError, match=message):
        import_checkpoint(file, tmp_path / "again", config=file.with_suffix(".yaml"))
    assert not (tmp_path / "again").exists()


def test_masks_without_counterpart_are_refused(tmp_path: Path):
    """Stable Diffusion's code has grey holes, CompVis's first code black ones, encoded by a VQ autoencoder only."""
    for number, row in enumerate(
        (
            replace(ROWS["inpainting"], first_stage=KL),
            replace(ROWS["inpainting"], conditioning={"mask": InpaintMaskConfig()}),
            replace(ROWS["text"], conditioning={**ROWS["text"].conditioning, "mask": BLACK}),
        )
    ):
        ours = Ours.open(write_row(tmp_path / str(number), row))
        with pytest.raises(UserError, match="VQ autoencoder|Stable Diffusion's mask as its only condition|with text and this kind of mask"):
            export_compvis(ours, tmp_path / "model.safetensors")
    row = stable(write_clip(tmp_path / "clip", is_open=False), version=1)
    ours = Ours.open(write_row(tmp_path / "sd", replace(row, conditioning={**row.conditioning, "mask": BLACK})))
    assert pipeline_of(ours) == ("", "StableDiffusionInpaintPipeline expects a grey hole")
