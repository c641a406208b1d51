#!/usr/bin/env python
"""Pictures to shards. `--help` has examples."""

from ldm.app.cli import run
from ldm.app.prepare_data import main

if __name__ == "__main__":
    run(main)
