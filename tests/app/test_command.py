"""`ldm COMMAND`: the scripts as one command, which names itself in help and errors, is quick, and completes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm import __main__ as command
from ldm.app import cli
from ldm.app.commands import CALLER, COMMANDS

ROOT = Path(__file__).parents[2]
NO_COMMANDS = {"demo", "emoji_set", "make_emoji"}  # the demo shows scripts of a checkout; the others made what is built in
# Prints every command's help, and what of the heavy libraries was loaded at the end.
ALL_HELP = """
import sys
from ldm.__main__ import CALLER, COMMANDS, main
CALLER.command = ""
for name in ["", *COMMANDS]:
    try:
        main([name, "--help"] if name else ["--help"])
    except SystemExit as left:
        assert left.code == 0
    print("====")
print(*sorted({"PIL", "argcomplete", "numpy", "torch", "torchvision", "transformers"} & sys.modules.keys()))
"""


def ldm(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m ldm` with these words, in a folder."""
    everywhere = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "1000"} | environment
    return subprocess.run([sys.executable, "-m", "ldm", *words], cwd=cwd, env=everywhere, capture_output=True, text=True)


@pytest.fixture
def called_as_ldm() -> Iterator[None]:
    CALLER.command = ""
    yield
    CALLER.command = None


def test_every_script_is_a_command() -> None:
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    assert {known.script for known in COMMANDS.values()} == scripts - NO_COMMANDS


def test_help_of_every_command_names_the_command_and_loads_nothing_heavy(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALL_HELP],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=True,
    )
    own, *helps, loaded = done.stdout.split("====\n")
    assert loaded.strip() == ""
    assert all(f"\n  {name} " in own for name in COMMANDS)
    for name, text in zip(COMMANDS, helps, strict=True):
        assert text.startswith(f"usage: ldm {name} ") and f"  ldm {name}" in text.partition("examples:")[2], text
        assert not [script for script in COMMANDS.values() if f"scripts/{script.script}.py" in text], text


@pytest.mark.parametrize(
    "words, said",
    [
        (["txt2im"], "error: unknown command 'txt2im'; allowed: .* Did you mean 'txt2img'?"),
        (["train_ldm"], "error: unknown command 'train_ldm'; allowed: .* Did you mean 'train-ldm'?"),
        ([], "error: the following arguments are required: COMMAND; see ldm --help"),
        (["--no-such"], "error: the following arguments are required: COMMAND; see ldm --help"),
        (["sample", "--no-such"], "error: unrecognized arguments: --no-such; see ldm sample --help"),
        (
            ["sample", "--prompt", "a"],
            "error: --prompt is a flag of ldm txt2img, which draws a text; "
            "beside other conditions it is --cond text=TEXT; see ldm sample --help",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_nearest(
    words: list[str], said: str, called_as_ldm: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["ldm", *words])
    with pytest.raises(SystemExit, match="2"):
        cli.run(command.main)
    before, _, after = said.partition(".* ")
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and complaint.startswith(before) and complaint.endswith(f"{after}\n")


@pytest.mark.parametrize(
    "text, as_ldm",
    [
        ("python scripts/prepare_data.py photos", "ldm prepare photos"),
        ("use scripts/train_vae.py, or", "use ldm train-vae, or"),
        ("torchrun --nproc_per_node 4 scripts/train_ldm.py data.size=64", "torchrun --nproc_per_node 4 -m ldm train-ldm data.size=64"),
        ("see txt2img.py; python scripts/demo.py", "see txt2img.py; python scripts/demo.py"),
    ],
)
def test_texts_name_commands_as_they_are_typed(text: str, as_ldm: str, called_as_ldm: None) -> None:
    assert CALLER.worded(text) == as_ldm
    CALLER.command = None
    assert CALLER.worded(text) == text


def test_the_module_is_the_command_and_describes_a_shipped_config_in_an_empty_folder(tmp_path: Path) -> None:
    done = ldm("describe", "--config", "configs/ldm/emoji.yaml", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "conditioned on mask: an image and a mask (ldm inpaint)" in done.stdout
    assert ldm("--version").stdout.split() == ["ldm", command.__version__]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line, offered",
    [
        ("ldm tra", {"train-vae", "train-ldm", "train-classifier"}),
        ("ldm txt2img --st", {"--steps"}),
        ("ldm txt2img --sampler dpmpp_2m", {"dpmpp_2m", "dpmpp_2m_sde"}),
        ("ldm txt2img --precision ", {"fp32", "bf16", "fp16"}),
        ("ldm train-ldm --conf", {"--config"}),
    ],
)
def test_a_shell_is_answered_with_completions(line: str, offered: set[str], tmp_path: Path) -> None:
    """By argcomplete's protocol: as bash calls it, but with a file for the answer."""
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    answer = tmp_path / "answer"
    ldm(_ARGCOMPLETE_STDOUT_FILENAME=str(answer), **asked)
    assert {word.strip() for word in answer.read_text().split("\n")} == offered
