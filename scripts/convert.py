#!/usr/bin/env python
"""Checkpoints of other tools to ours, and back. `--help` has examples."""

from ldm.app.cli import run
from ldm.app.convert import main

if __name__ == "__main__":
    run(main)
