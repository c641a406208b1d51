"""The command line of `scripts/prepare_data.py`: pictures of any kind to shards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ldm.app.cli import Parser
from ldm.core.errors import UserError
from ldm.data.names import CLASSIC

EXAMPLES = """examples:
  python scripts/prepare_data.py photos --out data/photos --size 256 --val-every 20
      a folder of pictures; captions.csv or captions.jsonl in it (columns file, caption), .txt beside pictures, class folders,
      masks/, maps/ and boxes/ are found by themselves
  python scripts/prepare_data.py photos --captions words.csv --out data/photos
  python scripts/prepare_data.py mnist --out data/mnist
      also fashion-mnist, cifar10, pets: torchvision downloads them, or --raw names a folder with the raw files
  python scripts/prepare_data.py emoji-128 --out data/emoji
"""


def main(arguments: Sequence[str]) -> None:
    """Makes shards and index.json."""
    parser = Parser("Make shards of pictures, with captions, labels, masks and maps, ready for training.", EXAMPLES)
    parser.add_argument("source", help=f"a folder of pictures, one of {', '.join(CLASSIC)}, or emoji-128")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; one that this script made is replaced")
    parser.add_argument("--captions", type=Path, help="CSV or JSONL with columns file|file_name and caption|text")
    parser.add_argument("--size", type=int, help="scale pictures down to this shorter side (default: keep)")
    parser.add_argument("--val-every", type=int, metavar="N", help="hold out every Nth picture of a folder (default: none)")
    parser.add_argument("--shard-size", type=float, default=256, metavar="MIB", help="largest shard (default: 256)")
    parser.add_argument(
        "--background", metavar="R,G,B", help="colour to lay transparent pictures on now (default: keep them; data.background at training)"
    )
    parser.add_argument("--raw", type=Path, metavar="DIR", help="raw files of a torchvision set (default: download)")
    parser.add_argument(
        "--cache", type=Path, default=Path("data/downloads"), help="where torchvision downloads to (default: data/downloads)"
    )
    options = parser.parse_args(arguments)
    if not math.isfinite(options.shard_size):
        raise UserError(f"--shard-size must be a number of MiB, got {options.shard_size}")

    from ldm.app import prepare_data

    prepare_data.main(options)
