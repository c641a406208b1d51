"""Packages of the npm registry: fetched once, known by their sha256, read without being unpacked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from archives import npm_archive

from ldm.core import packages
from ldm.core.errors import UserError
from ldm.core.packages import NpmPackage


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the registry."""
    monkeypatch.setattr(packages, "REGISTRY", (tmp_path / "registry").as_uri())
    return tmp_path / "registry"


def published(registry: Path, content: bytes) -> NpmPackage:
    package = NpmPackage(name="@scope/name", version="1.2.3", sha256=hashlib.sha256(content).hexdigest())
    place = registry / "@scope/name/-/name-1.2.3.tgz"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    return package


def test_a_package_is_downloaded_once_and_read(registry: Path, tmp_path: Path) -> None:
    package = published(registry, npm_archive({"a.json": b"one", "in/b.json": b"two", "c.json": b"three"}))
    assert package.read(tmp_path / "cache", ("in/b.json", "a.json")) == [b"two", b"one"]
    (registry / "@scope/name/-/name-1.2.3.tgz").unlink()
    assert (tmp_path / "cache/scope-name-1.2.3.tgz").is_file()
    assert package.read(tmp_path / "cache", ("c.json",)) == [b"three"]
    with pytest.raises(UserError, match="@scope/name 1.2.3 has no d.json"):
        package.read(tmp_path / "cache", ("a.json", "d.json"))


def test_another_file_under_its_name_is_refused(registry: Path, tmp_path: Path) -> None:
    package = published(registry, npm_archive({"a.json": b"one"}))
    (registry / "@scope/name/-/name-1.2.3.tgz").write_bytes(npm_archive({"a.json": b"other"}))
    with pytest.raises(UserError, match=r"is not @scope/name 1.2.3 \(sha256\)"):
        package.fetch(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/scope-name-1.2.3.tgz").write_bytes(b"cut")
    with pytest.raises(UserError, match="scope-name-1.2.3.tgz is not"):
        package.fetch(tmp_path / "cache")


def test_what_cannot_be_downloaded_is_said_with_the_place_to_put_it(registry: Path, tmp_path: Path) -> None:
    package = NpmPackage(name="none", version="1.0.0", sha256="")
    with pytest.raises(UserError, match=r"none-1.0.0.tgz cannot be downloaded .* put it into .*cache"):
        package.fetch(tmp_path / "cache")
