#!/usr/bin/env python
"""Part of a picture painted anew. `--help` has examples."""

from ldm.app.arguments.inpaint import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
