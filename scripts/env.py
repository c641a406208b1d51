#!/usr/bin/env python
"""What this machine has. `--help` has examples."""

from ldm.app.arguments.env import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
