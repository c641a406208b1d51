"""Numeric precision of networks: autocast, the dtypes that weights may be stored in, and blocks that need full float32."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from ldm.core.errors import UserError
from ldm.core.settings import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """A context that computes in the given precision; for fp32 it changes nothing."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, DTYPES[precision])


def check_precision(device: torch.device, precision: Precision) -> None:
    """Multiplies two numbers in it: some devices refuse half a precision, and torch has others compute in float32 with only a warning.

    Raises:
        UserError: the device cannot compute in this precision, e.g. an Apple GPU before macOS 14 in bf16.
    """
    if precision == "fp32":
        return
    one, reason = torch.ones(1, 1, device=device), "torch would compute in float32"
    try:
        with warnings.catch_warnings(action="ignore"), autocast(device, precision):
            if (one @ one).dtype == DTYPES[precision]:
                return
    except (RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0][:120]
    other = "fp16" if precision == "bf16" else "bf16"
    raise UserError(f"precision {precision} does not run on {device} ({reason}); use fp32, or {other} if that runs")


def dtypes_to_hold(network: nn.Module, precision: Precision) -> dict[str, torch.dtype]:
    """Dtypes that a network's weights may be stored in if it computes only within `autocast`, by their names in its state dict.

    Autocast casts the weights of linear and convolution layers, nearly all there are, to its dtype at each call. Storing them in that dtype
    gives bit-identical results in half the memory. Norms and embeddings, which autocast leaves alone, keep their dtype.
    """
    dtypes = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    for name, layer in network.named_modules():
        if precision != "fp32" and isinstance(layer, nn.Linear | nn.Conv2d):
            dtypes |= {f"{name}.{leaf}": DTYPES[precision] for leaf, _ in layer.named_parameters()}
    return dtypes


def whole_float32() -> AbstractContextManager[Any]:
    """A context in which a GPU's convolutions use full float32; by default torch lets it round the inputs to 10 bits (TF32)."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast. Does nothing on the meta device, which torch.autocast does not support."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
