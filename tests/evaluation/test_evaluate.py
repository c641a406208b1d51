"""`scripts/evaluate.py`: what it measures and says, on tiny models and pictures, with a stand-in for Inception."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluations import LDM, StandIn, call, measured, perfect, pictures_of, write_images
from PIL import Image

from ldm.app.arguments import evaluate, prepare_data
from ldm.app.train_ldm import TrainLDM
from ldm.checkpoints.model import LatentDiffusionSpec, load_first_stage
from ldm.config.loader import build, dump, load
from ldm.core.errors import UserError
from ldm.data.facts import MAPS, DataFacts
from ldm.evaluation import latent_diffusion
from ldm.evaluation.conditions import EvaluationConditions
from ldm.evaluation.dataset import DrawnFrom, Preprocessing, training_images
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.losses.statistics import StatisticsCollector
from ldm.metrics import bootstrap
from ldm.metrics.neighbours import nearest
from ldm.pipelines.latent_diffusion import LatentDiffusion


@pytest.mark.parametrize("model", ["model", "stage-one"])
def test_a_first_stage_in_numbers(home, model, monkeypatch, capsys):
    found = measured(f"vae --model {model} --data val", monkeypatch, capsys)
    assert list(found["metrics"]) == ["l1", "psnr", "ssim", "lpips", "rfid", "ifid"]
    first_stage, _, _ = load_first_stage(model, torch.device("cpu"))
    images = torch.stack(pictures_of("val"))
    collector = StatisticsCollector()  # the other home of PSNR, which training logs
    collector.add(images, first_stage.decode(first_stage.encode(images)), first_stage.posterior(images))
    assert found["metrics"]["psnr"]["value"] == pytest.approx(collector.result().psnr, rel=1e-5)
    data = found["data"]["reconstructed"]
    assert (data["split"], data["pictures"], data["of"]) == ("all", len(images), len(images))
    for metric in found["metrics"].values():
        assert metric["pictures"] == 6 and metric["interval"] is None  # of too few
    for metric in measured(f"vae --model {model} --data train --split train", monkeypatch, capsys)["metrics"].values():
        assert metric["pictures"] == 12 and metric["interval"][0] <= metric["value"] <= metric["interval"][1]
    assert found["preprocessing"]["size"] == 16 and "centre" in found["preprocessing"]["fit"]


def test_half_way_to_a_double_is_the_reconstruction(home, monkeypatch, capsys):
    apart = measured("vae --model stage-one --data val", monkeypatch, capsys)["metrics"]
    assert apart["ifid"]["value"] != pytest.approx(apart["rfid"]["value"], rel=1e-3)
    for path in list(Path("val").glob("*.png")):
        shutil.copy(path, path.with_stem(f"{path.stem}-again"))
    doubled = measured("vae --model stage-one --data val", monkeypatch, capsys)["metrics"]
    assert doubled["ifid"]["value"] == pytest.approx(doubled["rfid"]["value"], rel=1e-6)


def test_a_first_stage_on_the_training_split_and_on_fewer(home, monkeypatch, capsys):
    found = measured("vae --model model --data train --split train --num-images 5", monkeypatch, capsys)
    assert found["data"]["reconstructed"]["pictures"] == 5 and found["data"]["reconstructed"]["of"] == 12


def test_what_has_no_held_out_split_is_not_called_held_out(home, monkeypatch, capsys):
    prepare_data.main(["val", "--out", "prepared"])
    capsys.readouterr()
    found = measured("vae --model model --data prepared", monkeypatch, capsys)
    assert found["data"]["reconstructed"]["split"] == "all"
    prepare_data.main(["train", "--out", "prepared", "--val-every", "3"])
    capsys.readouterr()
    found = measured("vae --model model --data prepared", monkeypatch, capsys)
    assert (found["data"]["reconstructed"]["split"], found["data"]["reconstructed"]["pictures"]) == ("val", 4)


def test_the_current_folder_is_a_folder(home, monkeypatch, capsys):
    monkeypatch.chdir("val")
    assert measured("vae --model ../model --data .", monkeypatch, capsys)["data"]["reconstructed"]["pictures"] == 6


def test_few_references_leave_all_as_conditions(home, monkeypatch, capsys):
    """And training pictures do not show how near held-out ones are."""
    found = measured("ldm --model model --data train --split train --reference-images 7 --steps 1", monkeypatch, capsys)
    data = found["data"]
    assert (data["reference"]["pictures"], data["conditions"]["pictures"], data["generated"]) == (7, 12, 12)
    held_out = [found["metrics"][name] for name in ("nearest_training_held_out", "close_to_training")]
    assert all(metric["value"] is None and "needs held-out pictures" in metric["about"] for metric in held_out)


def test_fewer_pictures_to_compare_with_and_half_precision(home, monkeypatch, capsys):
    found = measured(f"{LDM} --model model --reference-images 7 --precision bf16", monkeypatch, capsys)
    assert found["data"]["reference"]["pictures"] == 7 and found["data"]["reference"]["of"] == 12
    assert found["sampling"]["precision"] == "bf16"
    whole = measured(f"{LDM} --model model", monkeypatch, capsys)
    assert whole["metrics"]["fid"]["value"] != found["metrics"]["fid"]["value"] and whole["sampling"]["precision"] == "fp32"


def test_a_model_in_numbers(home, monkeypatch, capsys):
    assert call(f"{LDM} --model model --out made", monkeypatch) == 0
    shown = capsys.readouterr().out.splitlines()
    found = json.loads(Path("made/evaluation.json").read_text())
    assert shown[-1] == "evaluation.json and evaluation.txt in made"
    assert shown[-2] == found["attribution"]["line"] and "the limit" in shown[-2]
    assert any(line.startswith("Inception Score: not measured: Inception's class layer is not available") for line in shown)
    assert Path("made/evaluation.txt").read_text().splitlines() == shown[:-1]

    metrics = found["metrics"]
    assert {name for name, metric in metrics.items() if metric["value"] is None} == {"inception_score"}
    assert not any(name.startswith(("bits_per_dim", "judge")) for name in metrics)  # only when asked for
    assert found["data"]["reference"]["pictures"] == 12 and found["data"]["conditions"]["pictures"] == found["data"]["generated"] == 6
    assert found["data"]["conditioned_on"] == ["captions"] and found["sampling"]["sampler"] == "ddim"
    assert metrics["fid"]["value"] == pytest.approx(found["attribution"]["fid_generated"])
    assert "by chance 0.167" in metrics["retrieval_top_1"]["about"]
    assert metrics["nearest_training"]["value"] > 0 and metrics["nearest_training_held_out"]["value"] > 0


def test_the_reference_is_kept_and_made_anew_when_the_data_change(home, stand_in, monkeypatch, capsys):
    words = f"{LDM} --model plain"
    first = measured(words, monkeypatch, capsys)
    cold, stand_in.calls = stand_in.calls, 0
    assert measured(words, monkeypatch, capsys)["metrics"] == first["metrics"]
    assert (cold, stand_in.calls) == (12 + 6 + 6, 6)  # the generated only

    Image.new("RGB", (20, 20), "red").save("train/003.png")
    stand_in.calls = 0
    changed = measured(words, monkeypatch, capsys)
    assert stand_in.calls == 12 + 6 and changed["metrics"]["fid"] != first["metrics"]["fid"]

    stand_in.calls = 0
    other = measured(f"{words} --background 0,0,0", monkeypatch, capsys)
    assert stand_in.calls == 12 + 6 + 6 and other["preprocessing"]["background"] == [0, 0, 0]


def test_unreadable_pictures_are_counted_in_kept_features_too(home, stand_in, monkeypatch, capsys):
    damaged = write_images(home / "many", 101, 0) / "003.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    for _ in ("made", "kept"):
        found = measured("ldm --data many --held-out val --steps 1 --model plain", monkeypatch, capsys)
        assert found["data"]["reference"]["unreadable"] == 1
    assert stand_in.calls == 101 + 6 + 6 + 6


def test_transparent_pictures_are_laid_on_what_the_model_was_trained_with(home, monkeypatch, capsys):
    opened = LatentDiffusion.from_pretrained

    def on_blue(*said, **more):
        model = opened(*said, **more)
        return dataclasses.replace(model, spec=dataclasses.replace(model.spec, background=(0, 0, 250)))

    monkeypatch.setattr(LatentDiffusion, "from_pretrained", staticmethod(on_blue))
    assert measured(f"{LDM} --model plain", monkeypatch, capsys)["preprocessing"]["background"] == [0, 0, 250]
    assert measured(f"{LDM} --model plain --background 0,0,0", monkeypatch, capsys)["preprocessing"]["background"] == [0, 0, 0]


def test_pictures_are_seen_with_the_levels_of_training(tmp_path):
    """Of 12 bits in a file of 16: otherwise a model would be measured on near-black pictures."""
    for number in range(3):
        Image.fromarray(np.full((8, 8), 4095 - number, np.uint16)).save(tmp_path / f"{number}.png")
    seen = {}
    for levels in (None, (0, 4095)):
        how = Preprocessing(size=8, channels=3, background=(0, 0, 0), levels=levels, map_void=255)
        drawn = training_images(str(tmp_path), how)
        assert drawn.data.config.map_void == 255 and how.plain()["levels"] == (levels and list(levels))
        seen[levels] = next(iter(drawn.batches())).mean().item()
    assert seen[None] < -0.8 and seen[0, 4095] > 0.98


def test_a_model_remembers_the_levels_of_its_training(home, monkeypatch, capsys):
    config = load(Path(__file__).parents[2] / "configs/ldm/emoji-text.yaml", TrainLDM, ["data.levels=[0,4095]", "data.map_void=255"])
    spec = config.spec(
        KLAutoencoderConfig(channels=16, multipliers=(1, 2, 4), blocks=1, latent_channels=4),
        LatentNormalization(channels=4, downsampling_factor=4),
        {},
    )
    assert build(dump(spec), LatentDiffusionSpec) == spec and (spec.levels, spec.map_void) == ((0, 4095), 255)
    opened = LatentDiffusion.from_pretrained

    def deep(*said, **more):
        model = opened(*said, **more)
        return dataclasses.replace(model, spec=dataclasses.replace(model.spec, levels=(0.0, 4095.0)))

    monkeypatch.setattr(LatentDiffusion, "from_pretrained", staticmethod(deep))
    assert measured(f"{LDM} --model plain", monkeypatch, capsys)["preprocessing"]["levels"] == [0, 4095]


def test_a_model_that_gives_back_the_pictures_of_the_captions(home, monkeypatch, capsys):
    """Then every caption's picture is found, no stage is the limit, and pictures are as far from training as held-out ones."""
    held_out = pictures_of("val")
    monkeypatch.setattr(LatentDiffusion, "render", perfect(lambda i: held_out[i % 6]))
    found = measured(f"{LDM} --model model --num-images 12", monkeypatch, capsys)
    metrics = found["metrics"]
    assert metrics["retrieval_top_1"]["value"] == metrics["retrieval_top_5"]["value"] == 1
    assert metrics["nearest_training"]["value"] == pytest.approx(metrics["nearest_training_held_out"]["value"])
    assert metrics["fid"]["pictures"] == 12 and found["attribution"]["pictures_of_each"] == 6
    assert found["attribution"]["fid_generated"] == pytest.approx(found["attribution"]["fid_real"])


