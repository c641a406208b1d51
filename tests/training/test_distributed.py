"""One process and several see the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import psutil
import pytest
import torch
from tasks import OF_SEVERAL, evaluation, gradients_of_a_step

from ldm.core.distributed import World
from ldm.training.parallel import SharedGradients

ALONE = World(0, 1, torch.device("cpu"))
WORKER = Path(__file__).with_name("tasks.py")


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """What 2 and 3 processes of torchrun found; 7 samples divide by neither."""
    folder = tmp_path_factory.mktemp(f"world-{request.param}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={request.param}", str(WORKER), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder, request.param


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("which", OF_SEVERAL)
def test_the_summed_gradient_is_the_single_process_one(ranks: tuple[Path, int], which: str, parts: int, tmp_path: Path) -> None:
    """Adaptive weight, discriminator, condition drops, masks, times, noises and missing labels included; all ranks end with the same.
    So do ranks that add up the gradients of two parts of their shares."""
    folder, size = ranks
    alone = gradients_of_a_step(which, ALONE, tmp_path)
    for rank in range(size):
        found = torch.load(folder / f"{which}-{parts}-{rank}.pt", weights_only=True)
        assert found.keys() == alone.keys()
        for name, wanted in alone.items():
            torch.testing.assert_close(found[name], wanted, rtol=2e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("which", OF_SEVERAL)
def test_an_evaluation_has_the_numbers_of_a_single_process(ranks: tuple[Path, int], which: str, tmp_path: Path) -> None:
    """On every process: what is logged, the sample grid, and the latent normalization that a checkpoint is saved with."""
    folder, size = ranks
    alone = evaluation(which, ALONE, tmp_path)
    for rank in range(size):
        found = torch.load(folder / f"evaluation-{which}-{rank}.pt", weights_only=True)
        assert found.keys() == alone.keys()
        for name, wanted in alone.items():
            torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_a_weight_that_one_process_does_not_use(ranks: tuple[Path, int]) -> None:
    """As one whose condition is dropped from all of its samples: all processes have the others' gradient; one that none uses has none."""
    folder, size = ranks
    for rank in range(size):
        assert torch.load(folder / f"half-used-{rank}.pt", weights_only=True).tolist() == pytest.approx([3, 5 * (size - 1)])


def test_only_the_last_of_a_steps_micro_batches_adds_up_over_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum would be the same if each did, and take as many messages."""
    calls: list[str] = []

    class Parallel(torch.nn.Module):
        def __init__(self, module: torch.nn.Module, **options: object) -> None:
            super().__init__()
            self.module = module

        @contextmanager
        def no_sync(self) -> Iterator[None]:
            calls.append("own")
            yield

        def forward(self, work: Callable[[], int]) -> int:
            calls.append("forward")
            return cast(int, self.module(work))

    monkeypatch.setattr("ldm.training.parallel.DistributedDataParallel", Parallel)
    shared = SharedGradients([torch.nn.Parameter(torch.zeros(1))], World(0, 2, torch.device("cpu")))
    assert [shared.forward(lambda: 3, is_last=False), shared.forward(lambda: 4, is_last=True)] == [3, 4]
    assert calls == ["own", "forward", "forward"]


def test_a_flag_of_any_rank_is_seen_by_all(ranks: tuple[Path, int]) -> None:
    folder, size = ranks
    for rank in range(size):
        assert torch.load(folder / f"flags-{rank}.pt", weights_only=True) == {"none": False, "one": True, "all": True}


def test_a_flag_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies on the CPU and goes through the host's group, if the device has another."""
    sent = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: sent.append((tensor.device.type, group)))
    group = cast(torch.distributed.ProcessGroup, object())
    assert World(0, 2, torch.device("meta"), group).any(True)
    assert sent == [("cpu", group)]


def test_a_process_by_itself_joins_nothing() -> None:
    world = World.join()
    assert (world.rank, world.size, world.is_first) == (0, 1, True) and not torch.distributed.is_initialized()
    assert world.any(True) and not world.any(False)
    world.leave()


@pytest.mark.parametrize("which", OF_SEVERAL)
def test_micro_batches_make_the_same_gradient(which: str, tmp_path: Path) -> None:
    """The adaptive weight too is that of the whole batch."""
    whole = gradients_of_a_step(which, ALONE, tmp_path)
    parts = gradients_of_a_step(which, ALONE, tmp_path, accumulate=3)
    assert parts.keys() == whole.keys()
    for name, wanted in whole.items():
        torch.testing.assert_close(parts[name], wanted, rtol=2e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_sample_belongs_to_one_rank(size: int) -> None:
    parts = [World(rank, size, torch.device("cpu")).part(7) for rank in range(size)]
    assert [i for start, stop in parts for i in range(start, stop)] == list(range(7))
    assert max(b - a for a, b in parts) - min(b - a for a, b in parts) <= 1


@pytest.mark.parametrize("obeys", [True, False])
def test_workers_end_with_their_torchrun(tmp_path: Path, obeys: bool) -> None:
    """Its SIGKILL, which it cannot pass on: they are asked to stop, and what does not stop in time is killed."""
    worker = f"""
import os, signal, sys, time
from ldm.core import distributed
distributed.GRACE = 0.1
def stop(number, frame):
    open(sys.argv[1] + "/asked", "w").close()
    if {obeys}:
        sys.exit()
signal.signal(signal.SIGTERM, stop)
distributed.World.join()
print(os.getpid(), flush=True)
while True:
    time.sleep(1)
"""
    torchrun = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}, sys.argv[1]])"
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "1", "CUDA_VISIBLE_DEVICES": ""}
    parent = subprocess.Popen([sys.executable, "-c", torchrun, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    child.wait(timeout=60)
    assert (tmp_path / "asked").exists()
