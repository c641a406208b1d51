#!/usr/bin/env python
"""Pictures of a text. `--help` has examples."""

from ldm.app.cli import run
from ldm.app.txt2img import main

if __name__ == "__main__":
    run(main)
