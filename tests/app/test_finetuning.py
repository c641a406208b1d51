"""Going on with a model: what its checkpoint says is not repeated, what contradicts it is refused; adapters beside a frozen model."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import checkpoint, metrics, state

from ldm import LatentDiffusion
from ldm.app import cli, finetuning
from ldm.app.arguments import train_ldm, txt2img
from ldm.app.description import describe
from ldm.app.finetuning import completed
from ldm.checkpoints.folder import Checkpoint
from ldm.checkpoints.lora import load_lora
from ldm.checkpoints.model import (
    LatentDiffusionSpec,
    load_first_stage,
    load_latent_diffusion,
    read_spec,
    write_autoencoder,
    write_latent_diffusion,
)
from ldm.conditioning.attributes import AttributesConfig, NumberAttribute
from ldm.config.loader import dump, read, to_yaml
from ldm.core.errors import UserError

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SHORT = ["data.train=my", "train.batch_size=4", "train.precision=fp32", "train.checkpoint_every=2", "train.sample_every=9"]
STILL = ["train.steps=1", "train.optimizer.learning_rate=1e-30"]  # a run whose only step moves nothing
LORA = [
    *("lora.rank=2", "lora.alpha=6", "lora.targets=transformer", "denoiser.dropout=0.2", "train.optimizer.learning_rate=3e-2"),
    "data.background=[1,2,3]",
]


def furnish(home: Path, squares: Path) -> None:
    """`my` pictures with captions, and the configs that ship."""
    (home / "configs").symlink_to(ROOT / "configs")
    (home / "my").mkdir()
    rows = [("file", "caption")]
    for number, picture in enumerate(sorted(squares.glob("*/*.png"))):
        (home / "my" / f"{number}.png").write_bytes(picture.read_bytes())
        rows.append((f"{number}.png", f"square {number}"))
    with open(home / "my" / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


def train(source: Path | str, *changes: str, run: str = "run") -> Path:
    """The short command."""
    train_ldm.main([f"init_from={source}", "--run-dir", run, *SHORT, *changes])
    return Path(run)


@pytest.fixture
def home(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; see `furnish`."""
    furnish(tmp_path, squares)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, squares: Path, write_model) -> Path:
    """A `base`, and a `run` of adapters beside it; an `other` base, and one that took the place of `base` in `moved`. For reading only."""
    home = tmp_path_factory.mktemp("lora")
    furnish(home, squares)
    write_model(home / "base", ("text",))
    write_model(home / "other", ("text",), dtype=torch.bfloat16)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        train("base", *LORA, "train.steps=4", "train.ema_decay=0.5")
    (home / "moved").mkdir()
    for name in ("configs", "my", "run"):
        (home / "moved" / name).symlink_to(home / name)
    base = load_latent_diffusion(home / "base", CPU)
    weights = {name: 1.01 * tensor for name, tensor in base.network.state_dict().items()}
    stage = Checkpoint.open(home / "base").tensors("first_stage")
    write_latent_diffusion(home / "moved" / "base", base.spec, stage, weights, base.conditioners.state_dict(), "# tiny\n", 1 << 30)
    return home


def test_what_the_model_is_stands_in_its_checkpoint_only(home: Path, tiny: Callable[..., Path]):
    """One short command; a run that moves nothing writes the same model, but for what was asked to differ."""
    source = tiny("text")
    asked = ["denoiser.dropout=0.1", "sampling.sampler=euler", "sampling.steps=2", "conditioning.text.drop=0.2", "data.size=8"]
    run = train(source, *STILL, *asked)
    before, after = (dump(Checkpoint.open(folder).spec(LatentDiffusionSpec)) for folder in (source, run / "checkpoint"))
    before |= {"name": "finetune", "size": 8}
    before["denoiser"]["dropout"], before["conditioning"]["text"]["drop"] = 0.1, 0.2
    before["sampling"] |= {"sampler": {"kind": "euler", "frame": "flow"}, "steps": 2}
    assert after == before
    torch.testing.assert_close(checkpoint(run / "checkpoint"), checkpoint(source), rtol=0, atol=1e-20)
    train(source, *STILL, *asked)  # again: it is finished


