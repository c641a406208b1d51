"""Both stages on rectangles, from the config's `data.size: [H, W]` to pictures and their evaluation."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tiny_runs import ROOT, arguments

from ldm import LatentDiffusion
from ldm.app.arguments import describe, sample, train_ldm, train_vae
from ldm.app.description import first_stage_of
from ldm.app.train_ldm import TrainLDM
from ldm.checkpoints.model import load_first_stage, read_spec
from ldm.config.loader import load
from ldm.core.errors import UserError
from ldm.data.config import DataConfig
from ldm.data.open import open_dataset
from ldm.evaluation.dataset import Preprocessing, training_images
from ldm.first_stage.latent_normalization import LatentNormalization

SHAPE = ["data.size=[16,32]", "data.fit=pad", "train.steps=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, squares: Path) -> Path:
    """`vae` and `ldm`, of 16x32."""
    folder = tmp_path_factory.mktemp("rectangles")
    train_vae.main(arguments("vae", folder / "vae", squares, *SHAPE))
    train_ldm.main(arguments("ldm", folder / "ldm", squares, *SHAPE, f"first_stage.checkpoint={folder / 'vae/checkpoint'}"))
    return folder


def test_a_checkpoint_of_rectangles_keeps_their_size_and_fit(trained: Path) -> None:
    first = load_first_stage(trained / "vae/checkpoint", torch.device("cpu"))[1]
    both = read_spec(trained / "ldm/checkpoint")
    assert [(spec.size, spec.fit) for spec in (first, both)] == [((16, 32), "pad")] * 2
    assert "16x32" in (trained / "ldm/checkpoint/README.md").read_text()
    assert "of 16x32 pictures" in (trained / "vae/checkpoint/README.md").read_text()
    with Image.open(next((trained / "ldm/samples").glob("*.png"))) as grid:  # eight columns of one row
        assert grid.width > 8 * 32 and 16 <= grid.height < 32


def test_a_checkpoint_of_before_has_a_square_s_size_and_no_fit(trained: Path, tmp_path: Path) -> None:
    spec = yaml.safe_load((ROOT / "checkpoints/emoji/config.yaml").read_text())
    assert spec["size"] == 64 and "fit" not in spec
    assert (read_spec(ROOT / "checkpoints/emoji").size, read_spec(ROOT / "checkpoints/emoji").fit) == (64, "centre")


def test_pictures_are_drawn_at_the_trained_size_or_another(trained: Path, tmp_path: Path) -> None:
    words = ["--model", str(trained / "ldm/checkpoint"), "--steps", "2", "--num-images", "2", "--label", "odd", "--out", str(tmp_path)]
    for flags, size in (([], (32, 16)), (["--height", "24"], (32, 24)), (["--height", "8", "--width", "48"], (48, 8))):
        sample.main([*words, *flags])
        with Image.open(tmp_path / "001.png") as image:
            assert image.size == size
    with pytest.raises(UserError, match="height must be a multiple of 4 for this model, got 17"):
        sample.main([*words, "--height", "17"])


def test_evaluation_brings_pictures_to_size_as_training_did(trained: Path, squares: Path) -> None:
    spec = read_spec(trained / "ldm/checkpoint")
    how = Preprocessing(size=spec.size, channels=3, background=spec.background, fit=spec.fit)
    (images,) = training_images(str(squares), how).batches()
    config = DataConfig(train=str(squares), size=(16, 32), fit="pad")
    trained_on = open_dataset(config, "train", 0).sample(0, 0)
    assert torch.equal(images[0], trained_on.image) and images.shape == (10, 3, 16, 32)
    plain = how.plain()
    assert plain["size"] == [16, 32] and str(plain["fit"]).startswith("pad: scaled until it fits")


def test_describe_counts_rectangles(trained: Path, squares: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = trained / "ldm.yaml"
    words = [f"first_stage.checkpoint={trained / 'vae/checkpoint'}", f"data.train={squares}", "data.size=[16,32]"]
    describe.main(["--config", str(config), "--json", "conditioning.class.num_classes=2", *words])
    found = json.loads(capsys.readouterr().out)
    assert (found["image"], found["latent"]) == ([3, 16, 32], [2, 8, 16])


@pytest.mark.parametrize(
    "size, message",
    [
        ("[16]", "config key 'data.size': must be a list of 2, got 1"),
        ("[16,a]", r"config key 'data.size\[1\]': must be a whole number, got 'a'"),
        ("wide", "config key 'data.size': must be a whole number, got 'wide'"),
        ("[16,17]", r"data.size \(\[16, 17\]\) must be a multiple of the first stage's downsampling factor \(2\)"),
    ],
)
def test_a_size_that_is_none_is_refused(tmp_path: Path, squares: Path, size: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_vae.main(arguments("vae", tmp_path / "run", squares, f"data.size={size}"))


def test_a_twin_of_semantic512_draws_rectangles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published model of maps with narrow networks: at random weights, and twice as wide as high, as the paper draws it."""
    monkeypatch.chdir(ROOT)
    config = load("configs/published/semantic512.yaml", TrainLDM, ["data.size=32", "denoiser.channels=32", "sampling.steps=2"])
    stage = replace(first_stage_of(config.first_stage, 3), channels=32, num_codes=16)  # type: ignore[call-arg]
    normalization = LatentNormalization(channels=stage.latent_channels, downsampling_factor=stage.downsampling_factor)
    spec = config.spec(stage, normalization, config.conditioning)
    torch.manual_seed(0)
    conditioners, first_stage = spec.build_conditioners(), stage.build().eval()
    network = spec.build_network(conditioners).eval()
    model = LatentDiffusion(spec=spec, first_stage=first_stage, network=network, conditioners=conditioners, device=torch.device("cpu"))
    wide = model.at_size(32, 64)
    layout = torch.arange(64).expand(32, 64) // 16
    (image,) = wide.sample(layout=layout, num_images=1)
    assert image.size == (64, 32) and math.prod(wide.latent_size) == 8 * 16
