#!/usr/bin/env python
"""A picture noised and denoised towards a prompt. `--help` has examples."""

from ldm.app.cli import run
from ldm.app.img2img import main

if __name__ == "__main__":
    run(main)
