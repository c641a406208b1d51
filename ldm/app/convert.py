"""`scripts/convert.py`: checkpoints of CompVis's code, of Stable Diffusion and of diffusers to ours, and back."""

from __future__ import annotations

import argparse

from ldm.app.sampling_run import check_folder
from ldm.checkpoints.lora import is_lora, load_lora
from ldm.core.errors import UserError
from ldm.interop.compvis.export import export_compvis
from ldm.interop.diffusers.export import export_diffusers
from ldm.interop.importing import import_checkpoint
from ldm.interop.lora.export import FILE, export_lora_diffusers, export_lora_file
from ldm.interop.ours import Ours

OURS, PIPELINE, PARTS = "manifest.json", "model_index.json", "load.py"  # what a folder has that an earlier call may have left


def main(options: argparse.Namespace) -> None:
    """Converts a checkpoint."""
    _check_out(options)
    check_folder(options.out.parent)
    if options.way == "import":
        notes = import_checkpoint(
            options.source,
            options.out,
            config=options.config,
            prediction=options.prediction,
            size=options.size,
            text_encoder=options.text_encoder,
        )
    elif is_lora(options.source):
        write_lora = export_lora_diffusers if options.to == "diffusers" else export_lora_file
        notes = write_lora(load_lora(options.source), options.out)
    else:
        write = export_diffusers if options.to == "diffusers" else export_compvis
        notes = write(Ours.open(options.source), options.out)
    for note in notes:
        print(f"note: {note}")
    print(f"{'checkpoint' if options.way == 'import' else options.to} in {options.out}")


def _check_out(options: argparse.Namespace) -> None:
    """Refuses, before any work, to replace what no earlier call left."""
    if options.out.is_dir():
        left = (OURS,) if options.way == "import" else (PIPELINE, PARTS, FILE)
        if options.to == "compvis" or not any((options.out / name).is_file() for name in left):
            raise UserError(f"--out {options.out}: is a folder with something else in it; name another")
    elif options.out.exists() and options.to != "compvis":
        raise UserError(f"--out {options.out}: is a file; name a folder")
