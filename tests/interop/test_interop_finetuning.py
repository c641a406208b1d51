"""An imported Stable Diffusion, fine-tuned as a whole or by a LoRA: both open in diffusers and predict the same there."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from interop_rows import SIZE, stable, write_clip, write_row
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

from ldm.app.arguments import convert, train_ldm
from ldm.checkpoints.folder import Checkpoint
from ldm.checkpoints.lora import load_lora, load_with_lora
from ldm.checkpoints.model import load_latent_diffusion
from ldm.conditioning.inputs import ConditionInputs
from ldm.core.condition import Condition

pytestmark = pytest.mark.parity
ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TOLERANCE = 1e-4  # relative to the std of the prediction
PROMPT = "red"
COLOURS = ("red", "green", "blue", "gold")
SHORT = (
    "train.steps=2",
    "train.batch_size=4",
    "train.precision=fp32",
    "train.sample_every=9",
    "train.ema_decay=0.0",
    "train.optimizer.warmup_steps=0",
)


@pytest.fixture(scope="module")
def home(module_folder: Path) -> Path:
    """`base`, imported from a single file and exported to `base-diffusers`; `full` and `adapted`, two runs that fine-tune it."""
    (module_folder / "configs").symlink_to(ROOT / "configs")
    (module_folder / "my").mkdir()
    rows = [("file", "caption")]
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (SIZE, SIZE), colour).save(module_folder / "my" / f"{number}.png")
        rows.append((f"{number}.png", colour))
    with open(module_folder / "my" / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)

    write_row(module_folder / "source", stable(write_clip(module_folder / "clip", is_open=False), version=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(module_folder)
        convert.main("export source --to compvis --out sd1.safetensors".split())
        convert.main(f"import sd1.safetensors --text-encoder clip --size {SIZE} --out base".split())
        convert.main("export base --to diffusers --out base-diffusers".split())
        train_ldm.main(["init_from=base", "data.train=my", "--run-dir", "full", *SHORT, "train.optimizer.learning_rate=1e-4"])
        lora = ("lora.rank=2", "lora.alpha=4", "train.optimizer.learning_rate=1e-3")
        train_ldm.main(["init_from=base", "data.train=my", "--run-dir", "adapted", *SHORT, *lora])
    return module_folder


@pytest.fixture(scope="module")
def opened() -> Callable[[Path], diffusers.StableDiffusionPipeline]:
    def open_one(folder: Path) -> diffusers.StableDiffusionPipeline:
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return open_one


X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
TIMES = torch.tensor([3.0, 871.0])


@torch.no_grad()
def ours(folder: Path, network: nn.Module | None = None) -> Tensor:
    """The prediction of our checkpoint for the prompt, (2, 4, 8, 8); by another network if one is given."""
    parts = load_latent_diffusion(folder, CPU)
    condition: Condition = parts.conditioners(ConditionInputs(count=2, values={"text": (PROMPT, PROMPT)}), (8, 8))
    return (network or parts.network)(X, TIMES, condition)


@torch.no_grad()
def theirs(pipeline: diffusers.StableDiffusionPipeline) -> Tensor:
    """The prediction of a pipeline for the prompt, with its own text encoder."""
    tokens, _ = pipeline.encode_prompt(PROMPT, CPU, 2, do_classifier_free_guidance=False)
    return pipeline.unet(X, TIMES, tokens).sample


def near(one: Tensor, other: Tensor) -> None:
    assert_close(one, other, rtol=0, atol=TOLERANCE * other.std().item())


def distance(one: Tensor, other: Tensor) -> float:
    """Relative to the std: fine-tuning changed the prediction, but not beyond recognition."""
    return ((one - other).std() / other.std()).item()


def test_the_fully_fine_tuned_model_opens_in_diffusers(home: Path, opened, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(home)
    before, after = (Checkpoint.open(folder) for folder in ("base", "full/checkpoint"))
    old, new = before.tensors("denoiser"), after.tensors("denoiser")
    assert old.keys() == new.keys() and not [name for name in old if torch.equal(old[name], new[name])]
    assert_close(after.tensors("first_stage"), before.tensors("first_stage"), rtol=0, atol=0)

    convert.main("export full/checkpoint --to diffusers --out full-diffusers".split())
    pipeline = opened(home / "full-diffusers")
    assert type(pipeline) is diffusers.StableDiffusionPipeline
    mine = ours(home / "full" / "checkpoint")
    near(theirs(pipeline), mine)
    assert 0.01 < distance(mine, ours(home / "base")) < 0.8
    draw = torch.Generator().manual_seed(3)
    image = pipeline(PROMPT, height=SIZE, width=SIZE, num_inference_steps=2, generator=draw, output_type="pt").images
    assert image.shape == (1, 3, SIZE, SIZE) and image.std() > 0.02


def test_the_lora_loads_in_diffusers(home: Path, opened, monkeypatch: pytest.MonkeyPatch):
    """Beside the exported base, and merged into it."""
    monkeypatch.chdir(home)
    lora = load_lora("adapted/lora").tensors
    ups = {name: tensor for name, tensor in lora.items() if name.endswith(".lora_B.weight")}
    assert len(ups) > 10 and all(tensor.abs().max() > 1e-3 for tensor in ups.values())  # they are initialised with zeros

    convert.main("export adapted/lora --to diffusers --out lora-diffusers".split())
    pipeline = opened(home / "base-diffusers")
    plain = ours(home / "base")
    near(theirs(pipeline), plain)
    pipeline.load_lora_weights("lora-diffusers")
    adapted = theirs(pipeline)
    near(adapted, ours(home / "base", load_with_lora("base", "adapted/lora", 1.0, CPU).network))
    near(adapted, ours(home / "adapted" / "checkpoint"))
    assert 0.01 < distance(adapted, plain) < 0.8
