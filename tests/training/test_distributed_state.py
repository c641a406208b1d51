"""A state on the disk: written by some processes in parts, read by as many or others, and never unpickled."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from shared_runs import SAVED, SIZES, STEPS, begin, go_on, together
from torch import Tensor

from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.core.files import sha256_of
from ldm.training.run_folder import RunFolder
from ldm.training.state import Progress, open_state, save_state

ALONE = World(0, 1, torch.device("cpu"))
PROGRESS = Progress(data="digest", scaler={}, texts={})
TENSORS = {"weight": torch.arange(12.0).reshape(3, 4), "optimizers/net/weight/step": torch.tensor(7.0)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that `shared_runs` makes."""
    folder = tmp_path_factory.mktemp("shared")
    for work in (begin, go_on):
        for size in SIZES:
            together(size, work, folder)
    return folder


def tensors_of(run: Path, step: int) -> dict[str, Tensor]:
    saved = open_state(run / "state", ALONE)
    assert saved and saved.step == step
    return saved.tensors()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", SIZES)
def test_resumed_by_as_many_processes_to_the_same_bits(runs: Path, number: int) -> None:
    whole, resumed = (tensors_of(runs / name, STEPS) for name in (f"whole-{number}", f"cut-{number}-by-{number}"))
    assert whole.keys() == resumed.keys()
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, resumed[name])] == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("saved_by, opened_by", [(n, m) for n in SIZES for m in SIZES if n != m])
def test_resumed_by_more_or_fewer_processes_nearly_so(runs: Path, saved_by: int, opened_by: int) -> None:
    """Losses, and all weights of a module together; a single weight without gradient moves by rounding only."""
    run, whole = runs / f"cut-{saved_by}-by-{opened_by}", runs / f"whole-{saved_by}"
    for row, wanted in zip(RunFolder(run, False).history(), RunFolder(whole, False).history(), strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    found, wanted = tensors_of(run, STEPS), tensors_of(whole, STEPS)
    assert found.keys() == wanted.keys()
    for part in sorted({name.rpartition("/")[0] for name in wanted if not name.startswith("optimizers/")}):
        here, there = (torch.cat([t[name].flatten() for name in sorted(t) if name.startswith(part)]).double() for t in (found, wanted))
        assert (here - there).norm() <= 1e-5 * there.norm(), part


@pytest.mark.timeout(600)
def test_each_process_writes_its_part(runs: Path) -> None:
    """Of about one size."""
    for size in SIZES:
        files = list((runs / f"cut-{size}" / "state" / f"step-{SAVED:08d}").glob("*.safetensors"))
        bytes_of: Counter[str] = Counter()
        for file in files:
            bytes_of[file.name.partition("-model")[0]] += file.stat().st_size
        assert len(bytes_of) == size
        assert min(bytes_of.values()) > 0.5 * sum(bytes_of.values()) / size


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    save_state(tmp_path / "state", 5, TENSORS, PROGRESS, ALONE)
    return tmp_path / "state" / "step-00000005"


def listed_anew(state: Path) -> None:
    """What somebody who wants a state to be read does after changing it."""
    marks = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in state.iterdir() if file.name != "manifest.json"
    }
    (state / "manifest.json").write_text(json.dumps({"step": 5, "files": marks}))


def test_a_pickle_in_a_state_is_not_read(state: Path, tmp_path: Path) -> None:
    """Neither where torch has one of its own, nor under the name of what is read."""
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    for name in (".metadata", "state.pt"):
        (state / name).write_bytes(bomb)
    listed_anew(state)
    saved = open_state(state.parent, ALONE)
    assert saved and torch.equal(saved.tensors()["weight"], TENSORS["weight"])
    for name in ("progress.json", next(state.glob("*.safetensors")).name):
        (state / name).write_bytes(bomb)
        listed_anew(state)
        with pytest.raises(UserError, match="step-00000005 cannot be read"):
            open_state(state.parent, ALONE)
    assert not (tmp_path / "exploded").exists()


SHARDS = "DCP_SHARDING_INFO"


