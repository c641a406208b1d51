"""What `scripts/evaluate.py ldm` does with generated pictures besides Inception: files, a judge, a classifier that leads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluations import LDM, call, measured, perfect, write_images
from PIL import Image

from ldm.checkpoints.classifier import ClassifierSpec, LoadedClassifier, write_classifier
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.evaluation.judge import Judge
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.metrics import bootstrap
from ldm.metrics.inception_score import score_of_logits
from ldm.networks.classifier import ClassifierConfig
from ldm.pipelines import renderer
from ldm.pipelines.canvas import to_pil
from ldm.pipelines.latent_diffusion import LatentDiffusion

PROCESS = DiscreteVP(num_steps=100, beta_last=0.1, zero_terminal_snr=True)  # the tiny models'
PIXELS = LatentNormalization(channels=3, downsampling_factor=1)


def write_tiny_classifier(folder: Path, **changes) -> Path:
    """Random weights; classes owl and cat, not in the data's order."""
    network = ClassifierConfig(channels=32, multipliers=(1,), blocks=1, heads=1)
    what = {
        "name": "arbiter",
        "size": 16,
        "normalization": PIXELS,
        "network": network,
        "process": None,
        "label_names": ("owl", "cat"),
    } | changes
    spec = ClassifierSpec(**what)
    torch.manual_seed(0)
    write_classifier(folder, spec, dict(spec.build_network().state_dict()), "# tiny\n", 1 << 30)
    return folder


def write_classes(folder: Path, cat: int, owl: int) -> Path:
    """Bright cats and dark owls, one colour each."""
    for name, count, first in (("cat", cat, 200), ("owl", owl, 20)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (16, 16), (first + i,) * 3).save(folder / name / f"{i}.png")
    return folder


def by_brightness(self, x, t=None):
    """Logits of owl and cat: right of the pictures of `write_classes`."""
    bright = x.mean((1, 2, 3))
    return torch.stack([-bright, bright], dim=1)


def test_pictures_are_kept_and_made_a_batch_at_a_time(home, monkeypatch, capsys):
    """The files are what one call for all of them would give, through two batches; a later evaluation's replace them."""
    asked, render = [], LatentDiffusion.render

    def rendering(self, conditions, unconditional, how, **more):
        asked.append(len(conditions))
        return render(self, conditions, unconditional, how, **more)

    monkeypatch.setattr(LatentDiffusion, "render", rendering)
    monkeypatch.setattr(renderer, "MOST_AT_ONCE", 16)
    found = measured(f"{LDM} --model plain --num-images 18 --save-images", monkeypatch, capsys)
    assert asked == [16, 2] and found["saved_pictures"] == 18
    files = sorted(Path("made/pictures").iterdir())
    assert [file.name for file in files] == [f"{i:05d}.png" for i in range(18)]
    model = LatentDiffusion.from_pretrained("plain", "cpu")
    nothing = [model.encode_condition(model.uncond())] * 18
    whole = to_pil(render(model, nothing, nothing, model.sampling(steps=1, guidance=1.0)))
    for file, picture in zip(files, whole, strict=True):
        assert np.abs(np.asarray(Image.open(file), int) - np.asarray(picture, int)).max() <= 1  # another batch, another rounding

    assert call(f"{LDM} --model plain --num-images 3 --save-images --out made", monkeypatch) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "pictures/, evaluation.json and evaluation.txt in made"
    assert len(list(Path("made/pictures").iterdir())) == 3
    content = Path("made/pictures/00001.png").read_bytes()
    Path("made/pictures/00001.png").write_bytes(b"painted over")
    assert call(f"{LDM} --model plain --num-images 3 --save-images --out made", monkeypatch) == 2
    assert "made/pictures holds 00001.png, which is of no finished evaluation, or was changed since" in capsys.readouterr().err
    Path("made/pictures/00001.png").write_bytes(content)
    monkeypatch.setattr(LatentDiffusion, "render", render)
    assert "saved_pictures" not in measured(f"{LDM} --model plain --num-images 2", monkeypatch, capsys)
    assert not Path("made/pictures").exists()  # they were of another evaluation than the JSON beside them now


def test_a_folder_with_other_pictures_is_left_alone(home, monkeypatch, capsys):
    write_images(home / "made" / "pictures", 1, 0)
    assert call(f"{LDM} --model plain --save-images --out made", monkeypatch) == 2
    assert "made/pictures holds 000.png, which is of no finished evaluation" in capsys.readouterr().err
    assert len(list(Path("made/pictures").iterdir())) == 2


def test_the_judge(home, monkeypatch, capsys):
    """One in three of the real pictures is misjudged, two in twelve of the generated; grey ones are no clear class, so the score is low."""
    write_classes(home / "classes", 3, 3)
    Image.new("RGB", (16, 16), (30,) * 3).save(home / "classes" / "cat" / "0.png")
    Image.new("RGB", (16, 16), (40,) * 3).save(home / "classes" / "cat" / "1.png")
    write_tiny_classifier(home / "judge", accuracy=0.9)
    monkeypatch.setattr(LoadedClassifier, "logits", by_brightness)
    levels = [0.5, 0.4, 0.3, -0.2, -0.3, -0.4, -0.5, 0.4, 0.3, 0.2, -0.3, -0.4]  # asked: 3 cats, 3 owls, and again
    monkeypatch.setattr(LatentDiffusion, "render", perfect(lambda i: torch.full((3, 16, 16), levels[i])))
    words = "ldm --model labels --data classes --split train --steps 1 --num-images 12 --judge judge"
    found = measured(words, monkeypatch, capsys)
    metrics = found["metrics"]
    assert metrics["judge_hits"]["value"] == pytest.approx(10 / 12) and metrics["judge_hits"]["pictures"] == 12
    assert metrics["judge_hits"]["interval"] == pytest.approx(bootstrap.of_share(10 / 12, 12))
    assert metrics["judge_accuracy"]["value"] == pytest.approx(4 / 6) and "training pictures" in metrics["judge_accuracy"]["about"]
    shown = (((torch.tensor(levels) + 1) * 127.5).round() / 127.5 - 1).double()
    score = score_of_logits(torch.stack([-shown, shown], dim=1))
    assert metrics["inception_score_by_judge"]["value"] == pytest.approx(score, rel=1e-5)
    assert found["judge"]["name"] == "arbiter" and found["judge"]["accuracy_when_trained"] == 0.9
    lines = Path("made/evaluation.txt").read_text().splitlines()
    assert sum(line.startswith("Inception Score by the judge arbiter") for line in lines) == 1
    assert sum(line.startswith("Inception Score ") and "judge" not in line for line in lines) == 1  # Inception's own stays its own


