"""`scripts/env.py`: what it says of the machine is what the rest of the toolkit finds there."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from ldm.app import env
from ldm.app.arguments import env as arguments
from ldm.networks.attention import attend, reference
from ldm.pretrained.table import TABLE


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Its JSON, and its text, on an empty cache but for one file that is altered."""
    monkeypatch.setenv("LDM_CACHE", str(tmp_path))
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / TABLE["lpips-vgg16"].file).write_bytes(b"other")

    def call():
        found = []
        for flags in (["--json"], []):
            arguments.main(flags)
            found.append(capsys.readouterr().out)
        return json.loads(found[0]), found[1]

    return call


def test_kernels_are_those_that_attention_finds(said, monkeypatch) -> None:
    """By a stand-in that runs nowhere, one that runs in float32 only, and one that has no backward pass."""

    def single(q, k, v, mask):
        if q.dtype != torch.float32:
            raise RuntimeError("no such kernel")
        return reference.math(q, k, v, mask)

    def forward_only(q, k, v, mask):
        if q.requires_grad:
            raise NotImplementedError("no backward")
        return reference.math(q, k, v, mask)

    def nowhere(q, k, v, mask):
        raise ImportError("not built")

    for name, stand_in in {"single": single, "forward_only": forward_only, "nowhere": nowhere}.items():
        monkeypatch.setitem(attend._COMPUTE, name, stand_in)
    found, text = said()
    kernels = {device["name"]: device["attention"] for device in found["devices"]}["cpu"]
    assert set(kernels["fp32"]["runs"]) >= {"math", "sdpa", "single", "forward_only"} and "nowhere" not in kernels["fp32"]["runs"]
    assert "single" in kernels["fp32"]["trains"] and "forward_only" not in kernels["fp32"]["trains"]
    assert "single" not in kernels["bf16"]["runs"]
    assert "    fp32  auto takes sdpa; there are math, sdpa" in text and ", in training math, sdpa" in text


def test_a_precision_that_the_device_lacks_has_no_kernels(monkeypatch) -> None:
    def refuse(device, precision):
        raise env.UserError("not here")

    monkeypatch.setattr(env, "check_precision", refuse)
    assert env.kernels(torch.device("cpu"), "bf16") == env.Kernels()


def test_pretrained_networks_are_verified_missing_or_altered(said) -> None:
    found, text = said()
    states = {network["name"]: network["state"] for network in found["pretrained"]}
    assert states == dict.fromkeys(TABLE, "missing") | {"lpips-vgg16": "altered"}
    assert "altered; delete it, and get it with: python -m ldm.pretrained lpips-vgg16" in text
    assert "missing; get it with: python -m ldm.pretrained resnet50" in text


def test_packages_are_inside_or_outside_the_tested_range_or_not_installed(said, monkeypatch) -> None:
    known = metadata.version

    def version(name: str) -> str:
        if name == "tqdm":
            raise metadata.PackageNotFoundError(name)
        return {"numpy": "1.0", "torch": "2.14.1+cu130", "pillow": "99.1"}.get(name) or known(name)

    monkeypatch.setattr(metadata, "version", version)
    found, text = said()
    states = {package["name"]: package["state"] for package in found["packages"]}
    assert [states[name] for name in ("numpy", "torch", "pillow", "tqdm", "einops")] == [
        "outside",
        "inside",
        "outside",
        "not installed",
        "inside",
    ]
    marked = [line.split()[0] for line in text.splitlines() if "<-" in line]
    assert {"numpy", "pillow", "tqdm"} <= set(marked) and "torch" not in marked


def test_the_wheel_and_the_checkout_require_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a wheel's metadata an extra is a marker (PEP 508)."""
    own = env._requirements()
    wheel = [line if not extra else f"{line}; extra == '{extra}'" for extra, line in own]
    assert {Requirement(line).name for line in wheel} > {"torch", "argcomplete"}
    monkeypatch.setattr(env, "ROOT", tmp_path)
    monkeypatch.setattr(metadata, "requires", {"ldm-toolkit": wheel}.get)
    assert env._requirements() == own
