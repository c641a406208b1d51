#!/usr/bin/env python
"""Part of a picture painted anew. `--help` has examples."""

from ldm.app.cli import run
from ldm.app.inpaint import main

if __name__ == "__main__":
    run(main)
