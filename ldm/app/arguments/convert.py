"""The command line of `scripts/convert.py`: checkpoints of CompVis's code, of Stable Diffusion and of diffusers to ours, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ldm.app.cli import NO_GPU, Parser
from ldm.core.errors import UserError
from ldm.interop.settings import PredictionName

EXAMPLES = """examples:
  python scripts/convert.py import model.ckpt --config txt2img-1p4B-eval.yaml --out checkpoints/ldm-text
      a checkpoint of CompVis's code, with the YAML that belongs to it
  python scripts/convert.py import v1-5-pruned.safetensors --text-encoder openai/clip-vit-large-patch14 --out checkpoints/sd1
      a Stable Diffusion file; of version 2 say also --prediction v or eps
  python scripts/convert.py import ldm-celebahq-256 --out checkpoints/celebahq
      a folder of diffusers'
  python scripts/convert.py export runs/mine-ldm/checkpoint --to diffusers --out exported/mine
  python scripts/convert.py export checkpoints/sd1 --to compvis --out exported/sd1.safetensors
      one file, as CompVis's code and tools that open Stable Diffusion files read it, and its YAML beside it
  python scripts/convert.py export runs/mine-lora/lora --to diffusers --out exported/mine-lora
      a LoRA by itself; runs/mine-lora/checkpoint is the model with it
"""
ONLY_IMPORT = ("config", "prediction", "size", "text_encoder")


def main(arguments: Sequence[str]) -> None:
    """Converts a checkpoint."""
    parser = Parser("Checkpoints of other tools to ours, and back. Nothing in a file is ever run.", EXAMPLES, {"--device": NO_GPU})
    parser.add_argument("way", choices=("import", "export"), help="import: other tools' to ours; export: ours to other tools'")
    parser.add_argument("source", type=Path, help="a .ckpt or .safetensors file or a folder of diffusers' (import); a checkpoint (export)")
    parser.add_argument("--out", type=Path, required=True, help="the folder or file to write; an earlier one of its kind is replaced")
    parser.add_argument("--config", type=Path, help="the YAML of a file of CompVis's code (import)")
    parser.add_argument("--prediction", choices=get_args(PredictionName), help="what a Stable Diffusion file predicts (import)")
    parser.add_argument(
        "--size", type=int, help="its pictures' side (import; default: as the YAML says; without one 512, or 768 with --prediction v)"
    )
    parser.add_argument("--text-encoder", metavar="FOLDER", help="folder or hub name of its text encoder, or of the tokenizer (import)")
    parser.add_argument("--to", choices=("diffusers", "compvis"), help="whose format (export)")
    options = parser.parse_args(arguments)
    if options.way == "export":
        for name in ONLY_IMPORT:
            if getattr(options, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} is for import only")
        if options.to is None:
            raise UserError("export needs --to: diffusers (a folder) or compvis (a single file)")
    elif options.to is not None:
        raise UserError("--to is for export only: what is imported becomes a checkpoint of ours")
    if options.size is not None and options.size < 1:
        raise UserError(f"--size must be at least 1, got {options.size}")

    from ldm.app import convert

    convert.main(options)
