"""Weights, moments and averages of which each process has a part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shared_runs import RESUMED, SAVED, STEPS, begin_diffusion, go_on_with_diffusion, together
from tasks import autoencoder_task, classifier_task, diffusion_task, shared_out_task, train_config
from torch import Tensor, nn

from ldm.app.held import Held
from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.training.config import ParallelConfig
from ldm.training.parallel import blocks_of
from ldm.training.run_folder import RunFolder
from ldm.training.state import open_state
from ldm.training.task import Pass

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that `shared_runs` makes of diffusion models."""
    folder = tmp_path_factory.mktemp("shared-out")
    for size in (2, 3):
        together(size, begin_diffusion, folder)
    for size in (1, 2, 3):
        together(size, go_on_with_diffusion, folder)
    return folder


def tensors_of(run: Path, step: int) -> dict[str, Tensor]:
    saved = open_state(run / "state", ALONE)
    assert saved and saved.step == step
    return saved.tensors()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [2, 3])
def test_resumed_by_as_many_processes_to_the_same_bits(runs: Path, number: int) -> None:
    whole, resumed = (tensors_of(runs / f"{name}fsdp-{number}", STEPS) for name in ("whole-", f"fsdp-{number}-by-"))
    assert whole.keys() == resumed.keys()
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, resumed[name])] == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("cut, kind, size", RESUMED)
def test_resumed_by_others_nearly_so(runs: Path, cut: str, kind: str, size: int) -> None:
    """By more or fewer processes, with weights shared out or all in each: losses, and all weights of a module together."""
    run, whole = runs / f"{cut}-by-{kind}-{size}", runs / f"whole-fsdp-{cut[-1]}"
    for row, wanted in zip(RunFolder(run, False).history(), RunFolder(whole, False).history(), strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert RunFolder(run, False).history()[-1]["train_eval/loss"] == pytest.approx(row["train_eval/loss"], rel=1e-5)
    found, wanted = tensors_of(run, STEPS), tensors_of(whole, STEPS)
    assert found.keys() == wanted.keys()
    for part in ("trained/denoiser/", "trained/conditioner/", "averaged/denoiser/", "averaged/conditioner/"):
        here, there = (torch.cat([t[name].flatten() for name in sorted(t) if name.startswith(part)]).double() for t in (found, wanted))
        assert (here - there).norm() <= 1e-5 * there.norm(), part


@pytest.mark.timeout(600)
@pytest.mark.parametrize("run", ["whole-fsdp-2", "whole-fsdp-3", "fsdp-3-by-ddp-2", "fsdp-3-by-fsdp-1"])
def test_the_checkpoint_has_the_whole_average(runs: Path, run: str) -> None:
    averages = {
        name.removeprefix("averaged/"): tensor for name, tensor in tensors_of(runs / run, STEPS).items() if name.startswith("averaged/")
    }
    parts = {path.stem: load_file(path) for path in (runs / run / "checkpoint").glob("*.safetensors")}
    stored = {f"{part}/{name}": tensor for part in ("denoiser", "conditioner") for name, tensor in parts[part].items()}
    assert stored.keys() == averages.keys()
    assert [name for name, tensor in averages.items() if not torch.equal(tensor, stored[name])] == []


@pytest.mark.timeout(600)
def test_each_process_saves_its_part(runs: Path) -> None:
    """Of a tensor that is shared out, and of about the same size."""
    for size in (2, 3):
        sizes = [0] * size
        for file in (runs / f"cut-fsdp-{size}" / "state" / f"step-{SAVED:08d}").glob("*.safetensors"):
            sizes[int(file.name.split("-")[1]) - 1] += file.stat().st_size
        assert min(sizes) > 0.7 * sum(sizes) / size


@pytest.mark.timeout(600)
def test_describe_says_what_each_process_holds(runs: Path) -> None:
    """Within 5 % of the first's, which may have a row more than others; it is about a third of what one process alone holds."""
    trained = diffusion_task(ALONE, train_config()).trained
    held = Held.of({name: sum(p.numel() for p in module.parameters()) for name, module in trained.items()}, tuple(trained))
    said = held.shared_out([block for module in trained.values() for block in blocks_of(module)], 3)
    of_all = json.loads((runs / "bytes.json").read_text())
    for kind, bytes_ in (
        ("trained", said.weights),
        ("optimizers", said.optimizer),
        ("averaged", said.average),
        ("gradients", said.gradients),
    ):
        first, *others = (found[kind] for found in of_all)
        assert first == pytest.approx(bytes_, rel=0.05) and max(others) <= first, kind
    assert said.weights < 0.4 * held.weights


@pytest.mark.timeout(600)
def test_a_weight_of_which_a_process_has_nothing(runs: Path) -> None:
    numbers = torch.arange(20.0).reshape(2, 2, 5)
    assert all(map(torch.equal, torch.load(runs / "few-rows" / "found.pt", weights_only=True), numbers))


def test_blocks_are_what_is_computed_as_a_whole_and_nearly_all_weights() -> None:
    network = diffusion_task(ALONE, train_config()).trained["denoiser"]
    blocks = list(blocks_of(network))
    assert [id(block) for block in blocks] == [id(m) for m in [*network.input_blocks, network.middle_block, *network.output_blocks]]
    assert sum(p.numel() for b in blocks for p in b.parameters()) > 0.9 * sum(p.numel() for p in network.parameters())


def test_blocks_within_blocks_are_not_blocks_of_their_own() -> None:
    inner = nn.ModuleList([nn.Linear(1, 1)])
    outer = nn.Sequential(nn.ModuleDict({"layers": nn.ModuleList([nn.Sequential(inner), nn.Linear(2, 2)])}), nn.Linear(3, 3))
    assert list(blocks_of(outer)) == list(outer[0]["layers"])


def test_all_processes_compute_equally_often() -> None:
    """Shares of 7 samples are 3, 2 and 2: in three micro-batches of one sample each, two processes would wait for a third in vain."""
    scaler = torch.amp.GradScaler(enabled=False)
    world = World(0, 3, torch.device("cpu"))
    step = Pass(step=1, world=world, autocast_dtype=None, scaler=scaler, batch_size=7, accumulate=3, shared={})
    assert (step.micro_batches, replace(step, accumulate=1).micro_batches, replace(step, world=ALONE).micro_batches) == (2, 1, 3)


def test_one_process_has_all_of_it_itself() -> None:
    task = shared_out_task(ALONE, train_config())
    assert {type(p) for p in task.groups["denoiser"]} == {nn.Parameter}


@pytest.mark.parametrize("make", [autoencoder_task, classifier_task])
def test_stage_one_and_classifiers_are_not_shared_out(make) -> None:
    config = train_config(parallel=ParallelConfig(kind="fsdp"))
    with pytest.raises(UserError, match="train.parallel=fsdp is for denoisers .*leave it at ddp"):
        make(ALONE, config)
