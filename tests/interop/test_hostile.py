"""Hostile files by the command line: one clear line, exit code 2, no code run and nothing written."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from interop_rows import ROWS, write_row
from torch import Tensor

from ldm.app import cli
from ldm.app.arguments import convert
from ldm.interop.compvis.export import export_compvis
from ldm.interop.diffusers.export import export_diffusers
from ldm.interop.foreign_file import read_tensors
from ldm.interop.ours import Ours


@pytest.fixture(scope="module")
def honest(module_folder: Path) -> Path:
    """A CompVis file with its YAML, and a diffusers folder; read-only."""
    ours = Ours.open(write_row(module_folder / "ours", ROWS["faces"]))
    export_compvis(ours, module_folder / "model.ckpt")
    export_diffusers(ours, module_folder / "folder")
    return module_folder


@pytest.fixture
def home(honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that the test may damage; the current folder."""
    for name in ("model.ckpt", "model.yaml"):
        shutil.copy(honest / name, tmp_path / name)
    shutil.copytree(honest / "folder", tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """The one-line error of an import."""

    def run(arguments: str) -> str:
        before = {path: path.lstat().st_mtime_ns for path in home.rglob("*")}
        monkeypatch.setattr(sys, "argv", ["convert.py", "import", *arguments.split(), "--out", "again"])
        with pytest.raises(SystemExit) as exit_:
            cli.run(convert.main)
        printed = capsys.readouterr()
        assert exit_.value.code == 2 and not printed.out, printed
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and len(printed.err) < 600
        assert {path: path.lstat().st_mtime_ns for path in home.rglob("*")} == before
        return printed.err

    return run


class Command:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def state(home: Path) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in read_tensors(home / "model.ckpt").items()}


def climb_out(home: Path) -> None:
    with zipfile.ZipFile(home / "model.ckpt", "a") as archive:
        archive.writestr("../../evil", b"evil")


BIAS = "model.diffusion_model.out.2.bias"


def flip_a_bit(home: Path) -> None:
    """Of a weight, in the middle of the largest entry."""
    with zipfile.ZipFile(home / "model.ckpt") as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray((home / "model.ckpt").read_bytes())
    content[entry.header_offset + entry.file_size // 2] ^= 1
    (home / "model.ckpt").write_bytes(content)


class Huge:
    """Takes 4 GB when it is unpickled."""

    def __reduce__(self):
        return bytearray, (1 << 32,)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "runs a command": (lambda home: torch.save({"state_dict": state(home), "more": Command()}, home / "model.ckpt"), "nothing was run"),
    "zip slip": (climb_out, "outside of itself"),
    "a flipped bit": (flip_a_bit, "is not what was written there (checksum)"),
    "takes memory": (lambda home: torch.save({"state_dict": state(home), "more": Huge()}, home / "model.ckpt"), "names bytearray"),
    "truncated": (lambda home: os.truncate(home / "model.ckpt", 50_000), "truncated"),
    "empty": (lambda home: os.truncate(home / "model.ckpt", 0), "truncated"),
    "one of another shape": (
        lambda home: torch.save(state(home) | {BIAS: torch.zeros(5)}, home / "model.ckpt"),
        "the config requires (3,)",
    ),
    "one giant more": (lambda home: torch.save(state(home) | {"giant": torch.zeros(1 << 22)}, home / "model.ckpt"), "giant, of shape"),
    "one that claims to be giant": (
        lambda home: torch.save(state(home) | {BIAS: torch.zeros(1).expand(2**40)}, home / "model.ckpt"),
        "repeats fewer numbers than it has",
    ),
    "8-bit numbers": (
        lambda home: torch.save(state(home) | {BIAS: torch.zeros(3).to(torch.float8_e4m3fn)}, home / "model.ckpt"),
        "holds float8_e4m3fn; weights are of float16",
    ),
    "no names": (lambda home: torch.save({3: torch.zeros(1)}, home / "model.ckpt"), "'3' is not a tensor's name"),
    "no numbers": (lambda home: torch.save({"a": torch.zeros(3, device="meta")}, home / "model.ckpt"), "a is not an ordinary tensor"),
}


@pytest.mark.parametrize("change, message", FILES.values(), ids=FILES)
def test_a_file(change: Callable[[Path], object], message: str, home: Path, refused: Callable[[str], str]):
    change(home)
    assert message in refused("model.ckpt --config model.yaml")
    assert not (home / "ran").exists() and not (home.parent / "evil").exists()