def test_a_model_that_repeats_training_pictures_is_found_out(home, monkeypatch, capsys):
    known = pictures_of("train")
    monkeypatch.setattr(LatentDiffusion, "render", perfect(lambda i: known[i]))
    found = measured(f"{LDM} --model plain --num-images 12", monkeypatch, capsys)
    metrics = found["metrics"]
    assert metrics["fid"]["value"] < 1e-9 and metrics["precision"]["value"] == metrics["recall"]["value"] == 1
    assert metrics["nearest_training"]["value"] == 0 and metrics["close_to_training"]["value"] == 1
    assert metrics["retrieval_top_1"]["value"] is None and "the model takes none" in metrics["retrieval_top_1"]["about"]
    assert found["data"]["conditioned_on"].startswith("nothing") and found["sampling"]["guidance"] == 1


def test_pictures_without_a_caption_are_not_looked_for(home, monkeypatch, capsys):
    """Of six two have no caption and three the same: chance is (3 * 3/6 + 1/6) / 4 = 0.417, and four pictures are counted."""
    for i, text in enumerate(("", "", "twins", "twins", "twins", "alone")):
        caption = home / "val" / f"{i:03d}.txt"
        caption.write_text(text) if text else caption.unlink()
    metric = measured(f"{LDM} --model model", monkeypatch, capsys)["metrics"]["retrieval_top_1"]
    assert metric["pictures"] == 4 and "by chance 0.417" in metric["about"]
    metric = measured(f"{LDM} --model model --num-images 2", monkeypatch, capsys)["metrics"]["retrieval_top_1"]  # made from no caption
    assert metric["value"] is None and "no captions were given" in metric["about"]


