#!/usr/bin/env python
"""Pictures of a text. `--help` has examples."""

from ldm.app.arguments.txt2img import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
