"""`scripts/encode.py` and `scripts/decode.py`: there and back, with the latent normalization in the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ldm.app.arguments import decode, encode
from ldm.checkpoints.model import load_first_stage
from ldm.core.errors import UserError
from ldm.pipelines.canvas import as_tensor, to_pil


@pytest.fixture
def home(tmp_path: Path, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures of the model's size, the model, one with another first stage, and one of pixels; the current one."""
    for name, place in {"model": tiny(), "other": tiny(first_stage="vq"), "pixels": tiny(first_stage="identity")}.items():
        (tmp_path / name).symlink_to(place)
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    draws = np.random.default_rng(0)
    for name in ("a.png", "deep/b.png"):
        Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def encoded(*flags: str, out: str = "latents") -> dict[str, str]:
    """The files that encoding leaves, and their pictures."""
    encode.main(["photos", "--model", "model", "--device", "cpu", "--out", out, *flags])
    return json.loads(Path(out, "latents.json").read_text())["files"]


def test_there_and_back_is_what_the_first_stage_gives_back(home: Path) -> None:
    files = encoded()
    assert sorted(files.values()) == ["photos/a.png", "photos/deep/b.png"]
    decode.main(["latents", "--model", "model", "--device", "cpu", "--out", "decoded"])
    first_stage, spec, _ = load_first_stage("model", torch.device("cpu"))
    for name, place in files.items():
        with Image.open(place) as picture:
            images = as_tensor(picture, 3)
        with torch.no_grad():
            latent = load_file(f"latents/{name}")["latent"]
            assert_close(latent, first_stage.encode(images)[0])
            wanted = to_pil(first_stage.decode(first_stage.encode(images)))[0]
        with Image.open(f"decoded/{Path(name).stem}.png") as decoded:
            assert np.abs(np.asarray(decoded, int) - np.asarray(wanted, int)).max() <= 1

        with safe_open(f"latents/{name}", "pt") as file:
            kept = json.loads(file.metadata()["normalization"])
            assert file.metadata()["picture"] == place
        raw = latent / torch.tensor(kept["scale"])[:, None, None] + torch.tensor(kept["shift"])[:, None, None]
        assert_close(raw, first_stage.moments(images)[0][0].detach(), atol=1e-5, rtol=1e-5)
        assert kept["digest"] == spec.normalization.digest


def test_npy_files_hold_the_same(home: Path) -> None:
    one, other = encoded(), encoded("--format", "npy", out="arrays")
    for name, array in zip(one, other, strict=True):
        assert np.array_equal(load_file(f"latents/{name}")["latent"].numpy(), np.load(f"arrays/{array}"))
    decode.main(["arrays", "--model", "model", "--device", "cpu", "--out", "decoded"])
    assert len(list(Path("decoded").glob("*.png"))) == 2


def test_latents_that_somebody_adds_are_decoded_too(home: Path) -> None:
    names = [*encoded()]
    both = [load_file(f"latents/{name}")["latent"] for name in names]
    save_file({"latent": (both[0] + both[1]) / 2}, "latents/between.safetensors")
    np.save("latents/tall.npy", np.zeros((2, 16, 8), np.float32))
    decode.main(["latents", "--model", "model", "--device", "cpu", "--out", "decoded"])
    for name, size in {"between": (16, 16), "tall": (16, 32)}.items():
        with Image.open(f"decoded/{name}.png") as picture:
            assert picture.size == size


def test_a_picture_that_cannot_be_read_is_reported_and_left_out(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draws = np.random.default_rng(1)
    for number in range(150):  # of which a share of 0.01 may be unreadable
        Image.fromarray(draws.integers(0, 256, (8, 8), dtype=np.uint8)).save(f"photos/{number}.png")
    Path("photos/7.png").write_bytes(Path("photos/7.png").read_bytes()[:60])
    assert len(encoded()) == 151
    assert "1 of 152 records could not be read: 7.png: damaged picture" in capsys.readouterr().out


MISTAKES: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "another first stage": (
        lambda at: None,
        ["--model", "other"],
        "was encoded by another first stage .* name the checkpoint that encoded it",
    ),
    "pixels": (lambda at: None, ["--model", "pixels"], "works on pixels: it has no latents"),
    "no latents.json": (lambda at: (at / "latents.json").unlink(), [], "has no latents.json"),
    "a damaged latents.json": (lambda at: (at / "latents.json").write_text("{"), [], "latents.json cannot be read"),
    "a list for latents.json": (lambda at: (at / "latents.json").write_text("[]"), [], "latents.json: normalization"),
    "a damaged file": (lambda at: (at / "x.safetensors").write_bytes(b"123"), [], "x.safetensors holds no latent"),
    "another tensor": (lambda at: save_file({"x": torch.zeros(1)}, at / "x.safetensors"), [], "x.safetensors holds no latent"),
    "objects": (lambda at: np.save(at / "x.npy", np.array([None])), [], "x.npy holds no latent"),
    "other channels": (lambda at: np.save(at / "x.npy", np.zeros((3, 4, 4))), [], r"a latent of this model is \(2, h, w\)"),
    "NaN": (lambda at: np.save(at / "x.npy", np.full((2, 4, 4), np.nan)), [], "a latent of this model is"),
    "twins": (lambda at: [np.save(at / "x.npy", np.zeros((2, 4, 4))), save_file({}, at / "x.safetensors")], [], "of the same name"),
}


@pytest.mark.parametrize("damage, flags, said", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(damage: Callable, flags: list[str], said: str, home: Path) -> None:
    encoded()
    damage(Path("latents"))
    with pytest.raises(UserError, match=said):
        decode.main(["latents", "--device", "cpu", "--out", "decoded", *(flags or ["--model", "model"])])
    assert not Path("decoded").exists()


def test_a_folder_of_somebody_else_is_not_replaced(home: Path) -> None:
    with pytest.raises(UserError, match="was not written by this tool"):
        encoded(out="photos")
    assert Path("photos/a.png").is_file()