def test_maps_boxes_and_small_pictures_are_told(home, tiny, monkeypatch, capsys):
    """Each picture its own, from the first again."""
    (home / "laid").symlink_to(tiny("map", "boxes", "small"))
    for kind in ("maps", "boxes"):
        (home / "val" / kind).mkdir()
    for i in range(6):
        Image.new("L", (20, 20), i % 4).save(home / "val" / "maps" / f"{i:03d}.png")
        (home / "val" / "boxes" / f"{i:03d}.json").write_text(f"[[{i % 3}, 0.25, 0.25, 0.5, 0.5]]")
    seen, encode = [], LatentDiffusion.encode_condition
    monkeypatch.setattr(LatentDiffusion, "encode_condition", lambda self, inputs, *more: seen.append(inputs) or encode(self, inputs, *more))
    found = measured(f"{LDM} --model laid --num-images 7", monkeypatch, capsys)
    assert found["data"]["conditioned_on"] == ["maps", "boxes", "pixels"]
    given = [inputs.values for inputs in seen if "map" in inputs.values]
    assert [int(values["map"].unique()) for values in given] == [0, 1, 2, 3, 0, 1, 0]
    assert [values["boxes"][0, 0].tolist() for values in given] == [[i % 3, 0.25, 0.25, 0.5, 0.5] for i in (0, 1, 2, 3, 4, 5, 0)]
    for values, picture in zip(given, [*pictures_of("val"), pictures_of("val")[0]], strict=True):
        assert torch.equal(values["small"][0], picture)


