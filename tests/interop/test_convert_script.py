"""scripts/convert.py: export and import by its command line, its messages, and the memory that loading takes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from interop_rows import KL, PLAIN, ROWS, write_row

from ldm.app import cli
from ldm.app.arguments import convert, sample, txt2img
from ldm.checkpoints.folder import Checkpoint
from ldm.checkpoints.model import AutoencoderSpec, load_first_stage, write_autoencoder
from ldm.conditioning.bert_scratch import BertScratchConfig
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.first_stage.latent_normalization import LatentNormalization, weights_digest
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.interop.compvis.export import export_compvis
from ldm.interop.diffusers.export import export_diffusers
from ldm.interop.ours import Ours


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The exit code of a script's main, run by `cli.run`."""

    def run(main: Callable, arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["script.py", *arguments.split()])
        with pytest.raises(SystemExit) as exit_:
            cli.run(main)
        return int(exit_.value.code)

    return run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text model and one without conditions; the current folder."""
    monkeypatch.chdir(tmp_path)
    write_row(tmp_path / "text", ROWS["text"])
    write_row(tmp_path / "faces", ROWS["faces"])
    return tmp_path


def write_first_stage(folder: Path, config: KLAutoencoderConfig | VQAutoencoderConfig) -> None:
    """A stage-one checkpoint whose latents have a scale and shift a channel."""
    torch.manual_seed(0)
    weights = config.build().state_dict()
    scale = (1.5, 0.5) if isinstance(config, KLAutoencoderConfig) else (1.5,)
    normalization = LatentNormalization(
        channels=2, downsampling_factor=2, shift=(0.3,) * len(scale), scale=scale, digest=weights_digest(weights)
    )
    write_autoencoder(
        folder, AutoencoderSpec(name="vae", size=16, first_stage=config, normalization=normalization), weights, "# vae\n", 1 << 30
    )


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_first_stage_by_itself_opens_in_diffusers(kind: str, home: Path, call, capsys) -> None:
    """Its latents, times diffusers' scale, are ours, and images come back the same."""
    shape = {"channels": 64, "multipliers": (1, 2), "blocks": 1}
    config = (
        KLAutoencoderConfig(**shape, latent_channels=2) if kind == "kl" else VQAutoencoderConfig(**shape, num_codes=24, code_channels=2)
    )
    write_first_stage(home / "vae", config)
    for _ in range(2):  # replaces its own
        assert call(convert.main, "export vae --to diffusers --out out") == 0
    autoencoder = {"kl": "AutoencoderKL", "vq": "VQModel"}[kind]
    assert f"opens as diffusers' {autoencoder}" in capsys.readouterr().out
    theirs = getattr(diffusers, autoencoder).from_pretrained(home / "out").eval()
    ours, _, _ = load_first_stage(home / "vae", torch.device("cpu"))
    image = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    with torch.no_grad():
        encoded = theirs.encode(image)
        latent = (encoded.latent_dist.mode() if kind == "kl" else encoded.latents) * theirs.config.scaling_factor
        torch.testing.assert_close(latent, ours.encode(image), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(theirs.decode(latent / theirs.config.scaling_factor).sample, ours.decode(latent), rtol=1e-3, atol=1e-4)


def test_samples_are_the_same_after_export_and_import_by_the_command_line(home: Path, call, capsys):
    assert call(convert.main, "export text --to compvis --out out/text.ckpt") == 0
    assert "compvis in out/text.ckpt" in capsys.readouterr().out
    assert call(convert.main, "import out/text.ckpt --config out/text.yaml --out again") == 0
    assert "no EMA weights" in capsys.readouterr().out
    assert call(convert.main, "export again --to diffusers --out folder") == 0
    assert "no pipeline of diffusers runs it" in capsys.readouterr().out
    assert call(convert.main, "export faces --to diffusers --out folder") == 0  # replaces it
    assert call(convert.main, "import folder --out again-faces") == 0

    for model in ("text", "again"):
        arguments = f"--model {model} --prompt cat --steps 2 --num-images 1 --guidance 2 --grid trailing --out pictures-{model}"
        assert call(txt2img.main, arguments) == 0
    for model in ("faces", "again-faces"):
        assert call(sample.main, f"--model {model} --steps 2 --num-images 1 --grid trailing --out pictures-{model}") == 0
    for model in ("text", "faces"):
        one, other = (home / f"pictures-{name}" / "grid.png" for name in (model, f"again{'' if model == 'text' else '-faces'}"))
        assert one.read_bytes() == other.read_bytes()


def test_an_import_replaces_an_import_and_no_other_checkpoint(home: Path, call, capsys):
    assert call(convert.main, "export faces --to diffusers --out folder") == 0
    before = {path: path.read_bytes() for path in (home / "text").iterdir()}
    assert call(convert.main, "import folder --out text") == 2
    assert "text: holds a checkpoint that was not imported, as its README.md says" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (home / "text").iterdir()} == before
    assert call(convert.main, "import folder --out mine") == call(convert.main, "import folder --out mine") == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("import nothing.ckpt --out out", "nothing.ckpt: no such file"),
        ("import text --out out", "text is a checkpoint of this tool, and import takes other tools'"),
        ("import other --out out", "neither model_index.json nor config.json"),
        ("import lora.safetensors --out out", "lora.safetensors: LoRAs are not imported; they are trained here"),
        ("import lora --out out", "lora: LoRAs are not imported"),
        ("export vae --to compvis --out out.ckpt", "is a first stage by itself, which is exported to diffusers only"),
        ("import note.txt --out out", "unknown kind of file"),
        ("import bare.safetensors --out out", "not Stable Diffusion 1 or 2"),
        ("import bare.safetensors --config nothing.yaml --out out", "nothing.yaml: no such file"),
        ("import bare.safetensors --config note.txt --out out", "has no mapping `model:`"),
        ("import text --config a.yaml --out out", "--config is for single files"),
        ("import text --to diffusers --out out", "--to is for export only"),
        ("export text --out out", "export needs --to"),
        ("export text --to diffusers --size 3 --out out", "--size is for import only"),
        ("export text --to compvis --out out", "ends in .safetensors or .ckpt"),
        ("export nothing --to diffusers --out out", "no such folder"),
        ("export text --to diffusers --out other", "other was not written by this tool, and would be replaced (it holds book.yaml)"),
        ("import bare.safetensors --out other", "other was not written by this tool, and would be replaced (it holds book.yaml)"),
        ("import bare.safetensors --out bare.safetensors", "bare.safetensors, which is read, would be replaced"),
        ("import text/in.safetensors --out text", "text/in.safetensors, which is read, would be replaced"),
        ("export text --to diffusers --out faces", "is a folder with something else in it"),
        ("export text --to compvis --out other/mine.safetensors", "other/mine.safetensors is not from this tool"),
        ("export text --to compvis --out other/book.ckpt", "other/book.yaml is not from this tool"),
        ("export text --to compvis --out faces/config.safetensors", "faces/config.yaml is not from this tool"),
        ("export text --to compvis --out faces/denoiser.safetensors", "faces/denoiser.safetensors is not from this tool"),
        ("export text --to compvis --out other", "is a folder; name a file in it"),
        ("export pixels --to diffusers --out out", "has no counterpart"),
    ],
)
def test_mistakes_are_one_line_with_exit_code_2_and_leave_nothing(arguments: str, message: str, home: Path, call, capsys, write_model):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, home / "bare.safetensors")
    save_file({"unet.to_q.lora_A.weight": torch.zeros(1)}, home / "lora.safetensors")
    (home / "lora").mkdir()
    shutil.copy(home / "lora.safetensors", home / "lora" / "pytorch_lora_weights.safetensors")
    write_first_stage(home / "vae", KLAutoencoderConfig(channels=64, multipliers=(1, 2), blocks=1, latent_channels=2))
    (home / "note.txt").write_text("no model here")
    (home / "other").mkdir()
    for name in ("mine.txt", "mine.safetensors", "book.yaml"):
        (home / "other" / name).write_text("keep")
    write_model(home / "pixels", (), first_stage="identity")
    before = sorted(home.rglob("*"))
    assert call(convert.main, arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and message in text
    assert sorted(home.rglob("*")) == before


def test_an_export_replaces_an_earlier_one_and_nothing_that_was_changed(home: Path, call, capsys):
    for suffix in ("safetensors", "ckpt"):
        for _ in range(2):
            assert call(convert.main, f"export text --to compvis --out out/{suffix}/text.{suffix}") == 0
        (home / "out" / suffix / "text.yaml").write_text("mine")
        assert call(convert.main, f"export text --to compvis --out out/{suffix}/text.{suffix}") == 2
        assert f"out/{suffix}/text.yaml is not from this tool, or was changed since" in capsys.readouterr().err
    (home / "disk").mkdir()
    (home / "link").symlink_to("disk/folder")
    for model in ("text", "faces"):
        assert call(convert.main, f"export {model} --to diffusers --out link") == 0
        (home / "link" / "notes.txt").write_text("mine")
    assert (home / "link").is_symlink() and (home / "disk" / "folder" / "notes.txt").read_text() == "mine"


LOAD = """
import sys, torch
from pathlib import Path
from ldm.interop.importing import import_checkpoint
from ldm.checkpoints.model import load_latent_diffusion

def memory(key):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)) * 1024

small, large, way = sys.argv[1:]
def load(folder):
    if way in ("fp32", "bf16", "fp16"):
        return load_latent_diffusion(folder, torch.device("cpu"), way)
    if way == "diffusers":
        return import_checkpoint(Path(folder) / "folder", Path(folder) / "again")
    return import_checkpoint(Path(folder) / f"model.{way}", Path(folder) / "again", config=Path(folder) / "model.yaml")
load(small)
before = memory("VmRSS")
load(large)
print(memory("VmHWM") - before)
"""
FILES = {"fp32": "*.safetensors", "ckpt": "model.ckpt", "safetensors": "model.safetensors", "diffusers": "folder/*/*.safetensors"}


@pytest.fixture(scope="module")
def small_and_large(module_folder: Path) -> tuple[Path, Path]:
    """Two models, the second with 80 million parameters, and their exports."""
    row = replace(ROWS["faces"], first_stage=KL)
    wide = replace(PLAIN, channels=192, multipliers=(1, 4), head_width=64)
    folders = write_row(module_folder / "small", row), write_row(module_folder / "large", replace(row, unet=wide))
    for folder in folders:
        ours = Ours.open(folder)
        export_diffusers(ours, folder / "folder")
        for suffix in ("ckpt", "safetensors"):
            (folder / suffix).mkdir()
            export_compvis(ours, folder / suffix / f"model.{suffix}")
    return folders


def taken(small: Path, large: Path, way: str) -> int:
    """Peak memory, in bytes, of loading the large model in a process that has loaded the small one."""
    done = subprocess.run([sys.executable, "-c", LOAD, str(small), str(large), way], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("way", FILES)
def test_loading_takes_no_more_memory_than_the_file(way: str, small_and_large: tuple[Path, Path]):
    """Weights are memory-mapped: there is neither a second copy nor random initial weights. Measured in a process of its own."""
    small, large = (folder if way in ("fp32", "diffusers") else folder / way for folder in small_and_large)
    size = sum(file.stat().st_size for file in large.glob(FILES[way]))
    assert size > 300e6
    assert taken(small, large, way) <= 1.2 * size
    if way != "fp32":
        assert len(Checkpoint.open(large / "again").tensors("denoiser")) > 50
        shutil.rmtree(large / "again")


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_a_text_model_in_half_precision_takes_half_the_memory(stored: torch.dtype, tmp_path: Path):
    """For any dtype of the file: neither the weights before conversion nor the text transformer's random initial weights stay in memory."""
    row = ROWS["text"]
    wide, long = replace(row.unet, channels=192, multipliers=(1, 4)), BertScratchConfig(width=640, depth=12, is_masked=False)
    small = write_row(tmp_path / "small", row, dtype=stored)
    large = write_row(tmp_path / "large", replace(row, unet=wide, conditioning={"text": long}), dtype=stored)
    weights = sum(t.numel() for part in ("conditioner", "denoiser") for t in Checkpoint.open(large).tensors(part).values())
    assert weights > 150e6
    for precision in ("fp16", "bf16"):
        assert taken(small, large, precision) <= 1.2 * 2 * weights
