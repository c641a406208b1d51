"""The command line of `scripts/decode.py`: latents to pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.app.arguments.sampling import DEFAULT_MODEL
from ldm.app.cli import Parser

EXAMPLES = """examples:
  python scripts/encode.py photos --out latents
  python scripts/decode.py latents --out decoded
      every .safetensors and .npy file of latents, with the model that encoded them
"""


def main(arguments: Sequence[str]) -> None:
    """Decodes latents."""
    parser = Parser("Latents, as scripts/encode.py writes them, to pictures.", EXAMPLES)
    parser.add_argument("latents", type=Path, help="folder with latents.json; files of it may be changed, added and removed")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="checkpoint folder with their first stage (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures; one that this wrote is replaced")
    parser.add_device()
    options = parser.parse_args(arguments)

    from ldm.app import decode

    decode.main(options)