def test_the_judge_of_pictures_without_labels(home, monkeypatch, capsys):
    write_tiny_classifier(home / "judge")
    metrics = measured(f"{LDM} --model plain --num-images 10 --judge judge", monkeypatch, capsys)["metrics"]
    assert metrics["inception_score_by_judge"]["value"] >= 1
    assert metrics["judge_hits"]["value"] is None and metrics["judge_accuracy"]["value"] is None


def test_a_classifier_leads_to_the_labels_of_the_split(home, monkeypatch, capsys):
    """In its own order of classes, through two batches, and to where the judge looks for them."""
    write_classes(home / "classes", 2, 3)
    write_tiny_classifier(home / "guide", name="guide", process=PROCESS)
    write_tiny_classifier(home / "judge")
    monkeypatch.setattr(LoadedClassifier, "logits", by_brightness)
    words = "ldm --model plain --data classes --split train --num-images 18 --judge judge --steps 3"
    guided = measured(f"{words} --classifier guide --classifier-scale 3000", monkeypatch, capsys)
    assert guided["metrics"]["judge_hits"]["value"] > 0.9 and guided["metrics"]["judge_hits"]["pictures"] == 18
    assert guided["sampling"]["classifier"]["name"] == "guide" and guided["sampling"]["classifier"]["scale"] == 3000
    free = measured(f"{words} --classifier guide --classifier-scale 0", monkeypatch, capsys)
    assert free["metrics"]["judge_hits"]["value"] < 0.8
    assert free["metrics"]["fid"] == measured(words, monkeypatch, capsys)["metrics"]["fid"]


def judge_words(name: str) -> str:
    return f"ldm --model labels --data classes --split train --steps 1 --judge {name}"


MISTAKES = {
    "no such judge": (judge_words("nowhere"), "checkpoint nowhere: no such folder"),
    "a model for a judge": (judge_words("plain"), "holds a diffusion model, not a classifier"),
    "a noise-aware judge": (judge_words("guide"), "--judge guide is noise-aware, for guidance; a judge is trained on clean pictures"),
    "a judge of latents": (judge_words("of-latents"), "--judge of-latents was trained on latents; a judge is trained on pixels"),
    "a judge of larger pictures": (judge_words("large"), "pictures of 32x32 and 3 channels; the model makes them of 16x16 and 3"),
    "a judge of grey pictures": (judge_words("grey-judge"), "pictures of 16x16 and 1 channel; the model makes"),
    "a judge of other labels": (judge_words("of-others"), "--judge of-others has no label 'cat', which classes has; it has horse, owl"),
    "a judge for vae": ("vae --model model --data val --judge judge", "--judge is for ldm only"),
    "pictures of vae": ("vae --model model --data val --save-images", "--save-images is for ldm only"),
    "a scale of nothing": (f"{LDM} --model plain --classifier-scale 2", "--classifier-scale needs --classifier"),
    "guided by no labels": (f"{LDM} --model plain --classifier guide", "picture 0 of val has none"),
    "guided by a judge": ("ldm --model plain --data classes --split train --classifier judge", "can judge but not guide"),
    "guided by labels it lacks": ("ldm --model plain --data classes --split train --classifier guide-of-others", "unknown label 'cat'"),
}


@pytest.mark.parametrize("words, said", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_before_any_work(home, stand_in, words, said, monkeypatch, capsys):
    write_classes(home / "classes", 2, 2)
    others = ("horse", "owl")
    kinds = {
        "judge": {},
        "guide": {"process": PROCESS},
        "of-latents": {"normalization": replace(PIXELS, digest="0" * 64)},
        "large": {"size": 32},
        "grey-judge": {"normalization": replace(PIXELS, channels=1)},
        "of-others": {"label_names": others},
        "guide-of-others": {"label_names": others, "process": PROCESS},
    }
    for name in kinds.keys() & set(words.split()):
        write_tiny_classifier(home / name, **kinds[name])
    assert call(f"{words} --out made", monkeypatch) == 2
    shown = capsys.readouterr()
    (line,) = (line for line in shown.err.splitlines() if line)
    assert shown.out == "" and line.startswith("error: ") and said in line
    assert stand_in.calls == 0 and not (home / "made").exists()


def test_labels_that_are_numbers_are_the_judges_own():
    """Where the data names none: 0 to classes - 1, and -1 is none."""
    network = ClassifierConfig(channels=32, multipliers=(1,), heads=1)
    spec = ClassifierSpec(name="a", size=16, normalization=PIXELS, network=network, process=None, label_names=("0", "1"))
    loaded = LoadedClassifier(spec=spec, network=torch.nn.Identity(), digest="")
    judge = Judge(checkpoint="a", classifier=loaded, classes=None, device=torch.device("cpu"))
    assert [judge.index_of(label) for label in (-1, 0, 1)] == [-1, 0, 1]
