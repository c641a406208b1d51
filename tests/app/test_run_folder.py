"""Which folders a run may go on in, and which it leaves alone."""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ldm.app.train_ldm import TrainLDM
from ldm.app.train_vae import TrainVAE
from ldm.app.training_run import FREE_KEYS, open_data, open_run, read_config
from ldm.config.loader import build, dump, load
from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.data.config import DataConfig
from ldm.training.run_folder import RunFolder

CONFIG = load(Path("configs/ldm/emoji-text.yaml"), TrainLDM, ["weighting=constant"])
WORLD = World(rank=0, size=1, device=torch.device("cpu"))


def run_folder(path: Path, stored: object = None, *, begun: bool = True) -> Path:
    """A run after its first state, or before its first step."""
    path.mkdir(parents=True, exist_ok=True)
    written = yaml.safe_dump(dump(CONFIG) if stored is None else stored, sort_keys=False, allow_unicode=True, width=120)  # as a run does
    (path / "config.yaml").write_text(written)
    if begun:
        (path / "state" / "step-00000005").mkdir(parents=True)
        (path / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n')
    return path


def opened(path: Path, config: TrainLDM = CONFIG) -> None:
    with open_run(path, config, WORLD) as run:
        assert run.path == path and yaml.safe_load((path / "config.yaml").read_text()) == dump(config)


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_run_from_before_a_key_was_there_goes_on(tmp_path: Path) -> None:
    stored = dump(CONFIG)
    for key in ("network_input", "learned_variance", "vlb_weight"):
        del stored[key]
    opened(run_folder(tmp_path / "run", stored))


FOREIGN = {
    "a checkpoint": ({"manifest.json": "mine"}, "holds a checkpoint, which training would overwrite"),
    "some config": ({"config.yaml": "mine"}, "holds the config.yaml of something else, which training would overwrite"),
    "another trainer's run": ({"config.yaml": "lr: 1", "metrics.jsonl": "{}"}, "holds a run of another config"),
    "a broken config": ({"config.yaml": "a: [", "metrics.jsonl": "{}"}, "config.yaml, of the run, cannot be read"),
    "a list for a config": ({"config.yaml": "[]", "metrics.jsonl": "{}"}, "it is no mapping but list"),
    "an impossible date": ({"config.yaml": "a: 2020-99-99", "metrics.jsonl": "{}"}, "cannot be read"),
    **{
        f"a class called {name}": ({f"{name}/a.jpg": "mine", "cats/b.jpg": "mine"}, f"holds '{name}', which training would overwrite")
        for name in ("checkpoint", "checkpoints", "state", "samples", "latents", "lora")
    },
    "files of these names": ({"report.txt": "mine"}, "holds 'report.txt'"),
    "curves": ({"curves.png": "mine"}, "holds 'curves.png'"),
}


@pytest.mark.parametrize("contents, said", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_run_is_left_alone(tmp_path: Path, contents: dict[str, str], said: str) -> None:
    folder = tmp_path / "photos"
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.raises(UserError, match=said):
        opened(folder)
    assert tree(folder) == contents


def test_a_run_does_not_lie_among_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    config = build(dump(CONFIG) | {"data": dump(CONFIG.data) | {"train": str(tmp_path / "photos")}}, TrainLDM)
    for place in ("photos", "photos/run"):
        with pytest.raises(UserError, match=f"lies in data.train={tmp_path / 'photos'}"):
            opened(tmp_path / place, config)
    assert [path.name for path in (tmp_path / "photos").rglob("*")] == ["cats"]
    opened(tmp_path / "run", config)


@pytest.mark.parametrize("name", ["checkpoint", "checkpoints", "lora"])
def test_a_model_without_a_state_is_not_overwritten(tmp_path: Path, name: str) -> None:
    """The only copy of it: a finished run whose `state` was removed to save space, or what `init_from` names."""
    run = run_folder(tmp_path / "run", begun=False)
    (run / name).mkdir()
    with pytest.raises(UserError, match=f"run/{name} is there, but no state .*init_from={run}/checkpoint starts from its weights"):
        opened(run)
    (run / "config.yaml").unlink()
    with pytest.raises(UserError, match=f"holds '{name}'"):
        opened(run)
    assert [path.name for path in run.iterdir()] == [name]


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_that_was_killed_goes_on(tmp_path: Path, begun: bool) -> None:
    opened(run_folder(tmp_path / "run", begun=begun))


def test_held_out_pictures_that_are_not_used_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train/a", "train/b", "val/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), ord(name[-1]), 0)).save(tmp_path / f"{name}.png")
    for val, is_told in ((None, True), (str(tmp_path), False)):
        open_data(DataConfig(train=str(tmp_path), val=val, size=8), 0, WORLD)
        assert ("1 held-out pictures of" in capsys.readouterr().out) == is_told


