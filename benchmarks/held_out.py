"""How far the held-out pictures of emoji-styles are from what is trained on: LPIPS of each to its nearest training picture.

    python scripts/prepare_data.py emoji-styles --out data/emoji-styles
    python benchmarks/held_out.py

LPIPS is a squared Euclidean distance between scaled features, so that one matrix product a batch compares each picture with all others.
A composition that is nearer to a training picture than 19 in 20 pairs of pictures of one style are to each other is no test: its key goes
into benchmarks/compositions/near.json, which benchmarks/compositions.py reads.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm.app.cli import run
from ldm.core.files import write_file
from ldm.data.config import DataConfig
from ldm.data.image_dataset import IndexedDataset
from ldm.data.open import open_dataset
from ldm.pretrained import vgg_lpips

SIZE = 64
AT_ONCE = 64
NEAR = 0.05  # quantile of the distances between pictures of one style
OF_STYLE = 150  # training pictures of each style whose distances to each other are taken
NEAR_FILE = Path(__file__).parent / "compositions" / "near.json"


def main() -> None:
    """Prints a table, and writes the keys of the pictures that are no test."""
    parser = argparse.ArgumentParser(description="LPIPS of held-out pictures to their nearest training pictures.")
    parser.add_argument("--data", default="data/emoji-styles", help="the prepared set (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=NEAR_FILE, help="file for the keys (default: %(default)s)")
    options = parser.parse_args()
    config = DataConfig(train=options.data, val=options.data, size=SIZE)
    train, held_out = (_indexed(open_dataset(config, split, 0)) for split in ("train", "val"))
    lpips = vgg_lpips()

    own = torch.cat([embedded(lpips, images) for images in batches(held_out, "held-out pictures")])
    squares = own.square().sum(1)
    nearest, names = torch.full((len(own),), torch.inf), [""] * len(own)
    styles = [row["style"] for row in train.source.attributes()]
    kept: dict[str, list[Tensor]] = {style: [] for style in sorted(set(styles))}
    first = 0
    for images in batches(train, "training pictures"):
        features = embedded(lpips, images)
        distances = squares[:, None] + features.square().sum(1) - 2 * own @ features.T
        least, place = distances.min(1)
        for row in (least < nearest).nonzero()[:, 0].tolist():
            nearest[row], names[row] = least[row], train.source.key(first + int(place[row]))
        for row, style in zip(features, styles[first : first + len(features)], strict=True):
            if len(kept[style]) < OF_STYLE:
                kept[style].append(row.half())
        first += len(features)

    within = torch.cat([torch.pdist(torch.stack(rows).float()).square() for rows in kept.values()])
    near = within.quantile(NEAR).item()
    keys = [held_out.source.key(index) for index in range(len(held_out))]
    why = [str(row["held_out"]) for row in held_out.source.attributes()]
    of_style = [str(row["style"]) for row in held_out.source.attributes()]
    about = f"pairs of one style: median {within.median():.3f}, {NEAR:.0%} below {near:.3f}"
    print(f"LPIPS (VGG) at {SIZE}x{SIZE}; {about}\n")
    print("| held out | style | pictures | nearest training picture: median | least | nearer than that |\n|---|---|---|---|---|---|")
    for reason in ("composition", "novel"):
        for style in ("all", *kept):
            rows = [row for row in range(len(keys)) if why[row] == reason and style in ("all", of_style[row])]
            found = nearest[rows]
            print(f"| {reason} | {style} | {len(rows)} | {found.median():.3f} | {found.min():.3f} | {int((found < near).sum())} |")
    close = {keys[row]: [names[row], round(nearest[row].item(), 4)] for row in range(len(keys)) if nearest[row] < near}
    write_file(options.out, json.dumps({"quantile": round(near, 4), "near": close}, indent=0) + "\n")
    print(f"\n{len(close)} pictures that are no test are in {options.out}")


def _indexed(data: object) -> IndexedDataset:
    assert isinstance(data, IndexedDataset)
    return data


def batches(data: IndexedDataset, what: str):  # noqa: ANN201
    """(B, 3, SIZE, SIZE) in [-1, 1], in the order of the set."""
    for first in tqdm(range(0, len(data), AT_ONCE), desc=what, unit="batch"):
        yield torch.stack([data.sample(index, 0).image for index in range(first, min(first + AT_ONCE, len(data)))])


@torch.no_grad()
def embedded(lpips: nn.Module, images: Tensor) -> Tensor:
    """(B, D): features whose squared Euclidean distances are LPIPS."""
    parts = []
    for layer, features in zip(lpips.lins, lpips.net(lpips.scaling_layer(images)), strict=True):
        unit = features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)
        weight = next(layer.parameters()).clamp_min(0)  # (1, C, 1, 1)
        parts.append((unit * (weight / unit[0, 0].numel()).sqrt()).flatten(1))
    return torch.cat(parts, 1)


if __name__ == "__main__":
    run(lambda _: main())
