"""`scripts/env.py`: what this machine has."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import get_args

import psutil
import torch
from packaging.requirements import Requirement

from ldm.core.device import devices
from ldm.core.errors import UserError
from ldm.core.files import sha256_of
from ldm.core.precision import DTYPES, check_precision
from ldm.core.settings import Precision
from ldm.core.shipped import ROOT
from ldm.core.version import __version__
from ldm.networks.attention.attend import available, choose
from ldm.pretrained.cache import COMMAND, cache_folder
from ldm.pretrained.table import TABLE

DISTRIBUTION = "ldm-toolkit"
PROBED = (1, 4, 1024, 32)  # batch, heads, positions and width of a head: an attention level of a UNet on latents of 32x32
GB = 1e9
NETWORK_ADVICE = {
    "verified": "verified",
    "missing": f"missing; get it with: {COMMAND} {{name}}",
    "altered": f"altered; delete it, and get it with: {COMMAND} {{name}}",
}


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Attention in a precision.

    Attributes:
        auto: the backend that `attention_backend: auto` takes; None = the device does not compute in this precision.
        runs: all backends that run.
        trains: those of them whose backward pass runs too.
    """

    auto: str | None = None
    runs: tuple[str, ...] = ()
    trains: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Device:
    """
    Attributes:
        what: it is, in words.
        memory, free: bytes; free is None where the system does not say.
        attention: by precision.
    """

    name: str
    what: str
    memory: int
    free: int | None
    attention: dict[Precision, Kernels]


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A pretrained network: `verified` in the cache, `altered` there, or `missing`."""

    name: str
    state: str


@dataclass(frozen=True, kw_only=True)
class Package:
    """
    Attributes:
        extra: that wants it; empty = the core does.
        tested: its range.
        version: None = not installed.
        state: inside or outside that range, or not installed.
    """

    name: str
    extra: str
    tested: str
    version: str | None
    state: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """All of it; `place` is the package's folder, `cuda` the version that torch was built for."""

    version: str
    place: str
    python: str
    system: str
    cuda: str | None
    cache: str
    devices: list[Device]
    pretrained: list[Pretrained]
    packages: list[Package]


def main(options: argparse.Namespace) -> None:
    """Prints it all."""
    found = Machine(
        version=__version__,
        place=str(Path(__file__).parents[1]),
        python=platform.python_version(),
        system=platform.platform(),
        cuda=torch.version.cuda,
        cache=str(cache_folder()),
        devices=find_devices(),
        pretrained=[*pretrained()],
        packages=[*packages()],
    )
    print(json.dumps(asdict(found), indent=2) if options.json else "\n".join(lines(found)))


def find_devices() -> list[Device]:
    """All devices, with the kernels that were tried on each."""
    return [_device(name) for name in devices()]


def _device(name: str) -> Device:
    device = torch.device(name)
    free: int | None
    if device.type == "cuda":
        free, memory = torch.cuda.mem_get_info(device)
        major, minor = torch.cuda.get_device_capability(device)
        what = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
    elif device.type == "mps":
        what, memory, free = "Apple GPU", torch.mps.recommended_max_memory(), None
    else:
        counted = psutil.virtual_memory()
        memory, free = counted.total, counted.available
        cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
        what = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {cores}"
    return Device(name=name, what=what, memory=memory, free=free, attention={each: kernels(device, each) for each in get_args(Precision)})


def kernels(device: torch.device, precision: Precision) -> Kernels:
    """What runs on a device, tried on small tensors."""
    try:
        check_precision(device, precision)
    except UserError:
        return Kernels()
    part = torch.zeros(PROBED, device=device, dtype=DTYPES[precision])
    learnt = part.clone().requires_grad_()
    return Kernels(auto=choose(part, part, part), runs=available(part, part, part), trains=available(learnt, learnt, learnt))


def pretrained() -> Iterator[Pretrained]:
    """All that the table names."""
    for name, entry in TABLE.items():
        path = cache_folder() / entry.file
        is_there = path.is_file()
        yield Pretrained(name=name, state="missing" if not is_there else "verified" if sha256_of(path) == entry.sha256 else "altered")


def packages() -> Iterator[Package]:
    """What the tool requires, with what is installed."""
    for extra, line in _requirements():
        requirement = Requirement(line)
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        state = "not installed" if version is None else "inside" if requirement.specifier.contains(version, prereleases=True) else "outside"
        yield Package(name=requirement.name, extra=extra, tested=line.removeprefix(requirement.name), version=version, state=state)


def _requirements() -> list[tuple[str, str]]:
    """(extra, requirement) of all packages: a checkout's own, which an environment made earlier may not know; else those of the wheel."""
    own = ROOT / "pyproject.toml"
    if own.is_file():
        project = tomllib.loads(own.read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"].items()
        return [("", line) for line in project["dependencies"]] + [(extra, line) for extra, wanted in extras for line in wanted]
    found = []
    for line in metadata.requires(DISTRIBUTION) or ():
        plain, _, marker = line.partition(";")
        found.append((marker.partition("extra == ")[2].strip(" '\""), plain.strip()))
    return found


def lines(machine: Machine) -> Iterator[str]:
    """The same to read."""
    yield f"ldm {machine.version} in {machine.place}; Python {machine.python} on {machine.system}; torch for CUDA {machine.cuda or '-'}"
    yield "\ndevices, and the attention that runs on them"
    for device in machine.devices:
        free = "" if device.free is None else f", {device.free / GB:.1f} GB free"
        yield f"  {device.name}: {device.what}; {device.memory / GB:.1f} GB of memory{free}"
        for precision, found in device.attention.items():
            yield f"    {precision}  {_in_words(found)}"
    yield f"\npretrained networks in {machine.cache}"
    for network in machine.pretrained:
        yield f"  {network.name:<24}{NETWORK_ADVICE[network.state].format(name=network.name)}"
    yield "\npackages, and the range that was tested"
    for package in machine.packages:
        extra = f" (extra {package.extra})" if package.extra else ""
        warning = "" if package.state == "inside" or (package.extra and package.version is None) else f"  <- {package.state}"
        yield f"  {package.name:<24}{package.version or '-':<16}{package.tested}{extra}{warning}"


def _in_words(found: Kernels) -> str:
    if found.auto is None:
        return "does not run"
    trains = "" if found.trains == found.runs else f", in training {', '.join(found.trains)}"
    return f"auto takes {found.auto}; there are {', '.join(found.runs)}{trains}"
