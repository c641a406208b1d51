#!/usr/bin/env python
"""Pictures to shards. `--help` has examples."""

from ldm.app.arguments.prepare_data import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