def safetensors_file(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "longer than the file": safetensors_file(b"{}", length=2**62),
    "a tensor beyond the end": safetensors_file({"a": entry([1000], 0, 4000)}, bytes(16)),
    "tensors over each other": safetensors_file({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "a shape larger than its bytes": safetensors_file({"a": entry([2**40], 0, 8)}, bytes(8)),
    "a shape that overflows": safetensors_file({"a": entry([2**62, 2**62], 0, 8)}, bytes(8)),
    "deep lists": safetensors_file(b"[" * 100_000),
    "an unknown dtype": safetensors_file({"a": entry([8], 0, 6, "F6_E2M3")}, bytes(6)),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_false_header_of_safetensors(content: bytes, home: Path, refused: Callable[[str], str]):
    (home / "model.safetensors").write_bytes(content)
    assert "cannot be read" in refused("model.safetensors --config model.yaml")


BOMB = "a: &a [1, 1]\n" + "".join(f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True))
CONFIGS: dict[str, tuple[Callable[[str], str], str]] = {
    "repeats itself": (lambda text: BOMB + text, "repeats a part by name (*a)"),
    "makes an object": (lambda text: "a: !!python/object/apply:os.system ['touch ran']\n" + text, "only plain values are read"),
    "reads the environment": (lambda text: text + "more: ${oc.env:HOME}\n", "only plain values are read"),
    "deep lists": (lambda text: "a: " + "[" * 1000 + "]" * 1000 + "\n" + text, "more than 50 mappings and lists"),
    "long words": (lambda text: f"a: {'b' * 2000}\n" + text, "only plain values are read"),
    "no text": (lambda text: "\udcff", "is not text"),
    "a list": (lambda text: "- 1\n", "must be a mapping"),
    "no yaml": (lambda text: "a: [", "expected"),
    "layers without end": (lambda text: text.replace("num_res_blocks: 1", "num_res_blocks: 1000000"), "at most 128 levels"),
    "a giant network": (lambda text: text.replace("model_channels: 64", "model_channels: 64000000"), "numbers up to 1048576"),
    "a negative network": (lambda text: text.replace("in_channels: 3", "in_channels: -3", 1), "no network can be built"),
    "steps without end": (lambda text: text.replace("timesteps: 1000", "timesteps: 10000000000000"), "numbers up to 1048576"),
    "parameters that are none": (
        lambda text: text.replace("UNetModel\n      params:", "UNetModel\n      params: x\n      more:"),
        "params: must be a mapping of keys, found 'x'",
    ),
}


@pytest.mark.parametrize("change, message", CONFIGS.values(), ids=CONFIGS)
def test_a_config(change: Callable[[str], str], message: str, home: Path, refused: Callable[[str], str]):
    config = home / "model.yaml"
    changed = change(config.read_text())
    assert changed != config.read_text()
    config.write_text(changed, errors="surrogateescape")
    assert message in refused("model.ckpt --config model.yaml")
    assert not (home / "ran").exists()


def edited(name: str, change: dict[str, object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))

    return edit


def replaced(name: str, by: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        by(folder / name)

    return replace


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights that never end": (replaced(WEIGHTS, lambda path: path.symlink_to("/dev/zero")), "has no weights"),
    "a link to itself": (replaced(WEIGHTS, lambda path: path.symlink_to(path)), "has no weights"),
    "a pipe": (replaced("unet/config.json", os.mkfifo), "no such file"),
    "a link to another file": (replaced(WEIGHTS, lambda path: path.symlink_to(path.with_name("config.json"))), "cannot be read"),
    "an index that names a file elsewhere": (
        replaced(WEIGHTS, lambda path: Path(f"{path}.index.json").write_text('{"weight_map": {"a": "/etc/passwd"}}')),
        "must name files beside it",
    ),
    "an index that is none": (
        replaced(WEIGHTS, lambda path: Path(f"{path}.index.json").write_text('{"weight_map": [1]}')),
        "names no file",
    ),
    "deep json": (lambda folder: (folder / "unet" / "config.json").write_text("[" * 100_000), "is not JSON"),
    "a list for a name": (edited("model_index.json", {"_class_name": []}), "unknown pipeline"),
    "a number for a name": (edited("scheduler/scheduler_config.json", {"_class_name": 3}), "unknown scheduler"),
    "layers without end": (edited("unet/config.json", {"layers_per_block": 100_000}), "at most 128 levels"),
    "a giant network": (edited("vqvae/config.json", {"latent_channels": 10**15}), "numbers up to 1048576"),
}


@pytest.mark.parametrize("change, message", FOLDERS.values(), ids=FOLDERS)
def test_a_folder(change: Callable[[Path], object], message: str, home: Path, refused: Callable[[str], str]):
    change(home / "folder")
    assert message in refused("folder")


def test_links_to_files_are_followed(home: Path, monkeypatch: pytest.MonkeyPatch):
    """The hub's own cache consists of links."""
    (home / "folder" / WEIGHTS).rename(home / "blob")
    (home / "folder" / WEIGHTS).symlink_to(home / "blob")
    monkeypatch.setattr(sys, "argv", ["convert.py", "import", "folder", "--out", "again"])
    with pytest.raises(SystemExit) as exit_:
        cli.run(convert.main)
    assert exit_.value.code == 0 and (home / "again" / "denoiser.safetensors").is_file()
