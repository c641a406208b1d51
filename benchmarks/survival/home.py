"""Small pictures, and small models of both stages trained on them, to be mishandled."""

from __future__ import annotations

from pathlib import Path

import yaml
from PIL import Image, ImageDraw
from trial import script

from ldm.app.arguments import train_ldm, train_vae

STEPS = 6
TRAIN = {"steps": STEPS, "batch_size": 4, "checkpoint_every": 2, "sample_every": 100, "optimizer": {"learning_rate": 1e-3}}
VAE = {
    "name": "small-vae",
    "data": {"train": "", "size": 16},
    "first_stage": {"kind": "kl", "channels": 16, "multipliers": [1, 2], "blocks": 1, "latent_channels": 2},
    "loss": {"perceptual_weight": 0, "disc_start": 3, "disc_layers": 1, "disc_channels": 8},
    "train": TRAIN,
}
LDM = {
    "name": "small-ldm",
    "data": {"train": "", "size": 16},
    "first_stage": {"checkpoint": ""},
    "denoiser": {
        "kind": "unet",
        "channels": 32,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention": [2],
        "heads": 2,
        "context_width": 16,
        "vector_width": 8,
    },
    "process": "discrete_vp",
    "prediction": "v",
    "weighting": "min_snr",
    "conditioning": {
        "text": {"kind": "bert_scratch", "width": 16, "depth": 1, "heads": 2},
        "class": {"kind": "class_label", "width": 8},
        "mask": {"kind": "inpaint_mask"},
    },
    "sampling": {"sampler": "ddim", "steps": 2},
    "train": TRAIN,
}


class Home:
    """A folder with pictures and two finished runs; everything else happens in `scratch`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.photos = folder, folder / "photos"
        self.scratch = folder / "scratch"
        self.scratch.mkdir(parents=True)
        self._draw()
        self.vae, self.ldm = folder / "vae.yaml", folder / "ldm.yaml"
        self.vae.write_text(yaml.safe_dump({**VAE, "data": {**VAE["data"], "train": str(self.photos)}}))
        first_stage = {"checkpoint": str(self.vae_run / "checkpoint")}
        self.ldm.write_text(yaml.safe_dump({**LDM, "data": {**LDM["data"], "train": str(self.photos)}, "first_stage": first_stage}))
        for main, config, run in ((train_vae.main, self.vae, self.vae_run), (train_ldm.main, self.ldm, self.ldm_run)):
            code = script(main, ["--config", str(config), "--run-dir", str(run)], folder / "log")
            assert code == 0, (folder / "log").read_text()

    @property
    def vae_run(self) -> Path:
        return self.folder / "vae"

    @property
    def ldm_run(self) -> Path:
        return self.folder / "ldm"

    def _draw(self) -> None:
        """Twelve squares on coloured ground in two classes, with texts and masks."""
        for number in range(12):
            name = f"{'even' if number % 2 else 'odd'}/{number}"
            picture, mask = Image.new("RGB", (20, 20), (20 * number, 255 - 20 * number, 90)), Image.new("L", (20, 20))
            for each, colour in ((picture, (255, 200, 20 * number)), (mask, 255)):
                ImageDraw.Draw(each).rectangle((number % 9, 3, number % 9 + 8, 15), fill=colour)
            for each, path in ((picture, self.photos / f"{name}.png"), (mask, self.photos / "masks" / f"{name}.png")):
                path.parent.mkdir(parents=True, exist_ok=True)
                each.save(path)
            (self.photos / f"{name}.txt").write_text(f"square {number}")
