"""`scripts/encode.py`: pictures to latents, a file each."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from tqdm import tqdm

from ldm.app.latent_files import ABOUT, KEY, check_out, open_first_stage
from ldm.app.sampling_run import npy_file
from ldm.checkpoints.folder import save_tensors
from ldm.checkpoints.model import AutoencoderSpec
from ldm.config.loader import dump
from ldm.core.device import find_device
from ldm.core.errors import UserError
from ldm.core.files import new_folder, write_file
from ldm.core.version import __version__
from ldm.data.config import DataConfig
from ldm.data.image_dataset import IndexedDataset
from ldm.data.open import open_dataset
from ldm.data.stream import is_remote


@torch.no_grad()
def main(options: argparse.Namespace) -> None:
    """Writes the folder of latents, whole or not at all."""
    check_out(options.out)
    device = find_device(options.device)
    first_stage, spec = open_first_stage(options.model, device)
    data = _pictures(options.pictures, options.split, spec)
    about = {"tool": f"ldm {__version__}", "model": spec.name, "normalization": dump(spec.normalization)}
    files: dict[str, str] = {}
    with new_folder(options.out) as folder:
        for index in tqdm(range(len(data)), unit="picture", dynamic_ncols=True):
            try:
                sample = data.transform(data.source.record(index), 0, index)
            except UserError as error:
                data.unreadable.add(data.source.key(index), str(error))
                continue
            latent = first_stage.encode(sample.image[None].to(device))[0].float().cpu().contiguous()
            name = f"{data.source.key(index)}.{options.format}"
            files[name] = data.source.name_of(index)
            if options.format == "npy":
                write_file(folder / name, npy_file(latent.numpy()))
            else:
                metadata = {"picture": files[name], "normalization": json.dumps(about["normalization"])}
                save_tensors(folder / name, {KEY: latent}, metadata)
        write_file(folder / ABOUT, json.dumps(about | {"files": files}, indent=1, ensure_ascii=False) + "\n")
    if data.unreadable.records:
        print(data.unreadable.line())
    print(f"{len(files)} latents and {ABOUT} in {options.out}; back to pictures: python scripts/decode.py {options.out} --out DIR")


def _pictures(place: str, split: Any, spec: AutoencoderSpec) -> IndexedDataset:
    """Brought to size as in the model's training."""
    if is_remote(place):
        raise UserError(f"{place}: fetch the shards and name their folder")
    config = DataConfig(
        train=place,
        val=place,
        size=spec.size,
        fit=spec.fit,
        channels=spec.first_stage.image_channels,
        background=spec.background,
        depth=spec.depth,
        levels=spec.levels,
    )
    data = open_dataset(config, split, 0)
    assert isinstance(data, IndexedDataset)
    return data
