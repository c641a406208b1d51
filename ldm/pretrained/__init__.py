"""Pretrained networks, with or without a hub: one table (`table.py`), one verified cache (`cache.py`), and the modules built from them."""

from __future__ import annotations

from ldm.pretrained.cache import fetch
from ldm.pretrained.inception import class_layer, fid_inception
from ldm.pretrained.perceptual import lpips_to_count, vgg_lpips
from ldm.pretrained.text import BertTokenizer, minilm

__all__ = ["BertTokenizer", "class_layer", "fetch", "fid_inception", "lpips_to_count", "minilm", "vgg_lpips"]
