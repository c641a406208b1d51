"""`scripts/convert.py`: checkpoints of CompVis's code, of Stable Diffusion and of diffusers to ours, and back."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ldm.app.door import Parser
from ldm.app.sampling_run import check_folder
from ldm.checkpoints.interop.importing import import_checkpoint
from ldm.checkpoints.interop.stable_diffusion import PredictionName
from ldm.core.errors import UserError

EXAMPLES = """examples:
  python scripts/convert.py import model.ckpt --config txt2img-1p4B-eval.yaml --out checkpoints/ldm-text
      a checkpoint of CompVis's code, with the YAML that belongs to it
  python scripts/convert.py import v1-5-pruned.safetensors --text-encoder openai/clip-vit-large-patch14 --out checkpoints/sd1
      a Stable Diffusion file; of version 2 say also --prediction v or eps
  python scripts/convert.py import ldm-celebahq-256 --out checkpoints/celebahq
      a folder of diffusers'
"""
ONLY_IMPORT = ("config", "prediction", "size", "text_encoder")


def main(arguments: Sequence[str]) -> None:
    """Converts a checkpoint."""
    options = _parse(arguments)
    check_folder(options.out.parent)
    notes = import_checkpoint(
        options.source,
        options.out,
        config=options.config,
        prediction=options.prediction,
        size=options.size,
        text_encoder=options.text_encoder,
    )
    for note in notes:
        print(f"note: {note}")
    print(f"checkpoint in {options.out}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("Checkpoints of other tools to ours. Nothing in a file is ever run.", EXAMPLES)
    parser.add_argument("way", choices=("import",), help="import: other tools' to ours")
    parser.add_argument("source", type=Path, help="a .ckpt or .safetensors file, or a folder of diffusers'")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint folder to write; one that is there is replaced")
    parser.add_argument("--config", type=Path, help="the YAML of a file of CompVis's code (import)")
    parser.add_argument(
        "--prediction", choices=get_args(PredictionName), help="what a Stable Diffusion file without YAML predicts (import)"
    )
    parser.add_argument("--size", type=int, help="its pictures' side (import; default: 512, or 768 with --prediction v)")
    parser.add_argument("--text-encoder", metavar="FOLDER", help="folder or hub name of its text encoder, or of the tokenizer (import)")
    options = parser.parse_args(arguments)
    if options.out.exists() and not (options.out / "manifest.json").is_file():
        raise UserError(f"--out {options.out}: is there already and no checkpoint; name another folder")
    return options