def test_a_maps_class_by_another_name_is_refused(tiny):
    model = LatentDiffusion.from_pretrained(tiny("map"), "cpu")
    (part,) = model.conditioners
    part.config = dataclasses.replace(part.config, names=("sky", "sea", "land", "tree"))
    names = ("sky", "land", "sea", "tree")
    data = SimpleNamespace(facts=DataFacts(has=frozenset((MAPS,)), map_names=names))
    with pytest.raises(UserError, match="class 1 of the data is land, of the model sea"):
        EvaluationConditions(model=model, source=DrawnFrom(place="drawn", split="val", data=data, count=2)).check()


def test_a_second_feature_space_is_asked_for(home, stand_in, monkeypatch, capsys):
    """Its distance is the Frechet distance of its own features, of data and of pictures."""
    second = StandIn()
    monkeypatch.setattr("ldm.metrics.features.ResNetFeatures", lambda progress: second)
    found = measured(f"{LDM} --model model --num-images 6 --resnet50", monkeypatch, capsys)["metrics"]
    assert second.calls == 12 + 6
    assert found["fd_resnet50"]["value"] == pytest.approx(found["fid"]["value"])
    assert "fd_resnet50" not in measured(f"{LDM} --model model --num-images 6", monkeypatch, capsys)["metrics"]
    assert call("vae --model model --data val --resnet50", monkeypatch) == 2


