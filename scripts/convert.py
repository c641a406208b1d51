#!/usr/bin/env python
"""Checkpoints of other tools to ours, and back. `--help` has examples."""

from ldm.app.arguments.convert import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
