#!/usr/bin/env python
"""Pictures to latents, a file each. `--help` has examples."""

from ldm.app.arguments.encode import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
