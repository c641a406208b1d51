"""`scripts/convert.py`: checkpoints of CompVis's code, of Stable Diffusion and of diffusers to ours, and back."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.app.sampling_run import check_folder
from ldm.checkpoints.lora import is_lora, load_lora
from ldm.core.errors import UserError
from ldm.core.files import Outputs
from ldm.core.ownership import check_replaceable
from ldm.interop.compvis.export import export_compvis
from ldm.interop.diffusers.export import WEIGHTS, export_diffusers, export_first_stage
from ldm.interop.importing import import_checkpoint
from ldm.interop.lora.export import FILE, export_lora_diffusers, export_lora_file
from ldm.interop.ours import Ours, is_first_stage
from ldm.interop.recipe import IMPORTED

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
    elif options.to == "diffusers" and is_first_stage(options.source):
        notes = export_first_stage(options.source, options.out)
    else:
        write = export_diffusers if options.to == "diffusers" else export_compvis
        notes = write(Ours.open(options.source), options.out)
    for note in notes:
        print(f"note: {note}")
    print(f"{'checkpoint' if options.way == 'import' else options.to} in {options.out}")


def _check_out(options: argparse.Namespace) -> None:
    """Refuses, before any work, to replace what no earlier call left, or what it reads."""
    out, source = options.out.resolve(), options.source.resolve()
    if out in (source, *source.parents):
        raise UserError(f"--out {options.out}: {options.source}, which is read, would be replaced; name another")
    if options.to == "compvis":
        if options.out.is_dir():
            raise UserError(f"--out {options.out}: is a folder; name a file in it")
        Outputs(options.out.parent).check(options.out.name)
        return
    check_replaceable(options.out)
    if options.way == "import" and (options.out / OURS).is_file() and not _was_imported(options.out):
        raise UserError(f"--out {options.out}: holds a checkpoint that was not imported, as its README.md says; name another folder")
    left = (OURS,) if options.way == "import" else (PIPELINE, PARTS, FILE, WEIGHTS)
    if options.out.is_dir() and any(options.out.iterdir()) and not any((options.out / name).is_file() for name in left):
        raise UserError(f"--out {options.out}: is a folder with something else in it; name another")


def _was_imported(checkpoint: Path) -> bool:
    try:
        return IMPORTED in (checkpoint / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
