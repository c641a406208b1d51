"""The picture-making scripts: what they leave, what they say, and one line with exit code 2 for each mistake."""

from __future__ import annotations

import errno
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldm.app import cli
from ldm.app.arguments import img2img, inpaint, sample, txt2img, upscale
from ldm.core.errors import UserError
from ldm.core.ownership import RECORD

ROOT = Path(__file__).parents[2]
MAINS = {"txt2img": txt2img.main, "sample": sample.main, "inpaint": inpaint.main, "img2img": img2img.main, "upscale": upscale.main}


@pytest.fixture
def home(tmp_path: Path, tiny: Callable[..., Path], tiny_classifier: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model of everything, one of nothing, classifiers for it, and pictures; the current one."""
    (tmp_path / "model").symlink_to(tiny("text", "class", "mask", "map"))
    (tmp_path / "plain").symlink_to(tiny(first_stage="identity"))
    (tmp_path / "boxed").symlink_to(tiny("boxes"))
    (tmp_path / "enlarger").symlink_to(tiny("small"))
    (tmp_path / "boxes.json").write_text("[[0, 0.1, 0.2, 0.5, 0.9], [3, 0, 0, 1, 1]]")
    (tmp_path / "crossed.json").write_text("[[0, 0.5, 0.2, 0.1, 0.9]]")
    (tmp_path / "named.json").write_text('[["cat", 0.1, 0.2, 0.5, 0.9]]')
    (tmp_path / "unknown.json").write_text("[[4, 0.1, 0.2, 0.5, 0.9]]")
    (tmp_path / "many.json").write_text("[[0, 0.1, 0.2, 0.5, 0.9], [3, 0, 0, 1, 1], [3, 0, 0, 1, 1]]")
    (tmp_path / "guide").symlink_to(tiny_classifier())
    (tmp_path / "judge").symlink_to(tiny_classifier(process=None))
    pixels = np.random.default_rng(0).integers(0, 256, (21, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    mask = Image.new("L", (30, 21))
    ImageDraw.Draw(mask).rectangle((8, 6, 19, 12), fill=255)
    mask.save(tmp_path / "mask.png")
    Image.new("L", (21, 30), 255).save(tmp_path / "turned.png")
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) % 4).save(tmp_path / "map.png")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "photo.png").read_bytes()[:300])
    (tmp_path / "huge.png").write_bytes(huge_png(20_000))
    (tmp_path / "file").write_text("a file")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def huge_png(side: int) -> bytes:
    """A small file that says it is a picture of side x side."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


def call(script: str, arguments: str | Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a script's main run by `ldm.app.cli`."""
    words = arguments.split() if isinstance(arguments, str) else list(arguments)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
    with pytest.raises(SystemExit) as left:
        cli.run(MAINS[script])
    return int(left.value.code)


def names_in(folder: Path) -> list[str]:
    """What a user sees in a folder: without the record of what the scripts wrote."""
    return sorted(path.name for path in folder.iterdir() if path.name != RECORD)


GOOD = {
    "txt2img": ["--model", "model", "--prompt", "a red heart", "--steps", "1"],
    "sample": "--model plain --steps 1".split(),
    "inpaint": "--model plain --image photo.png --mask mask.png --steps 1".split(),
    "img2img": "--model plain --image photo.png --strength 0.5 --steps 2".split(),
    "upscale": "--model enlarger --image photo.png --steps 1".split(),
}


@pytest.mark.parametrize("script", GOOD)
def test_what_a_script_leaves(home, script, monkeypatch, capsys):
    assert call(script, [*GOOD[script], "--num-images", "3", "--seed", "7", "--out", "made/here"], monkeypatch) == 0
    out = home / "made" / "here"
    assert names_in(out) == ["000.png", "001.png", "002.png", "grid.png", "parameters.json"]
    assert capsys.readouterr().out.splitlines()[-1] == "3 pictures, grid.png and parameters.json in made/here"

    parameters = json.loads((out / "parameters.json").read_text())
    assert parameters["seed"] == 7 and parameters["sampler"] == "ddim" and parameters["guidance"] == 2.0
    assert parameters.pop("pictures") == ["000.png", "001.png", "002.png"]
    with Image.open(out / "001.png") as picture:
        assert json.loads(picture.text["parameters"]) == parameters | {"number": 1}
        size = picture.size
    with Image.open(out / "grid.png") as grid:
        assert grid.size == (3 * (size[0] + 4) + 4, size[1] + 8)
        shown = np.array(grid)[4:-4, size[0] + 8 : 2 * size[0] + 8]
        assert np.array_equal(shown, np.array(Image.open(out / "001.png").convert("RGB")))


def test_names_that_are_no_utf_8_are_taken_and_remembered(home, monkeypatch):
    """As a disk written with another encoding has them."""
    (home / "gr\udcfcn.png").write_bytes((home / "photo.png").read_bytes())
    words = "--model plain --image gr\udcfcn.png --strength 0.5 --steps 2 --num-images 1 --out au\udcdfen"
    assert call("img2img", words, monkeypatch) == 0
    assert json.loads((home / "au\udcdfen" / "parameters.json").read_text())["image"] == "gr\udcfcn.png"
    with Image.open(home / "au\udcdfen" / "000.png") as picture:
        assert json.loads(picture.text["parameters"])["image"] == "gr\udcfcn.png"


def test_all_inputs_are_remembered(home, monkeypatch):
    words = [*GOOD["inpaint"], "--out", "made", "--num-images", "1"]
    assert call("inpaint", words, monkeypatch) == 0
    parameters = json.loads((home / "made" / "parameters.json").read_text())
    assert parameters["image"] == "photo.png" and parameters["mask"] == "mask.png" and parameters["prompt"] is None


def test_limits_of_guidance_and_a_classifier_are_remembered(home, monkeypatch):
    """As JSON, which knows no infinity, and as they were resolved; they change the picture."""
    calls = {
        "plainly": "",
        "limited": "--guidance-interval 0.3 inf --guidance-rescale 0.5",
        "guided": "--label owl --classifier guide --classifier-scale 50",
        "bayes": "--label owl --classifier guide",
    }
    written = {}
    for out, words in calls.items():
        script = "sample" if "label" in words else "txt2img"
        more = "--model plain" if script == "sample" else "--model model --prompt cat"
        assert call(script, f"{more} {words} --num-images 1 --out {out}", monkeypatch) == 0
        written[out] = json.loads((home / out / "parameters.json").read_text(), parse_constant=pytest.fail)
    assert (written["plainly"]["guidance_interval"], written["plainly"]["guidance_rescale"]) == (None, 0.0)
    assert (written["limited"]["guidance_interval"], written["limited"]["guidance_rescale"]) == ([0.3, "inf"], 0.5)
    assert (written["guided"]["classifier"], written["guided"]["classifier_scale"], written["bayes"]["classifier_scale"]) == (
        "guide",
        50.0,
        1.0,
    )
    for one, other in (("plainly", "limited"), ("guided", "bayes")):
        assert not np.array_equal(np.array(Image.open(f"{one}/000.png")), np.array(Image.open(f"{other}/000.png")))


def test_boxes_are_heard(home, monkeypatch):
    for boxes, out in (("boxes.json", "as-given"), ("moved.json", "moved")):
        (home / "moved.json").write_text("[[0, 0.4, 0.2, 0.8, 0.9], [3, 0, 0, 1, 1]]")
        assert call("sample", f"--model boxed --boxes {boxes} --num-images 1 --out {out}", monkeypatch) == 0
    pixels = []
    for out in ("as-given", "moved"):
        with Image.open(home / out / "000.png") as picture:
            pixels.append(np.asarray(picture, int))
    assert np.abs(pixels[0] - pixels[1]).max() > 0
    assert json.loads(Path("as-given/parameters.json").read_text())["boxes"] == "boxes.json"


def test_a_picture_is_enlarged(home, monkeypatch):
    assert call("upscale", "--model enlarger --image photo.png --num-images 2 --steps 1 --out large", monkeypatch) == 0
    for number in (0, 1):
        with Image.open(home / "large" / f"00{number}.png") as picture:
            assert picture.size == (60, 42)


def test_the_same_call_makes_the_same_picture(home, monkeypatch):
    for out in ("one", "other"):
        assert call("sample", f"--model model --label owl --map map.png --num-images 1 --seed 3 --out {out}", monkeypatch) == 0
    assert np.array_equal(np.array(Image.open("one/000.png")), np.array(Image.open("other/000.png")))
    assert call("sample", "--model model --label dog --map map.png --num-images 1 --seed 3 --out other", monkeypatch) == 0
    assert not np.array_equal(np.array(Image.open("one/000.png")), np.array(Image.open("other/000.png")))


def test_a_second_call_leaves_no_mix(home, monkeypatch):
    """Pictures of the call before go; the user's own files stay."""
    assert call("sample", [*GOOD["sample"], "--num-images", "5", "--out", "made"], monkeypatch) == 0
    for own in ("010.png", "notes.txt"):
        (home / "made" / own).write_text("mine")
    assert call("sample", [*GOOD["sample"], "--num-images", "2", "--out", "made"], monkeypatch) == 0
    assert names_in(home / "made") == ["000.png", "001.png", "010.png", "grid.png", "notes.txt", "parameters.json"]


@pytest.mark.parametrize("listed", ["../photo.png", "/etc/x.png", "", "a\0b", 3])
def test_a_forged_record_removes_nothing(home, listed, monkeypatch):
    """A record that lists anything outside its folder is no record."""
    (home / "made").mkdir()
    files = {"mine.png": ["0"], "5.png": [], str(listed) if listed != 3 else "3.png": 3}
    (home / "made" / RECORD).write_text(json.dumps({"tool": "ldm 1", "files": files}))
    (home / "made" / "5.png").write_text("mine")
    assert call("sample", [*GOOD["sample"], "--num-images", "1", "--out", "made"], monkeypatch) == 0
    assert (home / "photo.png").is_file() and (home / "made" / "5.png").read_text() == "mine"


@pytest.mark.parametrize("earlier", [0, 3])
@pytest.mark.parametrize("name", ["001.png", "grid.png", "parameters.json"])
def test_a_users_own_file_is_never_overwritten(home, name, earlier, monkeypatch, capsys):
    """Nor one of an earlier call that was painted over since."""
    if earlier:
        assert call("sample", [*GOOD["sample"], "--num-images", str(earlier), "--out", "album"], monkeypatch) == 0
    (home / "album").mkdir(exist_ok=True)
    content = (home / "photo.png").read_bytes() if name.endswith(".png") else b'{"tool": "mine"}'
    (home / "album" / name).write_bytes(content)
    before = {path.name: path.read_bytes() for path in (home / "album").iterdir()}
    assert call("sample", [*GOOD["sample"], "--num-images", "2", "--out", "album"], monkeypatch) == 2
    assert f"album/{name} is not from this tool, or was changed since" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (home / "album").iterdir()} == before


def test_a_picture_that_was_painted_over_stays_when_fewer_follow(home, monkeypatch):
    for count in (4, 2):
        assert call("sample", [*GOOD["sample"], "--num-images", str(count), "--out", "album"], monkeypatch) == 0
        (home / "album" / "003.png").write_bytes(b"mine")
        (home / "album" / "notes.txt").write_text("mine")
    assert names_in(home / "album") == ["000.png", "001.png", "003.png", "grid.png", "notes.txt", "parameters.json"]
    assert (home / "album" / "003.png").read_bytes() == b"mine"


def test_inpaint_keeps_known_pixels_in_the_file(home, monkeypatch):
    assert call("inpaint", [*GOOD["inpaint"], "--out", "made", "--num-images", "1"], monkeypatch) == 0
    before, after, mask = (np.array(Image.open(path)) for path in ("photo.png", "made/000.png", "mask.png"))
    assert np.array_equal(after[mask == 0], before[mask == 0]) and not np.array_equal(after[mask > 0], before[mask > 0])


def test_a_doubtful_mask_is_told_before_it_is_painted(home, monkeypatch, capsys):
    with Image.open("photo.png") as photo:
        Image.linear_gradient("L").resize(photo.size).save("grey.png")
    call("inpaint", ["--model", "plain", "--image", "photo.png", "--mask", "grey.png", "--out", "made", "--num-images", "1"], monkeypatch)
    note, *_ = capsys.readouterr().out.splitlines()
    assert note.startswith("note: grey.png has ") and "128 and above is object" in note


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" + bytes(40), b"%!PS-Adobe-3.0 EPSF-3.0\n", b""], ids=["damaged", "EPS", "empty"])
def test_a_damaged_picture_in_the_folder_is_the_users_own(home, content, monkeypatch, capsys):
    (home / "album").mkdir()
    (home / "album" / "001.png").write_bytes(content)
    assert call("sample", [*GOOD["sample"], "--num-images", "2", "--out", "album"], monkeypatch) == 2
    assert "album/001.png is not from this tool, or was changed since" in capsys.readouterr().err


TXT, EDIT = ["--model", "model", "--prompt", "a cat"], ["--model", "plain", "--image", "photo.png"]
LABEL = ["--model", "model", "--label", "cat"]
PLAIN, BOXED, GUIDED = ["--model", "plain"], ["--model", "boxed", "--boxes"], ["--model", "plain", "--classifier"]
MISTAKES: dict[str, tuple[str, list[str], str]] = {
    "no such model": ("txt2img", ["--model", "nowhere", "--prompt", "a cat"], "checkpoint nowhere: no such folder"),
    "a model that is none": ("sample", ["--model", "."], "has no manifest.json"),
    "no prompt": ("txt2img", ["--model", "model"], "the following arguments are required: --prompt"),
    "empty prompt": ("txt2img", ["--model", "model", "--prompt", " "], "--prompt is empty"),
    "prompt for a model without text": ("txt2img", ["--model", "plain", "--prompt", "a cat"], "not trained with text"),
    "empty prompt of inpaint": ("inpaint", ["--model", "model", *EDIT[2:], "--mask", "mask.png", "--prompt", ""], "the prompt is empty"),
    "unknown sampler": ("txt2img", [*TXT, "--sampler", "dimm"], "langevin, ode, pc, pndm, unipc. Did you mean 'ddim'?"),
    "unknown grid": ("txt2img", [*TXT, "--grid", "carras"], "log_snr, shifted, trailing, uniform. Did you mean 'karras'?"),
    "unknown precision": ("txt2img", [*TXT, "--precision", "fp8"], "fp32"),
    "unknown flag": ("txt2img", [*TXT, "--sede", "1"], "unrecognized arguments: --sede 1; see txt2img.py --help"),
    "negative steps": ("txt2img", [*TXT, "--steps", "-1"], "steps must be at least 1, got -1"),
    "no steps": ("sample", ["--model", "plain", "--steps", "0"], "steps must be at least 1, got 0"),
    "too many steps": ("sample", ["--model", "plain", "--steps", "101"], "use at most 100"),
    "steps of another kind": ("sample", ["--model", "plain", "--steps", "many"], "invalid int value: 'many'"),
    "no pictures": ("sample", ["--model", "plain", "--num-images", "0"], "number of images must be at least 1, got 0"),
    "negative guidance": ("txt2img", [*TXT, "--guidance", "-1"], "guidance must be a number from 0 up"),
    "unknown label": ("sample", ["--model", "model", "--label", "doq"], "allowed: cat, dog, owl. Did you mean 'dog'?"),
    "label out of range": ("sample", ["--model", "model", "--label", "3"], "label 3 is outside 0 to 2"),
    "label for a model without": ("sample", ["--model", "plain", "--label", "cat"], "not trained with class labels"),
    "no such map": ("sample", ["--model", "model", "--map", "no.png"], "no.png: no such file"),
    "a map of colours": ("sample", ["--model", "model", "--map", "photo.png"], "must be a grey or palette picture"),
    "a map of other classes": ("sample", ["--model", "model", "--map", "mask.png"], "the map has class 255"),
    "no such boxes": ("sample", [*BOXED, "no.json"], "no.json: no such file"),
    "boxes that are none": ("sample", [*BOXED, "text.png"], "text.png: not boxes as JSON"),
    "a box turned round": ("sample", [*BOXED, "crossed.json"], "left < right"),
    "a box of another class": ("sample", [*BOXED, "unknown.json"], "a box has class 4; this model knows 0 to 3"),
    "too many boxes": ("sample", [*BOXED, "many.json"], "this model takes 1 to 2 boxes, got 3"),
    "boxes for a model without": ("sample", [*PLAIN, "--boxes", "boxes.json"], "not trained with boxes"),
    "boxes in place of their file": ("sample", [*BOXED, "[[0, 0, 0, 1, 1]]"], "boxes are read from a file"),
    "a box of a class by name": ("sample", [*BOXED, "named.json"], "the class of a box must be a number, from 0, got 'cat'"),
    "a label given twice": ("sample", [*LABEL, "--cond", "class=owl"], "condition 'class' is given twice"),
    "a condition given twice": (
        "sample",
        ["--model", "model", "--cond", "class=cat", "--cond", "class=owl"],
        "--cond class is given 2 times",
    ),
    "a mask without its picture": (
        "sample",
        ["--model", "model", "--cond", "mask=mask.png"],
        "scripts/inpaint.py --image PICTURE --mask MASK",
    ),
    "a prompt for sample": ("sample", ["--prompt", "a cat"], "--prompt is a flag of scripts/txt2img.py"),
    "a label for txt2img": ("txt2img", ["--prompt=a cat", "--label=cat"], "--label is a flag of scripts/sample.py"),
    "a device": ("txt2img", [*TXT, "--device", "cuda:77"], "device 'cuda:77' is not available here; available: "),
    "a text for a model of classes": ("txt2img", ["--model", "boxed", "--prompt", "a"], "it takes boxes (scripts/sample.py --boxes)"),
    "no model to enlarge with": ("upscale", ["--image", "photo.png"], "required: --model"),
    "no such LoRA": ("txt2img", [*TXT, "--lora", "nowhere"], "LoRA nowhere: no such folder; a run of scripts/train_ldm.py"),
    "a judge as model": ("sample", ["--model", "judge"], "pass it as --judge of scripts/evaluate.py ldm"),
    "a model that enlarges nothing": ("upscale", ["--model", "plain", "--image", "photo.png"], "not trained with low-resolution images"),
    "no image": ("inpaint", ["--model", "plain", "--mask", "mask.png"], "required: --image"),
    "no such image": ("inpaint", ["--model", "plain", "--image", "no.png", "--mask", "mask.png"], "no.png: no such file"),
    "a folder as image": ("img2img", ["--model", "plain", "--image", ".", "--strength", "1"], "cannot be read"),
    "not a picture": ("img2img", ["--model", "plain", "--image", "text.png", "--strength", "1"], "text.png: not a picture"),
    "half a picture": ("img2img", ["--model", "plain", "--image", "cut.png", "--strength", "1"], "cut.png: damaged picture"),
    "a huge picture": ("img2img", ["--model", "plain", "--image", "huge.png", "--strength", "1"], "million"),
    "a huge mask": ("inpaint", [*EDIT, "--mask", "huge.png"], "huge.png"),
    "mask of another size": ("inpaint", [*EDIT, "--mask", "turned.png"], "the mask is 21x30, the picture 30x21"),
    "strength out of range": ("img2img", [*EDIT, "--strength", "2"], "strength must be above 0 and at most 1, got 2.0"),
    "no strength": ("img2img", EDIT, "required: --strength"),
    "an interval of one level": ("txt2img", [*TXT, "--guidance-interval", "1"], "--guidance-interval: expected 2 arguments"),
    "an interval turned round": ("txt2img", [*TXT, "--guidance-interval", "2", "1"], "0 <= low <= high, got 2.0 and 1.0"),
    "too much rescale": ("img2img", [*EDIT, "--strength", "1", "--guidance-rescale", "2"], "from 0 (none) to 1 (all), got 2.0"),
    "a classifier without a label": ("sample", [*PLAIN, "--classifier", "guide"], "--classifier needs --label, the class to lead to"),
    "a scale of no classifier": ("sample", [*PLAIN, "--classifier-scale", "2"], "name one with --classifier"),
    "a label that the classifier lacks": ("sample", [*GUIDED, "guide", "--label", "owll"], "Did you mean 'owl'?"),
    "a classifier turned round": (
        "sample",
        [*GUIDED, "guide", "--label", "owl", "--classifier-scale", "-1"],
        "scale must be a number from 0 up",
    ),
    "a judge as guide": ("sample", [*GUIDED, "judge", "--label", "owl"], "it can judge but not guide"),
    "a model as guide": ("sample", [*GUIDED, "plain", "--label", "owl"], "checkpoint plain holds a diffusion model, not a classifier"),
    "a guide that sees pixels, for latents": (
        "sample",
        ["--model", "model", "--label", "owl", "--classifier", "guide"],
        "it was trained on pixels, the model draws latents of first stage",
    ),
    "a classifier as model": ("txt2img", ["--model", "guide", "--prompt", "a cat"], "checkpoint guide holds a classifier"),
    "out is a file": ("sample", ["--model", "plain", "--out", "file"], "--out file: file is a file"),
    "out is under a file": ("sample", ["--model", "plain", "--out", "file/deep/er"], "--out file/deep/er: file is a file"),
}


@pytest.mark.parametrize("script, words, said", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(home, script, words, said, monkeypatch, capsys):
    before = sorted(path.name for path in home.iterdir())
    assert call(script, words if "--out" in words else [*words, "--out", "made"], monkeypatch) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ") and said in line
    assert sorted(path.name for path in home.iterdir()) == before  # nothing half-written


def test_the_command_line():
    def leaves(error: BaseException) -> int:
        def main(arguments: Sequence[str]) -> None:
            raise error

        with pytest.raises(SystemExit) as left:
            cli.run(main)
        return int(left.value.code)

    assert leaves(UserError("two\nlines")) == 2
    assert leaves(OSError(errno.ENOSPC, "No space left on device", "x.png")) == 2
    assert leaves(PermissionError(errno.EACCES, "Permission denied", "x.png")) == 2
    assert leaves(KeyboardInterrupt()) == 130
    with pytest.raises(ZeroDivisionError):  # our own bug keeps its traceback
        cli.run(lambda arguments: print(1 / 0))


def test_a_full_disk_is_one_line_and_leaves_the_old_pictures(home, monkeypatch, capsys):
    assert call("sample", [*GOOD["sample"], "--num-images", "1", "--out", "made"], monkeypatch) == 0
    old = (home / "made" / "000.png").read_bytes()
    capsys.readouterr()

    write = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if "000.png" not in self.name:
            return write(self, content)
        write(self, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert call("sample", [*GOOD["sample"], "--num-images", "1", "--seed", "1", "--out", "made"], monkeypatch) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: disk full while writing") and "000.png" in line
    assert (home / "made" / "000.png").read_bytes() == old
    assert names_in(home / "made") == ["000.png", "grid.png", "parameters.json"]


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, cwd=ROOT)


def test_a_real_process(tmp_path, tiny):
    script = str(ROOT / "scripts" / "txt2img.py")
    made = python(script, "--model", str(tiny("text")), "--prompt", "a red heart", "--num-images", "1", "--out", str(tmp_path / "made"))
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1] == f"1 picture, grid.png and parameters.json in {tmp_path / 'made'}"
    assert "3/3" in made.stderr and "Traceback" not in made.stderr  # the bar

    wrong = python(script, "--model", str(tiny("text")), "--prompt", "a red heart", "--steps", "-1", "--out", str(tmp_path / "no"))
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", "error: steps must be at least 1, got -1\n")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("script", MAINS)
def test_help_has_examples(script, capsys, monkeypatch):
    assert call(script, "--help", monkeypatch) == 0
    assert f"examples:\n  python scripts/{script}.py" in capsys.readouterr().out


def test_drawing_from_text_loads_nothing_that_takes_longer_than_drawing():
    """torch's compiler and its algebra, torchvision, transformers and scipy: four seconds where pictures take two."""
    program = """
import sys
from ldm import LatentDiffusion
LatentDiffusion.from_pretrained("checkpoints/emoji").text_to_image("a red heart", steps=1)
print(*sorted({"scipy", "sympy", "torch._dynamo", "torchdiffeq", "torchvision", "transformers"} & sys.modules.keys()))
"""
    assert python("-c", program).stdout == "\n"


def test_importing_ldm_is_light():
    found = python("-c", "import ldm, sys; print(ldm.__version__, 'torch' in sys.modules, ldm.LatentDiffusion.__name__)")
    assert found.stdout.split()[1:] == ["False", "LatentDiffusion"], found.stderr
