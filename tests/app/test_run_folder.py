"""Which run folders a config may go on in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ldm.app.train_ldm import TrainLDM
from ldm.app.training_run import open_run
from ldm.config.loader import dump, load
from ldm.core.errors import UserError
from ldm.training.distributed import World
from ldm.training.run_folder import RunFolder

CONFIG = load(Path("configs/ldm/emoji-text.yaml"), TrainLDM, ["weighting=constant"])
WORLD = World(rank=0, size=1, device=torch.device("cpu"))


def run_folder(path: Path, stored: dict) -> Path:
    (path / "state").mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(stored))
    return path


def test_a_run_from_before_a_key_was_there_goes_on(tmp_path: Path) -> None:
    stored = dump(CONFIG)
    for key in ("network_input", "learned_variance", "vlb_weight"):
        del stored[key]
    assert open_run(run_folder(tmp_path / "run", stored), CONFIG, WORLD).path == tmp_path / "run"


@pytest.mark.parametrize("file, said", [("manifest.json", "a checkpoint"), ("config.yaml", "the config.yaml of something else")])
def test_what_is_no_run_is_left_alone(tmp_path: Path, file: str, said: str) -> None:
    (tmp_path / file).write_text("mine")
    with pytest.raises(UserError, match=f"holds {said}, which training would overwrite"):
        open_run(tmp_path, CONFIG, WORLD)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(file, "mine")]


def test_a_run_killed_before_its_first_state_begins_anew(tmp_path: Path) -> None:
    for file in ("config.yaml", "metrics.jsonl"):
        (tmp_path / file).write_text("")
    assert open_run(tmp_path, CONFIG, WORLD).path == tmp_path


@pytest.mark.parametrize("changes", [{"prediction": {"kind": "eps"}}, {"density": {"kind": "uniform"}}, {"no_such_key": 1}])
def test_a_run_of_another_config_is_refused(tmp_path: Path, changes: dict) -> None:
    with pytest.raises(UserError, match=f"another config \\(differs in {next(iter(changes))}"):
        open_run(run_folder(tmp_path / "run", dump(CONFIG) | changes), CONFIG, WORLD)


def test_sample_grids_are_saved_by_the_first_process_alone(tmp_path: Path) -> None:
    levels = torch.tensor([-1.0, 0.0, 0.4, 1.0, 2.0]).expand(3, 1, 5)
    for name, is_writer in (("first", True), ("second", False)):
        run = RunFolder(tmp_path / name, is_writer)
        run.open("", 0)
        run.save_sample_grid(7, levels)
        run.close()
    with Image.open(tmp_path / "first" / "samples" / "step-00000007.png") as saved:
        assert np.asarray(saved)[0, :, 0].tolist() == [0, 0, 102, 255, 255]
    assert not (tmp_path / "second").exists()
