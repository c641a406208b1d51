"""What a config may contain, and the messages for what it may not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldm.app.cli import Parser
from ldm.app.frozen_first_stage import FirstStageSource
from ldm.app.train_ldm import TrainLDM
from ldm.app.train_vae import TrainVAE
from ldm.checkpoints.model import LatentDiffusionSpec, SamplingDefaults
from ldm.config.loader import build, dump, load, read, to_short_form, to_yaml
from ldm.core.errors import UserError
from ldm.data.config import Augment
from ldm.samplers.pc import PredictorCorrector
from ldm.samplers.sampler import Sampler
from ldm.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "vae" / "emoji-f4.yaml"


def test_a_dumped_config_loads_as_the_same(tmp_path: Path) -> None:
    config = load(CONFIG, TrainVAE)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert load(again, TrainVAE) == config


def test_overrides_reach_nested_keys_and_interpolations(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("steps: 10\nbatch_size: 4\nsample_every: ${steps}\n")
    config = load(file, TrainConfig, ["steps=30", "optimizer.learning_rate=1e-5"])
    assert (config.sample_every, config.optimizer.learning_rate) == (30, 1e-5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", r"unknown config key 'train\.stepz'.*Did you mean 'train\.steps'"),
        ("train.optimizer.lr=1", "Did you mean 'train.optimizer.learning_rate'"),
        ("train.lr=1", "Did you mean 'train.optimizer.learning_rate'"),
        ("lr=1", "Did you mean 'train.optimizer.learning_rate'"),
        ("train.learning_rate=1", "Did you mean 'train.optimizer.learning_rate'"),
        ("learning_rat=1", "Did you mean 'train.optimizer.learning_rate'"),
        ("batch_size=1", "Did you mean 'train.batch_size'"),
        ("data.batch_size=1", "Did you mean 'train.batch_size'"),
        ("train.seed=1", "Did you mean 'seed'"),
        ("data.path=photos", "Did you mean 'data.train'"),
        ("data.disc_channels=1", "Did you mean 'loss.disc_channels'"),
        ("hue=1", "Did you mean 'data.augment.hue'"),
        ("train.output_dir=runs", "The run's folder is a flag: --run-dir DIR"),
        ("device=cpu", "Did you mean 'train.device'"),
        ("train.device=gpu", "unknown device 'gpu'; allowed: auto, cpu, cuda, cuda:N or mps"),
        ("train.zzz=1", r"'train\.zzz'; allowed: [^?]*$"),
        ("loss=l2", r"'loss': must be a mapping of pixel, .*, as in loss\.pixel=VALUE, got 'l2'"),
        ("train.steps=1.5", r"'train\.steps': must be a whole number, got 1\.5"),
        ("train.steps='10'", r"'train\.steps': must be a whole number, got '10'"),
        ("train.steps=1e30", r"'train\.steps': must be a whole number, got 1e\+30"),
        ("first_stage.kind=kll", r"first_stage.*'kll'; allowed: identity, kl, vq\. Did you mean 'kl'"),
        ("train.steps=few", r"'train\.steps': must be a whole number, got 'few'"),
        ("train.steps=true", r"'train\.steps': must be a whole number, got True"),
        ("train.optimizer.learning_rate=nan", r"learning_rate': must be a finite number"),
        ("train.steps=-1", r"'train'.*steps must be at least 1, got -1"),
        ("train.precision=fp8", r"'train\.precision': 'fp8' is not allowed; allowed: fp32, bf16, fp16"),
        ("train.compile=1", r"'train\.compile': must be true or false"),
        ("first_stage.multipliers=[1,a]", r"'first_stage\.multipliers\[1\]': must be a whole number"),
        ("steps", r"'steps': must read key=value"),
        ("data.size=66", r"data\.size \(66\) must be a multiple"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(CONFIG, TrainVAE, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("written", ["1e4", "10000.0", "1.0E+4", "10000"])
def test_a_whole_number_may_be_written_as_a_float(written: str) -> None:
    steps = load(CONFIG, TrainVAE, [f"train.steps={written}"]).train.steps
    assert steps == 10_000 and type(steps) is int
    assert build("langevin rounds=1e2", Sampler).rounds == 100  # PyYAML takes it for a text


def test_a_section_with_a_kind_has_the_short_form_of_a_family() -> None:
    assert build("identity", FirstStageSource) == FirstStageSource(kind="identity")
    assert build("checkpoint scale=0.5", FirstStageSource).scale == 0.5
    with pytest.raises(
        UserError, match=r"'first_stage': must be a kind \(checkpoint, identity\), or .*, as in first_stage.checkpoint=VALUE, got 'nowhere'"
    ):
        build("nowhere", FirstStageSource, "first_stage")


@pytest.mark.parametrize("kind", Sampler.kinds())
def test_a_kind_in_short_form_is_the_kind_in_yaml(kind: str) -> None:
    plain = build(kind, Sampler)
    assert plain == build({"kind": kind}, Sampler) == build(dump(plain), Sampler) and to_short_form(plain) == kind


def test_infinity_is_allowed_only_where_it_means_no_limit() -> None:
    for content in ("heun s_tmax=inf", {"kind": "heun", "s_tmax": float("inf")}):
        assert build(content, Sampler) == build("heun", Sampler)
    defaults = SamplingDefaults(sampler=build("ddim", Sampler), guidance_interval=(0.3, float("inf")))
    assert build(yaml.safe_load(to_yaml(defaults)), SamplingDefaults) == defaults
    for wrong in ("heun s_tmax=nan", "heun s_tmax=-inf", "heun s_churn=inf"):
        with pytest.raises(UserError, match="must be a finite number"):
            build(wrong, Sampler)


def test_settings_follow_the_kind() -> None:
    found = build("pc predictor=euler_maruyama corrections=0 snr=1e-1", Sampler)
    assert found == PredictorCorrector(predictor="euler_maruyama", corrections=0, snr=0.1)
    assert build(to_short_form(found), Sampler) == found and to_short_form(found).startswith(
        "pc predictor=euler_maruyama corrections=0 snr=0.1"
    )
    for wrong, message in {
        "pc corrections": r"'sampler': 'pc corrections' must read KIND key=value.*'corrections' is not key=value",
        "pc correction=1": r"unknown config key 'sampler\.correction'.*Did you mean 'sampler\.corrections'",
        "pc corrections=[": r"the value of 'corrections=\[' cannot be read",
        "pc corrections=few": r"'sampler\.corrections': must be a whole number, got 'few'",
        "": r"unknown kind at config key 'sampler'",
    }.items():
        with pytest.raises(UserError, match=message):
            build(wrong, Sampler, "sampler")


def test_a_missing_key_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'batch_size' is missing"):
        build({"steps": 3}, TrainConfig)
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "none.yaml", TrainConfig)


def test_a_kind_may_be_a_bare_name_and_never_a_python_path() -> None:
    assert dump(build({"sampler": "ddim"}, SamplingDefaults))["sampler"]["kind"] == "ddim"
    with pytest.raises(UserError, match="allowed: ddim, ddpm, dpmpp_2m"):
        build({"sampler": "os.system"}, SamplingDefaults)


def test_an_override_replaces_a_mapping_and_null_removes_an_entry() -> None:
    config = ROOT / "configs" / "ldm" / "emoji.yaml"
    plain = load(config, TrainLDM)
    assert plain.data.augment != Augment() and "mask" in plain.conditioning
    changed = load(config, TrainLDM, ["data.augment={}", "conditioning.mask=null"])
    assert changed.data.augment == Augment()
    assert set(changed.conditioning) == set(plain.conditioning) - {"mask"}
    assert load(config, TrainLDM, ["data.augment={flip: 0.25}"]).data.augment == Augment(flip=0.25)


def test_home_is_expanded_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text(CONFIG.read_text())
    config = load("~/a.yaml", TrainVAE, ["data.train=~/photos", "init_from=~/model"])
    assert (config.data.train, config.init_from) == (f"{tmp_path}/photos", f"{tmp_path}/model")
    parser = Parser("", "")
    parser.add_argument("--out", type=Path)
    assert [parser.parse_args([*words]).out for words in (["--out=~/x"], ["--out", "~/x"], ["--out", "a~/x"])] == [
        *(tmp_path / "x", tmp_path / "x", Path("a~/x"))
    ]


@pytest.mark.parametrize("text", ["${oc.env:HOME}", '"${${seed}:HOME}"', "[a, {b: '${oc.env:HOME}'}]", "x${oc.decode:1}y"])
def test_a_config_reads_nothing_but_itself(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(f"seed: oc.env\nname: {text}\n")
    with pytest.raises(UserError, match=r"is not read: only \$\{other\.key\} is"):
        read(tmp_path / "a.yaml")
    with pytest.raises(UserError, match=r"is not read"):
        read(CONFIG, [f"name={text.strip(chr(34))}"])


def test_a_file_cannot_allow_itself_to_start_commands(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(CONFIG.read_text().replace("data:\n", "data:\n  allow_remote: true\n"))
    with pytest.raises(UserError, match="data.allow_remote=true is allowed on the command line only"):
        load(tmp_path / "a.yaml", TrainVAE)
    assert load(CONFIG, TrainVAE, ["data.allow_remote=true"]).data.allow_remote


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", "", ".hidden", "a\0b", "a\nb", "x" * 200])
def test_a_runs_name_is_a_plain_name(name: str) -> None:
    content = read(CONFIG)
    with pytest.raises(UserError, match="must be a plain name|without the character NUL"):
        build(content | {"name": name}, TrainVAE)


STRANGE = (
    None,
    [],
    {},
    [[]],
    {"kind": []},
    {"kind": {}},
    {"kind": None},
    2**70,
    -(2**70),
    10**5000,
    -1,
    1e308,
    float("nan"),
    "a\0b",
    "\ud800",
    {None: 1},
)


def test_a_strange_value_anywhere_is_refused_in_one_line_or_fits() -> None:
    plain = yaml.safe_load((ROOT / "checkpoints" / "emoji" / "config.yaml").read_text())
    refused = 0
    for path in _paths(plain):
        for value in STRANGE:
            try:
                build(_with(plain, path, value), LatentDiffusionSpec)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 3000
    assert refused > 1000


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from _paths(value, (*path, key))


def _with(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    tree = tree.copy()
    tree[path[0]] = _with(tree[path[0]], path[1:], value)
    return tree


TEXTS = (
    "[]",
    "3",
    "a: [",
    "a: 2020-99-99",
    "a: &x [*x]",
    "? [1]\n: 2",
    "a: !!timestamp x",
    "a: !!int x",
    "\x00",
    "a: ${b.c}",
    "a: " + "[" * 20_000,
    "a: " + "9" * 5000,
)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError) as refused:
        load(tmp_path / "a.yaml", TrainConfig)
    assert "\n" not in str(refused.value)
