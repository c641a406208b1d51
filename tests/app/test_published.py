"""configs/published: every file loads by its own script, is of the published size, and says what it is; all on the meta device."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from ldm.app.describe import Cost
from ldm.app.description import Description, describe
from ldm.app.train_ldm import TrainLDM
from ldm.app.train_vae import TrainVAE
from ldm.config.loader import load
from ldm.core.errors import UserError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "published"

KL_F4, KL_F8, VQ_F4, VQ_F4_PLAIN, VQ_F8 = 55_312_063, 83_653_863, 55_322_782, 53_219_486, 67_717_295
CLIP_L, OPEN_CLIP_H = 123_060_480, 352_984_064
CLASSES = 1001 * 512
STAGE_ONE = {  # parameters, latent (Rombach et al. 2022; CompVis' model zoo)
    "kl-f4": (KL_F4, (3, 64, 64)),
    "kl-f8": (KL_F8, (4, 32, 32)),
    "kl-f16": (69_610_963, (16, 16, 16)),
    "kl-f32": (103_880_131, (64, 8, 8)),
    "vq-f4": (VQ_F4, (3, 64, 64)),
    "vq-f4-noattn": (VQ_F4_PLAIN, (3, 64, 64)),
    "vq-f8": (VQ_F8, (4, 32, 32)),
    "vq-f8-n256": (VQ_F8 - (16384 - 256) * 4, (4, 32, 32)),
    "vq-f16": (69_610_963 - 17_592, (8, 16, 16)),  # KL-f16 with 8 channels for 16 and their variances, and 16384 x 8 codes
}
# denoiser, first stage, conditioner as published, beta, loss, stated latent scale
STAGE_TWO = {
    "celebahq256": (274_056_163, VQ_F4, 0, (0.0015, 0.0195), "l2", 1.0),
    "ffhq256": (274_056_163, VQ_F4, 0, (0.0015, 0.0195), "l2", 1.0),
    "lsun-beds256": (274_056_163, VQ_F4, 0, (0.0015, 0.0195), "l2", 1.0),
    "lsun-churches256": (294_966_916, KL_F8, 0, (0.0015, 0.0155), "l1", None),
    "imagenet256": (400_920_579, VQ_F4, CLASSES, (0.0015, 0.0195), "l2", 1.0),
    "imagenet256-f8": (394_984_196, VQ_F8, CLASSES, (0.0015, 0.0195), "l2", 1.0),
    "text2img256": (403_623_939, VQ_F4, 186_154_682, (0.0015, 0.0195), "l2", 1.0),
    "txt2img-1.45b": (872_300_484, KL_F8, 581_994_042, (0.00085, 0.012), "l2", 0.18215),
    "semantic256": (215_229_315, VQ_F4, 182 * 3, (0.0015, 0.0205), "l1", 1.0),
    "semantic512": (215_229_315, VQ_F4, 182 * 3, (0.0015, 0.0205), "l1", 1.0),
    "inpainting512": (387_245_827, VQ_F4_PLAIN, 0, (0.0015, 0.0205), "l1", 1.0),
    "layout2img256": (246_277_379, VQ_F4, 58_858_496, (0.0015, 0.0205), "l1", 1.0),
    "superres4x": (113_622_563, VQ_F4, 0, (0.0015, 0.0155), "l2", 1.0),
    "sd1": (859_520_964, KL_F8, 0, (0.00085, 0.012), "l2", 0.18215),
    "sd1-inpainting": (859_535_364, KL_F8, 0, (0.00085, 0.012), "l2", 0.18215),  # five input channels more: 5 x 9 x 320
    "sd2": (865_910_724, KL_F8, 0, (0.00085, 0.012), "l2", 0.18215),
}
TRANSFORMERS = {
    "dit-xl-2": 8,
    "sit-xl-2": 4,
}  # output channels; denoiser, class table and table of positions together are the published number
STAGE_TWO |= {
    name: (675_129_632 - 1001 * 1152 - 256 * 1152 - (8 - out) * 4 * 1153, KL_F8, 1001 * 1152, None, "l2", 0.18215)
    for name, out in TRANSFORMERS.items()
}
every_config = pytest.mark.parametrize("name", [*STAGE_ONE, *STAGE_TWO])


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    """Configs name each other from the repository's root."""
    monkeypatch.chdir(ROOT)


@cache
def described(name: str) -> Description:
    return describe(FOLDER / f"{name}.yaml")


def test_the_table_is_of_all_files():
    assert {path.stem for path in FOLDER.iterdir()} == {*STAGE_ONE, *STAGE_TWO}


@pytest.mark.parametrize("name", STAGE_ONE)
def test_first_stages_have_the_published_size(name):
    parameters, latent = STAGE_ONE[name]
    found = described(name)
    assert (found.name, found.stage, found.parameters["first_stage"], found.latent) == (name, 1, parameters, latent)


