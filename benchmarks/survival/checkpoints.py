"""Damaged and forged checkpoints, and flipped bits in a `.ckpt`: the same weights come in, or it is refused."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from home import Home
from mangle import flipped, mangled
from safetensors.torch import load_file, save_file
from torch import Tensor
from trial import Trial, script

from ldm import LatentDiffusion
from ldm.app.arguments import convert, train_ldm, train_vae
from ldm.checkpoints.folder import MANIFEST
from ldm.checkpoints.model import load_latent_diffusion
from ldm.interop.importing import import_checkpoint

CPU = torch.device("cpu")


def checkpoints(home: Home, damaged: int, forged: int, archives: int) -> list[Trial]:
    """Changed files of a checkpoint; checkpoints whose manifest was made to fit the change; flipped bits in a `.ckpt`."""
    found = [_damaged_checkpoint(home, seed) for seed in range(damaged)] + [_forged_checkpoint(home, seed) for seed in range(forged)]
    run, archive = _exported(home)
    return found + [_damaged_archive(home, run / "checkpoint", archive, seed) for seed in range(archives)]


def _exported(home: Home) -> tuple[Path, Path]:
    """A run of a model that CompVis's code could open, and its `.ckpt`."""
    stage, run, archive = (home.scratch / name for name in ("stage", "plain", "model.ckpt"))
    wide, once = "channels=64", "train.steps=1"
    plain = ["conditioning={}", *(f"denoiser.{key}=null" for key in ("vector_width", "context_width")), "denoiser.transformer_depth=0"]
    plain += ["prediction=eps", "weighting=constant", f"first_stage.checkpoint={stage}/checkpoint"]
    for main, words in (
        (train_vae.main, ["--config", str(home.vae), "--run-dir", str(stage), f"first_stage.{wide}", once]),
        (
            train_ldm.main,
            [
                "--config",
                str(home.ldm),
                "--run-dir",
                str(run),
                f"first_stage.checkpoint={stage}/checkpoint",
                f"denoiser.{wide}",
                once,
                *plain,
            ],
        ),
        (convert.main, ["export", str(run / "checkpoint"), "--to", "compvis", "--out", str(archive)]),
    ):
        log = home.scratch / "export.log"
        assert script(main, words, log) == 0, log.read_text()
    return run, archive


def _weights(folder: Path) -> dict[str, Tensor]:
    loaded = load_latent_diffusion(folder, CPU)
    modules = {"network": loaded.network, "conditioners": loaded.conditioners, "first_stage": loaded.first_stage}
    return {f"{part}.{key}": value for part, module in modules.items() for key, value in module.state_dict().items()}


def _alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _copy(home: Home, name: str) -> Path:
    copy = home.scratch / name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(home.ldm_run / "checkpoint", copy)
    return copy


def _damaged_checkpoint(home: Home, seed: int) -> Trial:
    def check() -> str:
        draw, folder = random.Random(seed), _copy(home, "damaged")
        files = [path for path in sorted(folder.iterdir()) if path.name != "README.md"]
        path, other = draw.sample(files, 2)
        match draw.randrange(10):
            case 0:
                path.unlink()
            case 1:
                path.write_bytes(b"")
            case 2:
                content = path.read_bytes()
                path.write_bytes(other.read_bytes())
                other.write_bytes(content)
            case 3:
                path.write_bytes(path.read_bytes() + draw.randbytes(9))
            case _:
                path.write_bytes(mangled(path.read_bytes(), draw))
        return "right" if _alike(_weights(folder), _weights(home.ldm_run / "checkpoint")) else "other weights come in"

    return Trial(f"damaged checkpoint {seed}", check)


BAD_VALUES: tuple[Any, ...] = (
    None, True, [], {}, "", "x", -1, 0, 1, 2**70, -(2**70), 1e308, math.nan, math.inf, "\u0000", "../../x", [[]], {"kind": []}, [0] * 1000,
    "1" * 5000, 3, 0.5, "kl", "unet", {"kind": "identity"}, {"kind": "class_label", "num_classes": 10**9}, 10**12, 10**6,
)  # fmt: skip


def _leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values of a config, of mappings and lists too."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [one for key, value in items for one in ((*path, key), *_leaves(value, (*path, key)))]


def _forged_checkpoint(home: Home, seed: int) -> Trial:
    def check() -> str:
        draw, folder = random.Random(seed), _copy(home, "forged")
        what = _forge_config(folder, draw) if draw.random() < 0.6 else _forge_tensors(folder, draw)
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, about in manifest["files"].items():
            content = (folder / name).read_bytes()
            about |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        model = LatentDiffusion.from_pretrained(folder)
        for key, value in _weights(folder).items():
            if value.is_floating_point() and not value.isfinite().all():
                return f"{what}: {key} is not finite"
        images = model.generate(model.inputs({}), model.sampling(num_images=1, steps=2))
        return "right" if images.isfinite().all() else f"{what}: loads, and draws what is not finite"

    return Trial(f"forged checkpoint {seed}", check)


def _forge_config(folder: Path, draw: random.Random) -> str:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    *path, last = draw.choice(_leaves(config))
    place: Any = config
    for key in path:
        place = place[key]
    if draw.random() < 0.2 and isinstance(place, dict):
        del place[last]
        value: Any = "gone"
    else:
        value = place[last] = draw.choice(BAD_VALUES)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return f"{'.'.join(map(str, (*path, last)))} = {str(value)[:40]}"


def _forge_tensors(folder: Path, draw: random.Random) -> str:
    path = draw.choice(sorted(folder.glob("*.safetensors")))
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    way = draw.choice(("nan", "inf", "shape", "dtype", "gone", "renamed", "more", "huge", "integer", "empty", "header"))
    old = tensors[name]
    match way:
        case "nan" | "inf" | "huge":
            tensors[name] = old.clone()
            tensors[name].view(-1)[draw.randrange(old.numel())] = {"nan": math.nan, "inf": math.inf, "huge": 3e38}[way]
        case "shape":
            tensors[name] = old.reshape(-1)[: max(1, old.numel() // 2)].clone()
        case "dtype":
            tensors[name] = old.to(draw.choice((torch.float16, torch.bfloat16, torch.float64)))
        case "integer":
            tensors[name] = old.to(torch.int64)
        case "empty":
            tensors[name] = torch.empty(0)
        case "gone" | "renamed":
            tensors["another"] = tensors.pop(name)
            if way == "gone":
                del tensors["another"]
        case "more":
            tensors["another"] = torch.zeros(3)
    save_file(tensors, path)
    if way == "header":
        content = path.read_bytes()
        path.write_bytes(
            mangled(content[: 8 + int.from_bytes(content[:8], "little")], draw) + content[8 + int.from_bytes(content[:8], "little") :]
        )
    return f"{path.name} {name} {way}"


def _damaged_archive(home: Home, original: Path, archive: Path, seed: int) -> Trial:
    def check() -> str:
        copy, out = home.scratch / "copy.ckpt", home.scratch / "imported"
        shutil.copy2(archive.with_suffix(".yaml"), copy.with_suffix(".yaml"))
        copy.write_bytes(flipped(archive.read_bytes(), random.Random(seed)))
        shutil.rmtree(out, ignore_errors=True)
        import_checkpoint(copy, out, config=copy.with_suffix(".yaml"), prediction=None, size=None, text_encoder=None)
        return "right" if _alike(_weights(original), _weights(out)) else "other weights come in"

    return Trial(f"bit flip {seed} in a .ckpt", check)
