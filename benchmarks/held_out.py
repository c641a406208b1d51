"""How far the held-out pictures of emoji-styles are from what is trained on: LPIPS of each to its nearest training picture.

    python scripts/prepare_data.py emoji-styles --out data/emoji-styles
    python benchmarks/held_out.py

LPIPS is a squared Euclidean distance between scaled features, so that one matrix product a batch compares each picture with all others.
A composition that is nearer to a training picture than 19 in 20 training pictures are to their nearest neighbour of one style
is no test: its key goes into benchmarks/compositions/near.json, which benchmarks/compositions.py reads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
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
NEAR = 0.05  # quantile of the distances to the nearest neighbour of one style
OF_STYLE = 40  # training pictures of each style, evenly chosen, whose nearest neighbours are looked for
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

    styles = [str(row["style"]) for row in train.source.attributes()]
    some = [place for style in sorted(set(styles)) for place in evenly([i for i, found in enumerate(styles) if found == style])]
    rows = [(held_out, index) for index in range(len(held_out))] + [(train, place) for place in some]
    asked = torch.cat([embedded(lpips, images) for images in batches(rows, "pictures asked for")])
    squares = asked.square().sum(1)
    nearest, names = torch.full((len(rows),), torch.inf), [""] * len(rows)
    first, count = 0, len(held_out)
    for images in batches([(train, index) for index in range(len(train))], "training pictures"):
        features = embedded(lpips, images)
        distances = squares[:, None] + features.square().sum(1) - 2 * asked @ features.T
        for row, place in enumerate(some, count):  # others of its style alone
            for column in range(len(features)):
                if first + column == place or styles[first + column] != styles[place]:
                    distances[row, column] = torch.inf
        least, column = distances.min(1)
        for row in (least < nearest).nonzero()[:, 0].tolist():
            nearest[row], names[row] = least[row], train.source.key(first + int(column[row]))
        first += len(features)

    within, nearest = nearest[count:], nearest[:count]
    near = within.quantile(NEAR).item()
    keys = [held_out.source.key(index) for index in range(len(held_out))]
    why = [str(row["held_out"]) for row in held_out.source.attributes()]
    of_style = [str(row["style"]) for row in held_out.source.attributes()]
    about = f"nearest training pictures of one style: median {within.median():.3f}, {NEAR:.0%} below {near:.3f}"
    print(f"LPIPS (VGG) at {SIZE}x{SIZE}; {about}\n")
    print("| held out | style | pictures | nearest training picture: median | least | nearer than that |\n|---|---|---|---|---|---|")
    for reason in ("composition", "novel"):
        for style in ("all", *sorted(set(styles))):
            own = [row for row in range(len(keys)) if why[row] == reason and style in ("all", of_style[row])]
            found = nearest[own]
            print(f"| {reason} | {style} | {len(own)} | {found.median():.3f} | {found.min():.3f} | {int((found < near).sum())} |")
    close = {keys[row]: [names[row], round(nearest[row].item(), 4)] for row in range(len(keys)) if nearest[row] < near}
    write_file(options.out, json.dumps({"quantile": round(near, 4), "near": close}, indent=0) + "\n")
    print(f"\n{len(close)} pictures that are no test are in {options.out}")


def _indexed(data: object) -> IndexedDataset:
    assert isinstance(data, IndexedDataset)
    return data


def evenly(places: list[int]) -> list[int]:
    """OF_STYLE of them, from the first to the last."""
    return [places[place] for place in torch.linspace(0, len(places) - 1, min(OF_STYLE, len(places))).round().long().tolist()]


def batches(rows: list[tuple[IndexedDataset, int]], what: str) -> Iterator[Tensor]:
    """(B, 3, SIZE, SIZE) in [-1, 1], of pictures by set and number."""
    for first in tqdm(range(0, len(rows), AT_ONCE), desc=what, unit="batch"):
        yield torch.stack([data.sample(index, 0).image for data, index in rows[first : first + AT_ONCE]])


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