def test_many_pictures_have_an_interval_of_kid_alone(home, monkeypatch, capsys):
    """And of FEW or more, FID, shares and medians have none."""
    monkeypatch.setattr(bootstrap, "FEW", 6)
    monkeypatch.setattr(bootstrap, "SMALLEST", 2)
    metrics = measured(f"{LDM} --model model", monkeypatch, capsys)["metrics"]
    assert {name for name, metric in metrics.items() if metric["interval"] is not None} == {"kid"}
    low, high = metrics["kid"]["interval"]
    assert low < metrics["kid"]["value"] < high


def test_the_condition_is_the_caption_of_the_same_number(home, monkeypatch, capsys):
    """And again from the first when they are used up."""
    said, made = [], []
    encode, render = LatentDiffusion.encode_condition, LatentDiffusion.render

    def encoding(self, inputs):
        said.append((inputs.values.get("text"), encode(self, inputs)))
        return said[-1][1]

    def rendering(self, cond, uncond, how, **more):
        made.extend(captions for condition in cond for captions, known in said if known is condition)
        return render(self, cond, uncond, how, **more)

    monkeypatch.setattr(LatentDiffusion, "encode_condition", encoding)
    monkeypatch.setattr(LatentDiffusion, "render", rendering)
    measured(f"{LDM} --model model --num-images 8 --guidance 1", monkeypatch, capsys)
    assert made == [(f"picture {i % 6} of 1",) for i in range(8)]


def test_labels_go_by_name(home, monkeypatch, capsys):
    for name in ("owl", "cat"):
        write_images(home / "classes" / name, 3, 5, captions=False)
    conditions = []
    encode = LatentDiffusion.encode_condition
    monkeypatch.setattr(
        LatentDiffusion, "encode_condition", lambda self, inputs: conditions.append(inputs.values.get("class")) or encode(self, inputs)
    )
    found = measured("ldm --model labels --data classes --split train --steps 1 --guidance 1", monkeypatch, capsys)
    assert [int(label) for label in conditions] == [0, 0, 0, 2, 2, 2]  # the model's numbers, not the folder's
    assert found["data"]["conditioned_on"] == ["labels"]
    assert found["metrics"]["nearest_training_held_out"]["value"] is None  # no picture was held out


def test_grey_pictures(home, monkeypatch, capsys):
    write_images(home / "grey-pictures", 5, 3, captions=False, mode="L")
    found = measured("ldm --model grey --data grey-pictures --split train --steps 1 --num-images 4", monkeypatch, capsys)
    assert found["preprocessing"]["channels"] == 1 and found["metrics"]["fid"]["value"] > 0


def test_a_measure_is_one_function(home, monkeypatch, capsys):
    """Where another metric is added: it sees the model, the conditioned pictures and all features."""
    from ldm.metrics.report import Metric

    def distance(seen):
        value = nearest(seen.generated, seen.real).max().item() + seen.source.count + seen.model.spec.size
        return [Metric(name="mine", title="Mine", value=value, pictures=len(seen.generated), better="", about="a test")]

    monkeypatch.setattr(latent_diffusion, "MEASURES", (distance,))
    assert list(measured(f"{LDM} --model plain", monkeypatch, capsys)["metrics"]) == ["mine"]


