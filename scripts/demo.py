#!/usr/bin/env python
"""The whole journey in minutes, on one page. `--help` has examples."""

from ldm.app.arguments.demo import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
