"""Users' files: regular ones, of a size that was thought of."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ldm.core.errors import UserError
from ldm.core.reading import read_bytes


def test_a_file_is_read_whole_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "file", 7) == read_bytes(tmp_path / "link", 7) == b"content"


def test_what_is_no_file_of_that_size_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(11))
    os.mkfifo(tmp_path / "pipe")  # whoever opens it to read waits for a writer
    (tmp_path / "link").symlink_to("link")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        cases = {
            tmp_path / "large": "more than 0 MiB",
            tmp_path / "pipe": "a pipe, not a file",
            tmp_path / "socket": "cannot be read",
            tmp_path / "link": "cannot be read",
            tmp_path: "a folder, not a file",
            tmp_path / "none": "no such file",
            Path("/dev/zero"): "a device, not a file",
            Path("a\0b"): "cannot be read",
        }
        for path, reason in cases.items():
            with pytest.raises(UserError, match=reason) as caught:
                read_bytes(path, 10)
            assert path.name.replace("\0", "") in str(caught.value).replace("\\x00", "") and "\n" not in str(caught.value)