MISTAKES = {
    "no such model": ("vae --model nowhere --data val", "checkpoint nowhere: no such folder"),
    "no such model for ldm": ("ldm --model nowhere --data val", "checkpoint nowhere: no such folder"),
    "stage one given to ldm": ("ldm --model stage-one --data train", "holds a first stage only"),
    "a model on pixels given to vae": ("vae --model plain --data val", "no first stage to evaluate"),
    "unknown data": ("vae --model model --data emoij", "data 'emoij': no such folder or shard; allowed: emoji-128"),
    "unknown data for ldm": ("ldm --model model --data emoij", "no such folder or shard"),
    "no held-out split": (
        "ldm --model model --data train",
        "train has no held-out split: name held-out pictures, --held-out DATA, or --split train",
    ),
    "no such data, held out": ("ldm --model model --data nowhere", "no such folder or shard"),
    "a device": ("ldm --device gpu", "unknown device 'gpu'; allowed: auto, cpu, cuda, cuda:N or mps"),
    "remote data": ("vae --model model --data https://example.org/a.tar", "fetch the shards"),
    "one picture": ("vae --model model --data single", "1 picture in split val; a distance between sets needs at least 2"),
    "one picture asked for": (f"{LDM} --model model --num-images 1", "--num-images must be at least 2"),
    "held-out pictures for the training split": (f"{LDM} --model model --split train", "--held-out names pictures for --split val"),
    "no stage": ("--model model --data val", "required: {vae,ldm}"),
    "no model": ("vae --data val", "the following arguments are required: --model"),
    "guidance limits for vae": ("vae --model model --data val --guidance-interval 0 5", "--guidance-interval is for ldm only"),
    "guidance limits the wrong way round": (f"{LDM} --model model --guidance-interval 5 1", "guidance interval"),
    "a sampler for vae": ("vae --model model --data val --sampler ddim", "--sampler is for ldm only"),
    "unknown sampler": (f"{LDM} --model model --sampler dimm", "Did you mean 'ddim'?"),
    "no colour": ("vae --model model --data val --background white", "--background must be three levels from 0 to 255"),
    "out is a file": ("vae --model model --data val --out file", "--out file: file is a file"),
}


MEASURED = {
    "stage one": "vae --model stage-one --data val",
    "latents": f"{LDM} --model model --bits-per-dim 2 --tolerance 0.5",
    "pixels": f"{LDM} --model plain --bits-per-dim 2 --tolerance 0.5 --bound-steps 3",
}


@pytest.mark.parametrize("words", MEASURED.values(), ids=MEASURED)
def test_it_measures_elsewhere_what_it_measures_on_the_cpu(home, words, elsewhere, monkeypatch, capsys):
    """All numbers; those of a flow, whose times are float32 there, to some digits."""
    here, there = (measured(f"{words} --device {name}", monkeypatch, capsys) for name in ("mps", "cpu"))
    assert (here["device"], there["device"]) == ("mps", "cpu")
    here, there = ({name: metric["value"] for name, metric in found["metrics"].items()} for found in (here, there))
    assert here.keys() == there.keys() and [name for name in here if (here[name] is None) != (there[name] is None)] == []
    known = {name: value for name, value in there.items() if value is not None}
    assert {name: here[name] for name in known} == pytest.approx(known, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize("words, said", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(home, words, said, monkeypatch, capsys):
    write_images(home / "single", 1, 0)
    (home / "file").write_text("a file")
    assert call(words if "--out" in words else f"{words} --out made", monkeypatch) == 2
    shown = capsys.readouterr()
    (line,) = (line for line in shown.err.splitlines() if line)
    assert shown.out == "" and line.startswith("error: ") and said in line
    assert not (home / "made").exists()


def test_labels_that_the_model_does_not_know_are_refused(home, stand_in, monkeypatch):
    for name in ("horse", "cat"):
        write_images(home / "classes" / name, 3, 5, captions=False)
    with pytest.raises(UserError, match="allowed: cat, dog, owl"):
        evaluate.main("ldm --model labels --data classes --split train --steps 1 --out made".split())
    assert stand_in.calls == 0  # before any work
