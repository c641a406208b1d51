"""The data sets that have names: command lines have them in their help, without torch."""

from __future__ import annotations

from pathlib import Path

BUILTIN = {"emoji-128": Path(__file__).with_name("builtin") / "emoji-128"}
STYLES = "emoji-styles"
"""Drawings of the same things in eight styles, fetched as npm packages; see `emoji/`."""
CLASSIC = ("mnist", "fashion-mnist", "cifar10", "pets")
"""Of torchvision; see `classic.py`."""
