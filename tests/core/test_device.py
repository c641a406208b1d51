"""`--device` and `train.device`: which device a name stands for, and what is refused."""

from __future__ import annotations

import functools
from contextlib import nullcontext

import pytest
import torch

from ldm.app.arguments.training import parse
from ldm.core.device import devices, find_device
from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.core.precision import autocast, check_precision, without_autocast
from ldm.training.config import TrainConfig

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> functools.partial[None]:
    """`machine(gpus=2, apple=True)`: what torch says of the machine."""

    def has(gpus: int = 0, apple: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)

    return functools.partial(has)


@pytest.mark.parametrize(
    "gpus, apple, there, first",
    [
        (2, True, ("cuda:0", "cuda:1", "mps", "cpu"), "cuda"),
        (0, True, ("mps", "cpu"), "mps"),
        (0, False, ("cpu",), "cpu"),
    ],
)
def test_auto_is_cuda_then_apples_gpu_then_the_cpu(machine, gpus: int, apple: bool, there: tuple[str, ...], first: str) -> None:
    machine(gpus=gpus, apple=apple)
    assert devices() == there and find_device("auto") == find_device() == torch.device(first)
    assert all(find_device(name) == torch.device(name) for name in there)


def test_a_device_that_is_not_there_is_refused_with_those_that_are(machine) -> None:
    machine(gpus=1)
    assert find_device("cuda") == torch.device("cuda")
    for name in ("cuda:1", "mps"):
        with pytest.raises(UserError, match=f"device '{name}' is not available here; available: cuda:0, cpu. Name one of these, or auto$"):
            find_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "CUDA", "cpu:0", "", "meta", "auto "])
def test_what_is_no_devices_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"unknown device '{name}'; allowed: auto, cpu, cuda, cuda:N or mps"):
        find_device(name)
    with pytest.raises(UserError, match="unknown device"):
        TrainConfig(steps=1, batch_size=1, device=name)


def test_each_process_takes_the_gpu_of_its_number(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are more processes than GPUs, the first without one says so."""
    monkeypatch.setattr(World, "__init__", lambda self, rank, size, device, host=None: object.__setattr__(self, "device", device))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "new_group", lambda **_: torch.distributed.ProcessGroup(0, 2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    machine(gpus=2)
    for rank, name in ((0, "auto"), (1, "auto"), (1, "cuda")):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert World.join(name).device == torch.device("cuda", rank)
    assert World.join("cpu").device == CPU
    with pytest.raises(
        UserError, match="several processes cannot share device 'cuda:1': name cuda, of which each takes its own GPU, or cpu"
    ):
        World.join("cuda:1")
    machine(gpus=1)
    with pytest.raises(UserError, match="device 'cuda:1' is not available here; available: cuda:0, cpu"):
        World.join("auto")
    machine(apple=True)
    assert World.join("auto").device == CPU
    with pytest.raises(UserError, match="several processes cannot share device 'mps'"):
        World.join("mps")


def test_a_precision_that_torch_would_only_warn_about_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch does on Apple's GPUs before macOS 14, in bf16."""
    check_precision(CPU, "bf16")
    monkeypatch.setattr("ldm.core.precision.autocast", lambda device, precision: nullcontext())
    check_precision(CPU, "fp32")
    with pytest.raises(UserError, match=r"precision bf16 does not run on cpu \(torch would compute in float32\); use fp32, or fp16 if"):
        check_precision(CPU, "bf16")


def test_a_precision_that_torch_refuses_is_refused_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device, precision: str) -> None:
        raise RuntimeError("this GPU has no such arithmetic\nat line 7")

    monkeypatch.setattr("ldm.core.precision.autocast", refuse)
    with pytest.raises(UserError, match=r"precision fp16 does not run on cpu \(this GPU has no such arithmetic\); use fp32, or bf16 if"):
        check_precision(CPU, "fp16")


def test_autocast_is_that_of_the_device(elsewhere: torch.device) -> None:
    with autocast(elsewhere, "fp16"):
        assert torch.is_autocast_enabled("mps") and not torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("mps") == torch.float16
        with without_autocast(elsewhere):
            assert not torch.is_autocast_enabled("mps")


def test_the_flag_of_a_training_is_its_key() -> None:
    def overrides(*words: str) -> list[str]:
        return list(parse(words, "", "run.yaml", "").overrides)

    assert overrides("--device", "cuda:1", "seed=1") == ["seed=1", "train.device=cuda:1"]
    assert overrides("seed=1") == ["seed=1"]
    with pytest.raises(UserError, match="--device and train.device= are the same setting: give one of them"):
        overrides("train.device=cpu", "--device", "cpu")
    with pytest.raises(UserError, match="argument --device: unknown device 'gpu'; allowed: auto, cpu, cuda, cuda:N or mps"):
        overrides("--device", "gpu")
