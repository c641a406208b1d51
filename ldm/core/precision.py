"""Precisions of networks: what computes in half of it, what holds it, and where it must not reach."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from ldm.core.settings import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """A block that computes in a precision; in fp32 nothing is changed."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, DTYPES[precision])


def dtypes_to_hold(network: nn.Module, precision: Precision) -> dict[str, torch.dtype]:
    """What a network's weights, by their names in its state dict, may be held in where it only computes within `autocast`.

    That turns the weights of linear and convolution layers, nearly all there are, into its dtype anyhow, anew at each call: so the results
    are the same bits, for half the memory. Norms and embeddings, which it leaves alone, stay as they are.
    """
    dtypes = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    for name, layer in network.named_modules():
        if precision != "fp32" and isinstance(layer, nn.Linear | nn.Conv2d):
            dtypes |= {f"{name}.{leaf}": DTYPES[precision] for leaf, _ in layer.named_parameters()}
    return dtypes


def whole_float32() -> AbstractContextManager[Any]:
    """A block in which a GPU convolves in all of float32's bits; by default torch lets it round its inputs to ten."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A block that autocast leaves alone; on the meta device, which torch.autocast does not know, there is none to leave."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
