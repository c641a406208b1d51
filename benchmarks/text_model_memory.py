"""Memory that the text model of 1.45 billion parameters takes, with random weights in 16 bits: to import it, to load it, to draw with it.

    python benchmarks/text_model_memory.py --out /tmp

Under OUT 6 GB lie meanwhile, and nothing is left. Each row is a process of its own: `baseline` is what it takes with all of it imported and
nothing opened, `peak` the most that it takes afterwards. Both count pages that are mapped from a file.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.app.arguments import txt2img
from ldm.app.description import first_stage_of
from ldm.app.train_ldm import TrainLDM
from ldm.checkpoints.model import load_latent_diffusion, write_latent_diffusion
from ldm.config.loader import load
from ldm.first_stage.latent_normalization import LatentNormalization, weights_digest
from ldm.interop.compvis.export import export_compvis
from ldm.interop.importing import import_checkpoint
from ldm.interop.ours import Ours

CONFIG = "configs/published/txt2img-1.45b.yaml"
PROMPT = "a red heart"
CARD = "# Random weights\n"


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Bytes and seconds of a process."""

    baseline: int
    peak: int
    seconds: float


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description="Memory that the text model of 1.45 billion parameters takes.")
    parser.add_argument("--out", type=Path, required=True, help="where the files, 6 GB, lie meanwhile")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        home = Path(folder)
        apart(make, home)
        file = home / "model.ckpt"
        rows = [("import the .ckpt", file.stat().st_size, apart(bring_in, home))]
        ours = sum(path.stat().st_size for path in (home / "model").glob("*.safetensors"))
        rows += [("load in bf16", ours, apart(open_up, home)), ("draw 2 steps in bf16", ours, apart(draw, home))]
    print(f"{'':22}{'file':>9}{'baseline':>11}{'peak':>9}{'(peak - baseline) / file':>27}{'seconds':>10}")
    for what, size, taken in rows:
        share = (taken.peak - taken.baseline) / size
        numbers = f"{size / 1e9:>6.2f} GB{taken.baseline / 1e9:>8.2f} GB{taken.peak / 1e9:>6.2f} GB"
        print(f"{what:22}{numbers}{share:>27.2f}{taken.seconds:>10.0f}")


def apart(job: Callable[[Path], None], home: Path) -> Taken:
    """What a job takes in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, job, home).result()


def measured(job: Callable[[Path], None], home: Path) -> Taken:
    """What a job takes in this process, which has done nothing else."""
    baseline, start = held("VmRSS"), time.monotonic()
    job(home)
    return Taken(baseline=baseline, peak=held("VmHWM"), seconds=time.monotonic() - start)


def held(key: str) -> int:
    """Bytes of this process now (VmRSS), or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def make(home: Path) -> None:
    """home/model.ckpt and its YAML."""
    config = load(CONFIG, TrainLDM)
    stage = first_stage_of(config.first_stage, config.data.channels)
    first_stage = random_weights(stage.build, 1)
    normalization = LatentNormalization(
        channels=stage.latent_channels,
        downsampling_factor=stage.downsampling_factor,
        scale=(config.first_stage.scale or 1.0,),
        digest=weights_digest(first_stage),
    )
    spec = config.spec(stage, normalization, config.conditioning)
    with torch.device("meta"):
        conditioners = spec.build_conditioners()
    parts = random_weights(lambda: spec.build_network(conditioners), 2), random_weights(lambda: conditioners, 3)
    write_latent_diffusion(home / "made", spec, first_stage, *parts, CARD, 4 << 30)
    del first_stage, parts
    export_compvis(Ours.open(home / "made"), home / "model.ckpt")
    shutil.rmtree(home / "made")


def random_weights(build: Callable[[], nn.Module], seed: int) -> dict[str, Tensor]:
    """Of a network, none of them zero: what it is born with would be, in its last layers."""
    draw = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
    weights = {}
    for name, shape in shapes.items():
        spread = 0.5 / shape[1:].numel() ** 0.5 if len(shape) > 1 else 0.02
        centre = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0  # of norms
        weights[name] = (torch.randn(shape, generator=draw) * spread + centre).half()
    return weights


def bring_in(home: Path) -> None:
    import_checkpoint(home / "model.ckpt", home / "model", config=home / "model.yaml")


def open_up(home: Path) -> None:
    load_latent_diffusion(home / "model", torch.device("cpu"), "bf16")


def draw(home: Path) -> None:
    """As scripts/txt2img.py does, at the model's own 256x256."""
    asked = ["--prompt", PROMPT, "--steps", "2", "--num-images", "1", "--precision", "bf16"]
    txt2img.main(["--model", str(home / "model"), *asked, "--out", str(home / "pictures")])


if __name__ == "__main__":
    main()
