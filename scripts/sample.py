#!/usr/bin/env python
"""Pictures of a class, of a map, of boxes, or of nothing in particular. `--help` has examples."""

from ldm.app.arguments.sample import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
