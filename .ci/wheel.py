"""Builds the wheel and uses it as its owner would: installed alone, in an empty folder, with the core's dependencies and no others.

Run by the Python of .venv (make test-wheel). The dependencies are links to those of that environment: nothing is downloaded or copied.
"""

from __future__ import annotations

import importlib.metadata as metadata
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
MOST = 100_000_000  # bytes, which is what PyPI takes of a file
SHIPPED = {"checkpoints/emoji/": "ldm/shipped/checkpoints/emoji/", "configs/": "ldm/shipped/configs/", "ldm/": "ldm/"}
FEW = ["--steps", "2", "--num-images", "1"]
SMALL = ["data.train=data/mine", "data.val=data/mine", "train.steps=2", "train.batch_size=2"]
# The README's, small. Pictures are taken from where the first one lies.
JOURNEY = [
    ["--version"],
    ["txt2img", "--prompt", "a red heart", *FEW, "--num-images", "4", "--out", "photos"],
    ["sample", "--label", "food-drink", *FEW, "--out", "outputs"],
    ["inpaint", "--image", "photos/000.png", "--mask", "photos/000.png", "--prompt", "a smiling yellow face", *FEW],
    ["img2img", "--image", "photos/000.png", "--strength", "0.6", "--prompt", "a green apple", *FEW],
    ["prepare", "photos", "--out", "data/mine", "--size", "64", "--val-every", "2"],
    ["train-vae", "--run-dir", "runs/mine-vae", *SMALL, "init_from=checkpoints/emoji", "loss.perceptual_weight=0"],
    ["train-ldm", "--run-dir", "runs/mine", *SMALL, "first_stage.checkpoint=runs/mine-vae/checkpoint", "conditioning.text.drop=1"],
    ["sample", "--model", "runs/mine/checkpoint", *FEW, "--out", "outputs/mine"],
    ["evaluate", "vae", "--model", "checkpoints/emoji", "--data", "data/mine", "--num-images", "2"],
    ["describe", "--config", "configs/published/txt2img-1.45b.yaml"],
]


def build(folder: Path) -> Path:
    """The wheel, with every tracked file, to the byte, and below the size that PyPI takes."""
    subprocess.run([_tool("uv"), "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    tracked = subprocess.run(["git", "ls-files", "-z", *SHIPPED], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    with zipfile.ZipFile(wheel) as archive:
        for name in filter(None, tracked.split("\0")):
            begin = next(folder for folder in SHIPPED if name.startswith(folder))
            assert archive.read(SHIPPED[begin] + name.removeprefix(begin)) == (ROOT / name).read_bytes(), name
    assert wheel.stat().st_size < MOST, f"{wheel.stat().st_size} bytes"
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """The command `ldm` of a new environment with the wheel and links to what it requires, directly or not."""
    subprocess.run([_tool("uv"), "venv", "--quiet", "--python", sys.executable, folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([_tool("uv"), "pip", "install", "--quiet", "--no-deps", "--python", python, wheel], check=True)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    open_ones, seen = [(Requirement("ldm-toolkit"), "")], set()
    requirements = {"ldm-toolkit": metadata.Distribution.at(next(site.glob("ldm_toolkit-*.dist-info"))).requires}
    while open_ones:
        requirement, _ = open_ones.pop()
        for extra in ("", *requirement.extras):
            name = requirement.name.lower().replace("_", "-")
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            needs = requirements[name] if name in requirements else _link(name, site)
            wanted = [Requirement(line) for line in needs or ()]
            open_ones += [(each, extra) for each in wanted if each.marker is None or each.marker.evaluate({"extra": extra})]
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, with {len({name for name, _ in seen}) - 1} packages that it requires")
    return folder / "bin" / "ldm"


def _link(name: str, site: Path) -> list[str] | None:
    """Links an installed package into another environment; gives what it requires."""
    found = metadata.distribution(name)
    for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(found.locate_file(top))))
    return found.requires


def _tool(name: str) -> Path:
    return Path(sys.executable).parent / name


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ldm = install(build(folder / "dist"), folder / "venv")
        home = folder / "empty"
        home.mkdir()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"LDM_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}

        def run(*words: str | Path) -> str:
            done = subprocess.run(words, cwd=home, env=environment, text=True, capture_output=True)
            assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
            return done.stdout

        place = run(ldm.with_name("python"), "-c", "import ldm, ldm.core.shipped as s; print(ldm.__file__, s.ROOT, sep='\\n')")
        assert all(line.startswith(str(folder / "venv")) for line in place.splitlines()), place
        packages = {package["name"]: package for package in json.loads(run(ldm, "env", "--json"))["packages"]}
        assert all(package["state"] == "inside" for package in packages.values() if not package["extra"]), packages
        assert packages["pytest"]["state"] == "not installed", "what only developers need is not linked"
        for words in JOURNEY:
            print(f"ldm {' '.join(words)}", flush=True)
            run(ldm, *words)
        assert json.loads((home / "photos" / "parameters.json").read_text())["prompt"] == "a red heart"


if __name__ == "__main__":
    main()
