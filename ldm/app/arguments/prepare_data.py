"""The command line of `scripts/prepare_data.py`: pictures of any kind to shards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ldm.app.cli import NO_GPU, Parser
from ldm.core.errors import UserError
from ldm.data.names import BUILTIN, CLASSIC, STYLES

EXAMPLES = """examples:
  python scripts/prepare_data.py photos --check
      what is in the folder, what is odd, and what would be passed over: a text, and a page with pictures
  python scripts/prepare_data.py photos --out data/photos --size 256 --val-every 20
      a folder of pictures; captions.csv or captions.jsonl in it (columns file, caption), .txt beside pictures, class folders,
      masks/, maps/ and boxes/ are found by themselves
  python scripts/prepare_data.py photos --out data/photos --size 256 --workers 16 --part 3/8
      by sixteen processes, as the third of eight machines; the same command without --part then makes the set
  python scripts/prepare_data.py photos --captions words.csv --out data/photos
  python scripts/prepare_data.py mnist --out data/mnist
      also fashion-mnist, cifar10, pets: torchvision downloads them, or --raw names a folder with the raw files
  python scripts/prepare_data.py emoji-styles --out data/emoji-styles
      10,000 drawings in eight styles, fetched from the npm registry; needs: pip install "resvg-py>=0.2,<1"
"""


def main(arguments: Sequence[str]) -> None:
    """Makes shards and index.json."""
    parser = Parser("Make shards of pictures, with captions, labels, masks and maps, ready for training.", EXAMPLES, {"--device": NO_GPU})
    parser.add_argument("source", help=f"a folder of pictures or of shards, a .tar shard, one of {', '.join((*BUILTIN, STYLES, *CLASSIC))}")
    parser.add_argument("--out", type=Path, help="folder to write; one that this script made is replaced")
    parser.add_argument(
        "--check", action="store_true", help="write nothing but a report of what is there (into --out, default: outputs/check-SOURCE)"
    )
    parser.add_argument("--verify", action="store_true", help="read all of a prepared folder, and compare it with what was written")
    parser.add_argument("--captions", type=Path, help="CSV, TSV or JSONL with columns file|file_name and caption|text")
    parser.add_argument("--encoding", metavar="NAME", help="of texts and tables that are not UTF-8, e.g. cp1252")
    parser.add_argument(
        "--config", type=Path, metavar="YAML", help="a stage-two config: the report says which captions its text encoder cannot read whole"
    )
    parser.add_argument(
        "--levels", type=float, nargs=2, metavar=("BLACK", "WHITE"), help="numbers that are black and white in float and signed pictures"
    )
    parser.add_argument(
        "--pages",
        choices=("first", "all"),
        default="first",
        help="of TIFFs and animations the first page, or each as a picture",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that read, check and scale pictures (default: 1)")
    parser.add_argument("--part", metavar="K/N", help="do part K of N only, as one of N machines that share --out; then run it without")
    parser.add_argument("--size", type=int, help="scale pictures down to this shorter side (default: keep)")
    parser.add_argument("--val-every", type=int, metavar="N", help="hold out every Nth picture of a folder (default: none)")
    parser.add_argument("--shard-size", type=float, default=256, metavar="MIB", help="largest shard (default: 256)")
    parser.add_argument(
        "--background", metavar="R,G,B", help="colour to lay transparent pictures on now (default: keep them; data.background at training)"
    )
    parser.add_argument("--raw", type=Path, metavar="DIR", help="raw files of a torchvision set (default: download)")
    parser.add_argument("--cache", type=Path, default=Path("data/downloads"), help="where downloads go (default: data/downloads)")
    options = parser.parse_args(arguments)
    if not math.isfinite(options.shard_size):
        raise UserError(f"--shard-size must be a number of MiB, got {options.shard_size}")

    from ldm.app import prepare_data

    prepare_data.main(options)