SHARED = "data: {train: emoji-128, val: emoji-128, size: 8}"


@pytest.mark.parametrize(
    "data, overrides, val, said",
    [
        (SHARED, ["data.train=split"], "split", "data.val follows data.train=split: its held-out split"),
        (SHARED, ["data.train=whole"], None, "data.val follows data.train=whole: null, as it has no held-out split"),
        (SHARED, ["data.train=absent"], None, "null"),
        (SHARED, ["data.train=https://here/0.tar"], None, "null"),
        (SHARED, ["data.train=emoji-128"], "emoji-128", ""),
        (SHARED, ["data.train=whole", "data.val=split"], "split", ""),
        (SHARED, ["data.val=split"], "split", ""),
        ("data: {train: split, val: split, size: 8}", ["data.train=emoji-128"], "emoji-128", "its held-out split"),
        ("data: {train: split, val: emoji-128, size: 8}", ["data.train=whole"], "emoji-128", ""),
        ("data: {train: split, size: 8}", ["data.train=emoji-128"], None, ""),
        ("data: {train: split, val: null, size: 8}", ["data.train=emoji-128"], None, ""),
    ],
)
def test_held_out_pictures_follow_the_training_pictures(data, overrides, val, said, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(data)
    for name in ("split/train/a", "split/val/b", "whole/c"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(f"{name}.png")
    content = read_config(argparse.Namespace(config=Path("run.yaml"), overrides=overrides))
    assert content["data"].get("val") == val and content["data"]["size"] == 8
    assert said in (line := capsys.readouterr().out) and bool(line) == bool(said)


def test_a_users_own_config_is_left_alone(tmp_path: Path) -> None:
    """Who keeps a config in the run's folder keeps its comments; and what else is called as ours."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text("# mine\n" + yaml.safe_dump(dump(CONFIG)))
    before = tree(path)
    with pytest.raises(UserError, match="holds the config.yaml of something else"):
        opened(path)
    assert tree(path) == before
    run_folder(path, begun=False)
    (path / "curves.png").write_text("mine")
    before = tree(path)
    with pytest.raises(UserError, match=r"holds 'curves.png', which training would overwrite, and is not a run's"):
        opened(path)
    assert tree(path) == before


def test_a_mistake_before_the_first_step_leaves_what_was_there(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run", begun=False)
    before = tree(path)
    with pytest.raises(UserError, match="a mistake"), open_run(path, CONFIG, WORLD):
        raise UserError("a mistake")
    assert tree(path) == before


def test_a_name_that_tensorboard_cannot_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\S+: TensorBoard's files need a name in UTF-8"):
        opened(tmp_path / "run\udcff")
    assert not any(tmp_path.iterdir())


def test_a_mistake_before_the_first_step_leaves_nothing(tmp_path: Path) -> None:
    """So the command may be mended and given again; what was there stays."""
    with suppress(RuntimeError), open_run(tmp_path / "runs" / "new", CONFIG, WORLD):
        raise RuntimeError
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.log").write_text("mine")
    with suppress(RuntimeError), open_run(tmp_path / "own", CONFIG, WORLD):
        raise RuntimeError
    assert tree(tmp_path) == {"own/train.log": "mine"}
    with suppress(RuntimeError), open_run(tmp_path / "begun", CONFIG, WORLD) as run:
        run.open(0)
        run.close()
        raise RuntimeError
    assert yaml.safe_load((tmp_path / "begun" / "config.yaml").read_text()) == dump(CONFIG)


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(
    "changes",
    [{"prediction": {"kind": "eps"}}, {"density": {"kind": "uniform"}}, {"seed": 1}, {"train": dump(CONFIG.train) | {"batch_size": 1}}],
)
def test_a_run_of_another_config_is_refused(tmp_path: Path, changes: dict, begun: bool) -> None:
    """From the first moment, not from the first state."""
    folder = run_folder(tmp_path / "run", dump(CONFIG) | changes, begun=begun)
    before = tree(folder)
    with pytest.raises(UserError, match=f"another config \\(differs in {next(iter(changes))}"):
        opened(folder)
    assert tree(folder) == before


def test_a_run_with_a_key_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another config \\(differs in no_such_key"):
        opened(run_folder(tmp_path / "run", dump(CONFIG) | {"no_such_key": 1}))


CHANGES = {
    "train.steps": 7,
    "train.optimizer.learning_rate": 1e-6,
    "train.optimizer.warmup_steps": 3,
    "train.optimizer.decay": "linear",
    "train.optimizer.final_rate": 0.5,
    "train.optimizer.clip_norm": 0.1,
    "train.precision": "fp32",
    "train.device": "cpu",
    "train.accumulate": 2,
    "train.channels_last": True,
    "train.compile": True,
    "train.checkpoint_every": 7,
    "train.keep_every": 7,
    "train.parallel": {"kind": "fsdp"},
    "train.keep_best": "val/loss",
    "train.sample_every": 7,
    "train.log_every": 7,
    "train.deterministic": True,
    "train.matmul_precision": "high",
    "train.checkpoint_dtype": "bf16",
    "train.checkpoint_file_mib": 7,
    "denoiser.attention_backend": "math",
    "denoiser.checkpointing": True,
    "sampling": {"sampler": "heun", "steps": 7},
    "prompts": ["a red heart"],
    "data.val": None,
    "data.workers": 1,
    "data.max_lost": 0.5,
    "data.remote_cache": 1.0,
}


def with_key(config: dict, key: str, value: object) -> dict:
    first, _, rest = key.partition(".")
    return config | {first: with_key(config[first], rest, value) if rest else value}


@pytest.mark.parametrize("key", FREE_KEYS)
def test_a_key_of_the_list_may_change(tmp_path: Path, key: str) -> None:
    config = build(with_key(dump(CONFIG), key, CHANGES[key]), TrainLDM)
    assert dataclasses.asdict(config) != dataclasses.asdict(CONFIG)
    opened(run_folder(tmp_path / "run"), config)


def test_the_manual_lists_the_keys_that_may_change() -> None:
    manual = Path("docs/training.md").read_text()
    listed = manual[manual.index("## Resume") : manual.index("## Several processes")]
    assert [key for key in FREE_KEYS if f"`{key}`" not in listed] == []


def test_sample_grids_are_saved_by_the_first_process_alone(tmp_path: Path) -> None:
    levels = torch.tensor([-1.0, 0.0, 0.4, 1.0, 2.0]).expand(3, 1, 5)
    for name, is_writer in (("first", True), ("second", False)):
        run = RunFolder(tmp_path / name, is_writer)
        run.open(0)
        run.save_sample_grid(7, levels)
        run.close()
    with Image.open(tmp_path / "first" / "samples" / "step-00000007.png") as saved:
        assert np.asarray(saved)[0, :, 0].tolist() == [0, 0, 102, 255, 255]
    assert not (tmp_path / "second").exists()


def test_what_is_odd_about_the_data_is_told_at_the_start_by_the_first_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("a cat")
    config = DataConfig(train=str(tmp_path), size=8)
    open_data(config, 0, WORLD)
    assert capsys.readouterr().out == "pictures without a caption, trained as unconditional: 1 (b.png)\n"
    open_data(config, 0, dataclasses.replace(WORLD, rank=1, size=2))
    assert capsys.readouterr().out == ""


def test_a_run_is_not_shortened_to_less_than_it_has(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    before = tree(run)
    shorter = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, steps=4))
    with pytest.raises(UserError, match=r"is already at step 5, past train\.steps=4: nothing is changed\. Set train\.steps to 5 or more"):
        opened(run, shorter)
    assert tree(run) == before
    opened(run, dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, steps=5)))


def test_a_run_of_another_config_names_what_differs_and_what_may(tmp_path: Path) -> None:
    """Only keys that the config has; and how many more there are than are named."""
    config = load(Path("configs/vae/emoji-f4.yaml"), TrainVAE)
    stored = dump(config) | {f"key_{number}": 1 for number in range(8)}
    run = run_folder(tmp_path / "run", stored)
    with pytest.raises(UserError) as caught, open_run(run, config, WORLD):
        pass
    text = str(caught.value)
    assert "(differs in key_0, key_1, key_2, key_3, key_4 and 3 more)" in text
    assert "only train.steps, " in text and "data.val" in text and "denoiser" not in text and "sampling" not in text
