"""A conditioner that is one file: it trains from a folder, shows in the sample grid, samples, is evaluated and described."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from evaluations import measured
from PIL import Image

import ldm.conditioning
from ldm.app.arguments import describe, sample, train_ldm
from ldm.core import family
from ldm.core.errors import UserError

SHADE = '''
"""How bright an image is, from a column of the caption table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm.conditioning.conditioner import Conditioner, ConditionerConfig
from ldm.conditioning.control import Control, Number
from ldm.core.condition import Condition
from ldm.core.family import kind
from ldm.data.batch import Batch
from ldm.data.facts import ATTRIBUTES, DataFacts

SEEN: list[Tensor] = []


@kind("shade")
@dataclass(frozen=True, kw_only=True)
class ShadeConfig(ConditionerConfig):
    reads: ClassVar[str] = ATTRIBUTES
    width: int = 8

    def build(self, *, context_width: int | None, latent_channels: int) -> Shade:
        return Shade(self)


class Shade(Conditioner[Tensor]):
    def __init__(self, config: ShadeConfig) -> None:
        super().__init__(config)
        self.vector_width = config.width
        self.linear = nn.Linear(2, config.width, bias=False)

    @property
    def controls(self) -> Mapping[str, Control]:
        return {"": Number(low=0, high=1)}

    def forward(self, value: Tensor, latent_size: tuple[int, int]) -> Condition:
        SEEN.append(value)
        return Condition(vector=self.linear(value.to(self.device)))

    def null(self, count: int, latent_size: tuple[int, int]) -> Tensor:
        return torch.zeros(count, 2)

    def of_batch(self, batch: Batch, facts: DataFacts) -> Tensor:
        return torch.tensor([[1.0, float(record["shade"])] for record in batch.attributes])

    def of_user(self, said: Any) -> Tensor:
        return torch.tensor([[1.0, float(said)]])
'''
CONFIG = """
name: shades
data: {train: null, val: null, size: 8}
first_stage: {kind: identity}
denoiser: {kind: unet, channels: 32, multipliers: [1, 2], blocks: 1, attention: [], transformer_depth: 0, heads: 2, vector_width: 8}
process: {kind: discrete_vp, spacing: cosine}
prediction: v
weighting: min_snr
conditioning: {brightness: {kind: shade, drop: 0.0}}
drop_all: 0.0
sampling: {sampler: ddim, steps: 4, guidance: 2}
train: {steps: 6, batch_size: 4, checkpoint_every: 6, sample_every: 6, optimizer: {learning_rate: 1.0e-2}}
"""


@pytest.fixture
def shade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The module, in a folder that `ldm.conditioning` is extended by."""
    (tmp_path / "rooms").mkdir()
    (tmp_path / "rooms" / "shade.py").write_text(SHADE)
    monkeypatch.setattr(ldm.conditioning, "__path__", [*ldm.conditioning.__path__, str(tmp_path / "rooms")])
    monkeypatch.setattr(family, "_kinds", {name: dict(kinds) for name, kinds in family._kinds.items()})
    importlib.invalidate_caches()
    yield importlib.import_module("ldm.conditioning.shade")
    del sys.modules["ldm.conditioning.shade"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten grey images, whose table says how bright they are."""
    (tmp_path / "greys").mkdir()
    rows = ["file,caption,shade"]
    for number in range(10):
        Image.new("RGB", (8, 8), (25 * number,) * 3).save(tmp_path / "greys" / f"{number}.png")
        rows.append(f"{number}.png,a grey,{number / 9:.3f}")
    (tmp_path / "greys" / "captions.csv").write_text("\n".join(rows))
    return tmp_path / "greys"


def test_one_file_is_all(shade, folder: Path, tmp_path: Path, stand_in, own_cache, monkeypatch, capsys):
    config, run = tmp_path / "shades.yaml", tmp_path / "run"
    config.write_text(CONFIG)
    train_ldm.main(["--config", str(config), "--run-dir", str(run), f"data.train={folder}"])
    shades = {round(9 * value) for rows in shade.SEEN for value in rows[:, 1].tolist()}
    assert len(shades) > 5  # trained under the records' own values
    assert any(len(rows) == 1 and rows[0, 0] == 1 for rows in shade.SEEN)  # the sample grid, image by image
    assert any((run / "samples").glob("step-*6.png"))

    drawn = []
    for value in ("0.1", "0.9"):
        out = tmp_path / value
        sample.main(["--model", str(run / "checkpoint"), "--cond", f"brightness={value}", "--num-images", "1", "--out", str(out)])
        drawn.append(Image.open(out / "000.png").tobytes())
        assert shade.SEEN[-1].shape == (1, 2)
    assert drawn[0] != drawn[1]
    with pytest.raises(UserError, match="unknown conditioner 'bright'.*brightness"):
        sample.main(["--model", str(run / "checkpoint"), "--cond", "bright=1", "--out", str(tmp_path / "none")])

    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    found = measured("ldm --model run/checkpoint --data greys --split train --steps 1", monkeypatch, capsys)
    assert found["data"]["conditioned_on"] == ["attributes"]
    describe.main(["--config", str(config), "--json", f"data.train={folder}"])
    assert json.loads(capsys.readouterr().out)["conditions"] == {"brightness": "a number from 0 to 1"}
