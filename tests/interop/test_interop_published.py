"""Every published model at full size, on the meta device: export to CompVis's format and import give the same model, nothing left over."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml

from ldm.app.description import first_stage_of
from ldm.app.train_ldm import TrainLDM
from ldm.checkpoints.model import LatentDiffusionSpec
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.config.loader import load
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.interop import keymap, recipe
from ldm.interop.compvis.checkpoint import import_compvis
from ldm.interop.compvis.config import read_compvis
from ldm.interop.compvis.export import compvis_of
from ldm.interop.ours import Ours

ROOT = Path(__file__).parents[2]
ROWS = (
    "celebahq256", "ffhq256", "lsun-beds256", "lsun-churches256", "imagenet256", "imagenet256-f8", "text2img256", "txt2img-1.45b",
    "semantic256", "semantic512", "inpainting512", "layout2img256", "superres4x",
)  # fmt: skip


READ = {"drop": 0.0, "dropout": 0.0, "names": (), "num_classes": 1}
"""Fields of a conditioner's config that the file lacks; `num_classes` follows from its tensors, or is not known for boxes."""


def as_read(conditioning: dict[str, ConditionerConfig]) -> list[ConditionerConfig]:
    return [replace(one, **{field.name: READ[field.name] for field in fields(one) if field.name in READ}) for one in conditioning.values()]


@pytest.mark.parametrize("name", ROWS)
def test_a_published_model_is_the_same_after_export_and_import(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    for check in ("check_numbers", "check_unread"):
        monkeypatch.setattr(keymap, check, lambda *_: None)  # there are no numbers
    monkeypatch.setattr(recipe, "weights_digest", lambda _: "digest")
    monkeypatch.setattr(recipe, "encoder_digest", lambda _: "digest")
    config = load(f"configs/published/{name}.yaml", TrainLDM)
    stage = first_stage_of(config.first_stage, config.data.channels)
    spec = config.spec(
        stage, LatentNormalization(channels=stage.latent_channels, downsampling_factor=stage.downsampling_factor), config.conditioning
    )
    with torch.device("meta"):
        conditioners = spec.build_conditioners()
        network, autoencoder = spec.build_network(conditioners), stage.build()
    first_stage, denoiser, conditioner = (dict(part.state_dict()) for part in (autoencoder, network, conditioners))
    tensors, content, _ = compvis_of(Ours(spec=spec, first_stage=first_stage, denoiser=denoiser, conditioner=conditioner))
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(content))

    again, _ = import_compvis(tensors, read_compvis(tmp_path / "model.yaml"), Path("model.ckpt"))
    read = again.spec
    assert isinstance(read, LatentDiffusionSpec)
    assert set(read.denoiser.attention) == set(spec.denoiser.attention)
    assert replace(read.denoiser, attention=()) == replace(spec.denoiser, attention=(), checkpointing=False)
    assert (read.size, read.first_stage, read.process, read.prediction) == (spec.size, spec.first_stage, spec.process, spec.prediction)
    assert as_read(read.conditioning) == as_read(spec.conditioning)
    for mine, theirs in ((first_stage, again.first_stage), (denoiser, again.denoiser)):
        assert {key: tensor.shape for key, tensor in theirs.items()} == {key: tensor.shape for key, tensor in mine.items()}
    assert sorted(map(tuple, (t.shape for t in again.conditioner.values()))) == sorted(map(tuple, (t.shape for t in conditioner.values())))
