"""Words that a text encoder does not read are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ldm.app.arguments.prepare_data import main
from ldm.conditioning.bert_scratch import BertScratchConfig

LONG = "word " * 40 + "and the end"


@pytest.mark.parametrize(
    "text, line",
    [
        ("a cat", ""),
        ("word " * 30, ""),  # 32 with start and end
        ("word " * 30 + "end", "'end' is not read: the text encoder reads 32 tokens and this text has 33"),
        ("a 猫 on a ☃", "the text encoder does not know '猫', '☃'"),
    ],
)
def test_what_is_not_read_of_a_text(text: str, line: str) -> None:
    part = BertScratchConfig(max_tokens=32, width=16, depth=1, heads=1, head_width=16).build(context_width=16, latent_channels=4)
    assert part.unread((text,)) == ([line] if line else [])


def test_what_is_not_read_of_a_data_set() -> None:
    part = BertScratchConfig(max_tokens=32, width=16, depth=1, heads=1, head_width=16).build(context_width=16, latent_channels=4)
    findings = part.remarks([("a.png", ("a cat", LONG)), ("b.png", ("a dog",)), ("c.png", (LONG,)), ("d.png", ("a 猫",))])
    share = 2 * 13 / (2 * 45 + 12)  # of two texts of 45 tokens 31 and the end are read; the others have 4 each
    assert [finding.line() for finding in findings] == [
        "captions have 4 to 45 tokens, median 4; up to 32 are read",
        f"records with a caption of more than 32 tokens, whose end is not read ({share:.1%} of all tokens): 2 (a.png, c.png)",
        "captions with words that the text encoder does not know: 1 (d.png: 猫)",
    ]


def test_preparing_for_a_config_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in/a.png")
    (tmp_path / "in/a.txt").write_text(LONG)
    main([str(tmp_path / "in"), "--check", "--out", str(tmp_path / "out"), "--config", "configs/ldm/emoji-text.yaml"])
    assert "text: records with a caption of more than 32 tokens" in capsys.readouterr().out
