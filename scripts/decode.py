#!/usr/bin/env python
"""Latents to pictures. `--help` has examples."""

from ldm.app.arguments.decode import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