def whole_config(path: Path, source: Path) -> str:
    """A file that describes the model of a checkpoint, but for what it predicts."""
    spec = read_spec(source)
    whole = {key: dump(getattr(spec, key)) for key in ("denoiser", "process", "conditioning", "sampling")}
    whole |= {"name": "whole", "prediction": "x0", "weighting": "min_snr", "data": {"train": "my", "size": 16}}
    whole |= {"first_stage": {"checkpoint": str(source)}, "train": {"steps": 9, "batch_size": 9}, "init_from": str(source)}
    path.write_text(to_yaml(whole))
    return str(path)


def test_a_whole_config_is_taken_as_it_is(home: Path, tiny: Callable[..., Path]):
    """`init_from` beside a denoiser that is described says whose weights, not which model."""
    source = tiny("text")
    run = train(source, "--config", whole_config(home / "whole.yaml", source), *STILL)
    assert (read_spec(source).prediction.kind, read_spec(run / "checkpoint").prediction.kind) == ("v", "x0")
    torch.testing.assert_close(checkpoint(run / "checkpoint"), checkpoint(source), rtol=0, atol=1e-20)


def test_a_condition_that_is_always_dropped_need_not_fit_the_data(home: Path, tiny: Callable[..., Path], squares: Path):
    """A model of classes goes on with pictures of none, or of others, when that is said; their labels are then no condition."""
    never = [*STILL, "conditioning.class.drop=1"]
    runs = [train(tiny("class"), *never, f"data.train={data}", run=data.rsplit("/")[-1] + "-run") for data in ("my", str(squares))]
    unconditional, labelled = (metrics(run)[0]["train_eval/loss"] for run in runs)
    assert unconditional == labelled


