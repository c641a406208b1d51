"""Both sources of the FID Inception arrive at the same file, and what is no network is refused."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

from ldm.core.errors import UserError
from ldm.pretrained import class_layer, sources
from ldm.pretrained.convert import inception_of_torch_fidelity, inception_of_torchscript
from ldm.pretrained.inception import fid_inception
from ldm.pretrained.sources import Unavailable

LAYERS = ("first", "Mixed.second")
PARTS = ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var")


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, 3, 1, 7))
        self.beta, self.mean, self.var = (nn.Parameter(torch.randn(width)) for _ in range(3))
        self.padding = [0, 3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.conv2d(x, self.weight, self.beta, padding=self.padding)


def torchscript(*widths: int) -> tuple[bytes, list[torch.Tensor]]:
    """An archive of some layers, and their tensors in order."""
    network = nn.Sequential(*map(Layer, widths))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out
        torch.jit.save(torch.jit.script(network), buffer)
    return buffer.getvalue(), [tensor.detach() for tensor in network.parameters()]


def test_both_readers_arrive_at_the_same_bytes():
    content, tensors = torchscript(4, 5)
    names = [f"{layer}.{part}" for layer in LAYERS for part in PARTS]
    state = dict(zip(names, tensors, strict=True))
    extra = {"first.bn.weight": torch.ones(4), "fc.weight": torch.ones(2, 2)}
    found = inception_of_torchscript(content, LAYERS)
    assert found == inception_of_torch_fidelity(extra | state, LAYERS)
    read = safetensors.torch.load(found)
    assert set(read) == set(names) and all(torch.equal(read[name], tensor) for name, tensor in state.items())


def test_another_number_of_tensors_is_refused():
    content, _ = torchscript(4)
    with pytest.raises(pickle.UnpicklingError, match="4 tensors where 8 belong"):
        inception_of_torchscript(content, LAYERS)


class Trap:
    def __reduce__(self):
        return os.system, ("true",)


def test_an_archive_that_holds_anything_else_is_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps({"layers": Trap()}, protocol=2))
    with pytest.raises(pickle.UnpicklingError, match="refused: posix.system"):
        inception_of_torchscript(buffer.getvalue(), LAYERS)


def test_the_class_layer_is_the_hubs_or_is_said_to_be_missing(monkeypatch):
    layer = torch.rand(1008, 2048)
    monkeypatch.setattr(sources, "from_torch_hub", lambda source, progress: {"fc.weight": layer})
    assert torch.equal(class_layer(), layer)

    def away(source, progress):
        raise Unavailable("no network")

    monkeypatch.setattr(sources, "from_torch_hub", away)
    with pytest.raises(UserError, match="class layer cannot be had.*no network"):
        class_layer()


def test_making_it_leaves_the_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    network = fid_inception()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(p.requires_grad for p in network.parameters())


def test_it_is_the_same_in_train_and_eval_mode():
    network, pictures = fid_inception(), torch.randint(0, 256, (2, 3, 80, 80), dtype=torch.uint8)
    assert torch.equal(network.train()(pictures), network.eval()(pictures))