@pytest.mark.parametrize("name", STAGE_TWO)
def test_models_have_the_published_size(name):
    """The text and box encoders together with the output layer that they were published with and that we do not have."""
    denoiser, first_stage, conditioner, _, _, _ = STAGE_TWO[name]
    found = described(name)
    given = found.parameters
    assert (found.name, found.stage, given["denoiser"], given["first_stage"]) == (name, 2, denoiser, first_stage)
    assert given["conditioner"] == conditioner
    assert given.get("frozen_encoder", 0) == {"sd1": CLIP_L, "sd1-inpainting": CLIP_L, "sd2": OPEN_CLIP_H}.get(name, 0)


@pytest.mark.parametrize("name", [name for name in STAGE_TWO if name not in TRANSFORMERS])
def test_models_have_the_published_process(name):
    _, _, _, beta, loss, scale = STAGE_TWO[name]
    config = load(FOLDER / f"{name}.yaml", TrainLDM)
    process = config.process
    assert (process.kind, process.spacing, process.num_steps) == ("discrete_vp", "sqrt_linear", 1000)
    assert (process.beta_first, process.beta_last) == beta
    assert (config.loss, config.first_stage.scale) == (loss, scale)
    assert config.prediction.kind == ("v" if name == "sd2" else "eps")


def test_transformers_have_the_published_process():
    dit, sit = (load(FOLDER / f"{name}.yaml", TrainLDM) for name in TRANSFORMERS)
    assert (dit.process.spacing, dit.process.beta_first, dit.process.beta_last) == ("linear", 1e-4, 0.02)
    assert (dit.prediction.kind, dit.learned_variance) == ("eps", True)
    assert (sit.process.kind, sit.prediction.kind, sit.density.kind) == ("rectified_flow", "velocity", "uniform_time")


@pytest.mark.parametrize("name", [name for name in STAGE_ONE if name.startswith("kl")])
def test_kl_autoencoders_have_the_published_loss(name):
    loss = load(FOLDER / f"{name}.yaml", TrainVAE).loss
    assert (loss.kl_weight, loss.disc_start, loss.disc_weight, loss.perceptual_weight) == (1e-6, 50_001, 0.5, 1.0)


@every_config
def test_a_file_opens_with_its_row_its_size_its_needs_and_its_command(name):
    head = re.match(r"(#.*\n)+", (FOLDER / f"{name}.yaml").read_text()).group()
    for title in ("Published", "Size", "Needs", "Data", "Train"):
        assert f"\n# {title}: " in head
    script = "train_vae" if name in STAGE_ONE else "train_ldm"
    assert f"python scripts/{script}.py --config configs/published/{name}.yaml\n" in head
    counts = {int(count.replace(",", "")) for count in re.findall(r"\d{1,3}(?:,\d{3}){2,}", head)}
    for part in ("denoiser", "first_stage"):
        assert described(name).parameters.get(part) in (None, *counts)
    assert re.search(r"# Needs: \d+ GB on one GPU \(bf16, \d+ pictures at once\); [\d.]+ days of one A100", head)


@every_config
def test_the_head_states_the_training_that_the_config_asks_for(name):
    """FID or that there is none, data, steps, batch and learning rate: what is published, and so what is here."""
    config = load(FOLDER / f"{name}.yaml", TrainVAE if name in STAGE_ONE else TrainLDM)
    head = " ".join(re.match(r"(#.*\n)+", (FOLDER / f"{name}.yaml").read_text()).group().replace("#", " ").split())
    published = head.partition("Published: ")[2].partition("Size: ")[0]
    assert re.match(r"r?FID [\d.]+|no (single )?FID", published)
    units = {"": 1, "k": 1e3, "M": 1e6}
    steps = re.findall(r"([\d,.]*\d)([kM]?)(?= steps| at \d+x\d+ with v|:? here)|stated: ([\d.]+)(k) here", published)
    assert config.train.steps in {round(float((a or c).replace(",", "")) * units[b or d]) for a, b, c, d in steps}
    rate = float(re.search(r"learning rate ([\d.e-]*\d)", published)[1])
    a_picture = "a picture of the batch" in published
    assert config.train.optimizer.learning_rate == pytest.approx(rate * config.train.batch_size if a_picture else rate)
    batch = r"here 12 twice accumulated" if a_picture else rf"batch (of )?{config.train.batch_size}\b"
    assert re.search(batch, published) and config.train.batch_size == (24 if a_picture else config.train.batch_size)


@every_config
def test_the_needs_are_what_describe_says(name):
    cost = Cost.of(described(name), 1)
    days = f"{cost.days:.1f}" if cost.days < 10 else f"{cost.days:.0f}"
    said = f"# Needs: {cost.bytes / 1e9:.0f} GB on one GPU (bf16, {cost.at_once} pictures at once); {days} days of one A100"
    assert said in (FOLDER / f"{name}.yaml").read_text()


def test_a_first_stage_that_is_not_trained_yet_is_named_with_its_command():
    config = load(FOLDER / "celebahq256.yaml", TrainLDM, ["first_stage.checkpoint=runs/nowhere/checkpoint"])
    with pytest.raises(
        UserError, match="no such folder yet; train it with: python scripts/train_vae.py --config configs/published/vq-f4.yaml"
    ):
        config.first_stage.open(3)