def test_a_conditioner_says_which_of_its_keys_are_free(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    """An attribute's own dropout may change, its range may not."""
    attributes = AttributesConfig(fields={"age": NumberAttribute(low=0.0, high=9.0)})
    spec = replace(read_spec(tiny("text")), conditioning={"about": attributes})
    monkeypatch.setattr(finetuning, "read_spec", lambda source: spec)

    def with_age(**changes: float) -> dict[str, Any]:
        return {"init_from": "a", "conditioning": {"about": {"fields": {"age": changes}}}}

    found = finetuning.completed(with_age(drop=0.5))
    assert found["conditioning"]["about"]["fields"]["age"] == {"kind": "number", "drop": 0.5, "low": 0.0, "high": 9.0}
    with pytest.raises(UserError, match=r"'conditioning.about.fields.age.high': 8.0 contradicts"):
        finetuning.completed(with_age(high=8.0))


MISTAKES: dict[str, tuple[str, str]] = {
    "nothing to start from": ("--config configs/ldm/finetune.yaml", "name the checkpoint to go on with, init_from=FOLDER"),
    "lora of nothing": ("--config configs/ldm/emoji-text.yaml lora.rank=4", "lora needs init_from"),
    "lora of nothing, short": ("lora.rank=4", "name the checkpoint to go on with"),
    "no such checkpoint": ("init_from=nowhere", "checkpoint nowhere: no such folder"),
    "a first stage": ("init_from=STAGE", "holds a first stage only"),
    "another width": ("init_from=TEXT denoiser.channels=64", "config key 'denoiser.channels': 64 contradicts init_from="),
    "another prediction": ("init_from=TEXT prediction=eps", "config key 'prediction.kind': eps contradicts init_from="),
    "another process": ("init_from=TEXT process.kind=edm", "config key 'process.kind': edm contradicts"),
    "another condition": ("init_from=TEXT conditioning.class.kind=class_label", "is conditioned on text only; leave it out"),
    "another scale": ("init_from=TEXT first_stage.scale=0.5", "config key 'first_stage.scale': 0.5 contradicts"),
    "another first stage": ("init_from=TEXT first_stage.checkpoint=OTHER", "was trained on another first stage"),
    "an unknown key": ("init_from=TEXT denoiser.chanels=64", "Did you mean 'denoiser.channels'?"),
    "no captions": ("init_from=TEXT data.train=PLAIN", "needs captions, and the training data has none"),
    "no labels": ("init_from=CLASS", "with conditioning.class.drop=1 it is unused"),
    "other labels": ("init_from=CLASS data.train=SQUARES", "class 0 of the data is even, of the model cat"),
    "rank 0": ("init_from=TEXT lora.rank=0", "lora.rank must be at least 1, got 0"),
    "lora read otherwise": ("--config WHOLE lora.rank=2", "lora: prediction is not as in init_from"),
    "no alpha": ("init_from=TEXT lora.alpha=0", "lora.alpha must be positive"),
    "unknown layers": ("init_from=TEXT lora.targets=atention", "'atention' is not allowed; allowed: attention, transformer, all"),
}


@pytest.mark.parametrize("words, said", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(words: str, said: str, home: Path, tiny, squares: Path, monkeypatch, capsys, write_model):
    (home / "plain").mkdir()
    (home / "plain" / "0.png").write_bytes((home / "my" / "0.png").read_bytes())
    places = {"TEXT": tiny("text"), "CLASS": tiny("class"), "PLAIN": home / "plain", "SQUARES": squares, "OTHER": home / "other"}
    places["STAGE"] = home / "stage"
    if "OTHER" in words:
        write_model(places["OTHER"], ("text",), dtype=torch.bfloat16)
    if "STAGE" in words:
        _, whole, weights = load_first_stage(tiny("text"), CPU)
        write_autoencoder(places["STAGE"], whole, weights, "# tiny\n", 1 << 30)
    for name, place in places.items():
        words = words.replace(f"={name}", f"={place}")
    words = words.replace("WHOLE", whole_config(home / "whole.yaml", tiny("text")))
    before = sorted(home.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["train_ldm.py", "--run-dir", "run", *SHORT, "train.steps=1", *words.split()])
    with pytest.raises(SystemExit) as left:
        cli.run(train_ldm.main)
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    assert line.startswith("error: ") and said in line
    assert [path for path in sorted(home.rglob("*")) if path.name != "run"] == before


def test_only_the_adapters_are_trained_and_kept(adapted: Path):
    """State, optimizer and average hold nothing of the base; the checkpoint is the base with W + alpha / rank B A."""
    lora, kept = load_lora(adapted / "run" / "lora"), state(adapted / "run", 4)
    width = sum(tensor.numel() for tensor in lora.tensors.values())
    for part, times in (("trained/.*", 1), ("averaged/.*", 1), (".*/exp_avg(_sq)?", 2)):
        assert sum(value.numel() for name, value in kept.items() if re.fullmatch(part, name)) == times * width

    named = {name.replace("/", "."): value for name, value in kept.items()}
    for name, tensor in lora.tensors.items():  # the averages are what is kept
        assert torch.equal(tensor, named[f"averaged.lora.{name}"]) and not torch.equal(tensor, named[f"trained.lora.{name}"])

    old, new = checkpoint(adapted / "base"), checkpoint(adapted / "run" / "checkpoint")
    layers = {name.removesuffix(".lora_A.weight") for name in lora.tensors if name.endswith(".lora_A.weight")}
    changed = {f"denoiser.safetensors.{layer}.weight": layer for layer in layers}
    assert {name for name in old if not torch.equal(old[name], new[name])} == changed.keys()
    for name, layer in changed.items():
        change = lora.tensors[f"{layer}.lora_B.weight"].flatten(1) @ lora.tensors[f"{layer}.lora_A.weight"].flatten(1)
        torch.testing.assert_close(new[name].flatten(1), old[name].flatten(1) + 3 * change)
    assert "LoRA of rank 2 (transformer) on tiny" in (adapted / "run" / "lora" / "README.md").read_text()


def test_a_base_with_the_adapters_draws_what_the_run_s_checkpoint_draws(adapted: Path, tmp_path: Path, monkeypatch):
    """By --lora, at its scale and at none."""
    monkeypatch.chdir(adapted)
    asked = {
        "whole": "--model run/checkpoint",
        "attached": "--model base --lora run/lora",
        "half": "--model base --lora run/lora --lora-scale 0.5",
        "none": "--model base --lora run/lora --lora-scale 0",
        "base": "--model base",
    }
    drawn = {}
    for name, words in asked.items():
        txt2img.main([*words.split(), "--prompt", "square 3", "--num-images", "1", "--out", str(tmp_path / name)])
        drawn[name] = (tmp_path / name / "grid.png").read_bytes()
    assert drawn["whole"] == drawn["attached"] and drawn["none"] == drawn["base"]
    assert len(set(drawn.values())) == 3


def test_a_run_writes_down_what_transparent_pictures_were_laid_on(adapted: Path):
    assert read_spec(adapted / "base").background == (255, 255, 255)
    assert read_spec(adapted / "run" / "checkpoint").background == (1, 2, 3)
    assert load_first_stage(adapted / "run" / "checkpoint", CPU)[1].background == (1, 2, 3)


def test_settings_in_words_reach_a_run_that_goes_on_with_a_model(adapted: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(adapted)
    content = completed(read("configs/ldm/finetune.yaml", ["init_from=base", "sampling.sampler=ddim eta=0.5"]))
    assert content["sampling"]["sampler"] == {"kind": "ddim", "eta": 0.5}


def test_a_lora_is_added_to_whole_weights_before_they_are_held_in_half(adapted: Path):
    lora = {"lora": adapted / "run" / "lora", "lora_scale": 30.0}
    whole, low = (LatentDiffusion.from_pretrained(adapted / "base", "cpu", precision, **lora) for precision in ("fp32", "bf16"))
    plain = LatentDiffusion.from_pretrained(adapted / "base", "cpu", "bf16")
    how = low.sampling()
    drawn = [one.generate(one.uncond(), how) for one in (low, replace(whole, precision="bf16"), plain)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_lora_run_resumes_to_the_bit(adapted: Path, home: Path):
    (home / "base").symlink_to(adapted / "base")
    for steps in (2, 4):
        train("base", *LORA, f"train.steps={steps}", "train.ema_decay=0.5", "train.keep_every=2")
    whole, halved = adapted / "run", home / "run"
    pairs = [(checkpoint(whole / name), checkpoint(halved / name)) for name in ("checkpoint", "lora")]
    for one, other in (*pairs, (state(whole, 4), state(halved, 4))):
        assert one and one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    names = ["step-000002", "step-000002-lora", "step-000004", "step-000004-lora"]
    assert sorted(path.name for path in (halved / "checkpoints").iterdir()) == names
    kept, earlier = (load_lora(halved / "checkpoints" / f"step-00000{step}-lora").tensors for step in (4, 2))
    for name, tensor in load_lora(halved / "lora").tensors.items():
        assert torch.equal(kept[name], tensor) and not torch.equal(earlier[name], tensor)


@pytest.mark.parametrize(
    "words, said",
    [
        ("--model other --lora run/lora", "was trained on another base (tiny, denoiser "),
        ("--model moved/base --lora run/lora", "was trained on another base (tiny, denoiser "),  # as its base, but for the weights
        ("--model run/checkpoint --lora run/lora", "give the checkpoint that it was trained on"),
        ("--model base --lora base", "holds no LoRA"),
        ("--model base --lora run", "did you mean run/checkpoint or run/lora?"),
        ("--model run/lora", "holds a LoRA, which is not a model by itself; pass it as --lora beside its base"),
        ("--model base --lora-scale 2", "--lora-scale goes with --lora"),
        ("--model base --lora run/lora --lora-scale nan", "must be a finite number"),
        ("again", "the model of init_from changed since this run was started"),
    ],
)
def test_a_lora_where_it_does_not_belong(words: str, said: str, adapted: Path, monkeypatch, capsys):
    main, arguments = txt2img.main, ["--prompt", "x", *words.split()]
    monkeypatch.chdir(adapted)
    if words == "again":
        monkeypatch.chdir(adapted / "moved")
        main = train_ldm.main
        arguments = ["init_from=base", "--run-dir", "run", *SHORT, *LORA, "train.steps=5", "train.ema_decay=0.5"]
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.run(main)
    assert left.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_describe_counts_what_the_checkpoint_says_and_what_is_trained(adapted: Path, monkeypatch):
    """20 bytes for what is trained, 4 for what is not."""
    monkeypatch.chdir(adapted)
    parts = load_latent_diffusion("base", CPU)
    named = {"denoiser": parts.network, "first_stage": parts.first_stage, "conditioner": parts.conditioners}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in named.items()}
    used = counts["conditioner"] + parts.conditioners.num_unused
    unused = {"conditioner": used, "conditioner_unused": parts.conditioners.num_unused}
    full = describe(Path("configs/ldm/finetune.yaml"), ["init_from=base", "data.train=my"])
    assert full.parameters == counts | unused and full.trained == ("denoiser", "conditioner") and full.image == (3, 16, 16)
    assert full.held.total == 20 * (counts["denoiser"] + counts["conditioner"]) + 4 * counts["first_stage"]

    low = describe(Path("configs/ldm/lora.yaml"), ["init_from=base", "data.train=my", *LORA])
    width = sum(tensor.numel() for tensor in load_lora("run/lora").tensors.values())
    assert low.parameters == counts | unused | {"lora": width} and low.trained == ("lora",)
    assert low.held.total == 20 * width + 4 * sum(counts.values())
    assert low.step(1).flops < full.step(1).flops