@pytest.mark.parametrize(
    "tensors, offsets",
    [
        ({"weight": torch.zeros(3, 4)}, {"weight": [3, 0]}),
        ({"weight": torch.zeros(3, 4)}, {"weight": [-3, 0]}),
        ({"weight": torch.zeros(1, 4)}, {"weight": [2, 0]}),  # two rows are nowhere
        ({"weight": torch.zeros(3, 4)}, {"weight": "three"}),
        ({"weight": torch.zeros(3, 4)}, {}),
        ({"weight": torch.zeros(3, 4)}, "[" * 100_000),
        ({"weight": torch.zeros(3, 5)}, None),
        ({"weight": torch.zeros(3, 4, dtype=torch.float64)}, None),
        ({"weight": torch.zeros(3, 4), "other": torch.zeros(1)}, None),
        ({}, None),
    ],
)
def test_tensors_that_are_not_wanted_are_refused_in_one_line(state: Path, tensors: dict[str, Tensor], offsets: object) -> None:
    (file,) = state.glob("*.safetensors")
    step = {"optimizers/net/weight/step": torch.tensor(7.0)}
    if isinstance(offsets, dict):
        offsets = {name: {"saved_offsets": at} for name, at in offsets.items()} | {name: {"saved_offsets": []} for name in step}
    metadata = None if offsets is None else {SHARDS: offsets if isinstance(offsets, str) else json.dumps(offsets)}
    save_file(tensors | step, file, metadata)
    listed_anew(state)
    with pytest.raises(UserError, match=f"step-00000005 cannot be read .*init_from={state.parents[1]}/checkpoint") as refused:
        found = open_state(state.parent, ALONE)
        assert found
        found.read({name: torch.empty_like(tensor) for name, tensor in TENSORS.items()}, ALONE)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    "change", [{"data": 3}, {"lost": [[1]]}, {"lost": "x"}, {"undone": [0.5]}, {"scaler": {"scale": "x"}}, {"texts": []}, {"more": 1}]
)
def test_progress_of_another_form_is_refused_in_one_line(state: Path, change: dict[str, object]) -> None:
    (state / "progress.json").write_text(json.dumps(json.loads((state / "progress.json").read_text()) | change))
    listed_anew(state)
    with pytest.raises(UserError, match="step-00000005 cannot be read .*config key 'progress.json"):
        open_state(state.parent, ALONE)


def listed_as_earlier(state: Path) -> None:
    (state / "manifest.json").write_text(json.dumps({"step": 5, "sha256": sha256_of(state / "state.pt")}))


def test_damage_to_a_state_of_an_earlier_release_is_one_line(state: Path, tmp_path: Path) -> None:
    """Neither a truncated file nor objects of any class are read."""
    torch.save({"data": "digest"}, state / "state.pt")
    listed_as_earlier(state)
    with pytest.raises(UserError, match="step-00000005 cannot be read .KeyError: 'trained'.*init_from="):
        open_state(state.parent, ALONE)
    (state / "state.pt").write_bytes((state / "state.pt").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"step-00000005 was truncated or altered \(state.pt is not as it was written"):
        open_state(state.parent, ALONE)
    for bomb in (pickle.dumps(Bomb(tmp_path / "exploded")), b"", b"PK"):
        (state / "state.pt").write_bytes(bomb)
        listed_as_earlier(state)
        with pytest.raises(UserError, match="step-00000005 cannot be read") as refused:
            open_state(state.parent, ALONE)
        assert "\n" not in str(refused.value)
    torch.save(Bomb(tmp_path / "exploded"), state / "state.pt")
    listed_as_earlier(state)
    with pytest.raises(UserError, match="step-00000005 cannot be read"):
        open_state(state.parent, ALONE)
    assert not (tmp_path / "exploded").exists()


def test_two_states_are_kept_and_the_advice_names_the_other(tmp_path: Path) -> None:
    for step in (5, 7, 9):
        save_state(tmp_path / "state", step, TENSORS, PROGRESS, ALONE)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["step-00000007", "step-00000009"]
    newest = tmp_path / "state" / "step-00000009"
    (file,) = newest.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="step-00000009 was truncated or altered .*or remove it to go on from step-00000007 beside it"):
        open_state(tmp_path / "state", ALONE)
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    saved = open_state(tmp_path / "state", ALONE)
    assert saved and saved.step == 7


def test_tensors_are_spread_over_files_and_put_together_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a dozen small ones; in memory they may lie in another order of dimensions, and be read into another again."""
    monkeypatch.setattr("ldm.training.state.FILE_BYTES", 1000)
    tensors = {f"t{i}": torch.randn(2, 3, 4, 4 + i).to(memory_format=torch.channels_last) for i in range(12)}
    save_state(tmp_path / "state", 1, tensors, PROGRESS, ALONE)
    files = list((tmp_path / "state" / "step-00000001").glob("*.safetensors"))
    assert len(files) > 5 and sum(len(load_file(file)) for file in files) == 12
    saved = open_state(tmp_path / "state", ALONE)
    assert saved
    read = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    saved.read(read, ALONE)
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor) and torch.equal(saved.tensors()[name], tensor)
