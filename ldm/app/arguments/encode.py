"""The command line of `scripts/encode.py`: pictures to latents, a file each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.app.arguments.sampling import DEFAULT_MODEL
from ldm.app.cli import Parser

EXAMPLES = """examples:
  python scripts/encode.py photos --out latents
      photos/a.jpg becomes latents/a.safetensors; latents/latents.json has the latent normalization
  python scripts/encode.py emoji-128 --split val --format npy --out latents/val --model runs/mine-vae/checkpoint
  python scripts/decode.py latents --out decoded
"""


def main(arguments: Sequence[str]) -> None:
    """Encodes pictures."""
    parser = Parser("Pictures to latents by a model's first stage, a file each.", EXAMPLES)
    parser.add_argument("pictures", help="as a config's data.train: a folder, shards, or a built-in name")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="checkpoint folder, of either stage (default: %(default)s)")
    parser.add_argument("--split", choices=("train", "val"), default="train", help="of pictures that have splits (default: %(default)s)")
    parser.add_argument("--format", choices=("safetensors", "npy"), default="safetensors", help="of the files (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the latents; one that this wrote is replaced")
    parser.add_device()
    options = parser.parse_args(arguments)

    from ldm.app import encode

    encode.main(options)
