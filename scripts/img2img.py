#!/usr/bin/env python
"""A picture noised and denoised towards a prompt. `--help` has examples."""

from ldm.app.arguments.img2img import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
