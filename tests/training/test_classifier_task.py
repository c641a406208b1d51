"""A classifier's task: what it learns against what can be known, whose labels count, and what is measured of the finished one."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tasks import DrawnPictures, HalfLabelled, classifier_task, numbers_of, train_config
from torch import nn

from ldm.checkpoints.classifier import ClassifierSpec, load_classifier
from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.core.random import generator
from ldm.data.batch import Batch, Sample
from ldm.data.config import DataConfig
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.processes.ve_sde import VESDE
from ldm.diffusion.time_density import UniformSteps
from ldm.first_stage.identity import IdentityConfig
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.networks.classifier import ClassifierConfig
from ldm.training.classifier_task import EVALUATED, ClassifierTask
from ldm.training.config import OptimizerConfig, TrainConfig
from ldm.training.engine import _Engine
from ldm.training.latents import LatentData, Latents
from ldm.training.run_folder import RunFolder

ALONE = World(0, 1, torch.device("cpu"))
SIDE, LEVEL = 8, 0.25


class Shades(DrawnPictures):
    """Grey pictures of one shade, LEVEL if the label is 1, else -LEVEL."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.count = DataConfig(train="shades", size=SIDE, channels=1), EVALUATED

    def __len__(self) -> int:
        return EVALUATED

    def sample(self, index: int, epoch: int) -> Sample:
        label = int(torch.randint(2, (), generator=generator("shade", index)))
        return Sample(name=f"shade-{index}", image=torch.full((1, SIDE, SIDE), LEVEL * (2 * label - 1)), caption="", label=label)


def shades_task(config: TrainConfig, process: NoiseProcess | None, held_out: bool = True) -> ClassifierTask:
    torch.manual_seed(0)
    spec = ClassifierSpec(
        name="shades",
        size=SIDE,
        normalization=LatentNormalization(channels=1, downsampling_factor=1),
        network=ClassifierConfig(channels=16, multipliers=(1, 2), blocks=1, attention=(2,), heads=2),
        process=process,
        label_names=("dark", "light"),
    )
    latents = Latents(
        IdentityConfig(image_channels=1).build(), LatentData(train_set=Shades(), held_out=Shades() if held_out else None), ALONE.device
    )
    return ClassifierTask(spec, spec.build_network(), UniformSteps(), latents, config, 0, ALONE)


def trained(task: ClassifierTask, folder: Path) -> ClassifierTask:
    engine, batches = _Engine(task, task.config, RunFolder(folder, True), 0, ALONE), task.batches(1)
    for step in range(1, task.config.steps + 1):
        engine.step(step, next(batches))
    return task


def test_it_learns_what_can_be_known_of_a_noisy_sample(tmp_path: Path) -> None:
    """Two shades in noise: the best any classifier can do is Phi(LEVEL sqrt(pixels) alpha / sigma)."""
    config = train_config(steps=60, batch_size=32, ema_decay=0.9, optimizer=OptimizerConfig(learning_rate=3e-3))
    task = trained(shades_task(config, DiscreteVP(spacing="cosine")), tmp_path)
    found = task.evaluate(nullcontext())
    for log_snr in (6, 2, 0, -2, -4, -6):
        best = 0.5 + 0.5 * math.erf(LEVEL * SIDE * math.exp(log_snr / 2) / math.sqrt(2))
        assert found.metrics[f"val/accuracy_log_snr_{log_snr:+d}"] == pytest.approx(best, abs=0.06)
    assert "accuracy by log-SNR: +6 100.0%" in found.lines[1]


def test_what_is_measured_of_the_finished_one_is_of_the_weights_that_are_stored(tmp_path: Path) -> None:
    config = train_config(steps=3, batch_size=16, ema_decay=0.5, checkpoint_dtype="bf16")
    task = shades_task(config, None)  # which has learned nothing: right of about every second
    task.save(tmp_path / "before", 2, 3)
    with torch.no_grad():
        for live in task.network.parameters():  # which is not what is stored
            live.zero_()
    task.save(tmp_path / "finished", 3, 3)
    assert load_classifier(tmp_path / "before", ALONE.device).spec.accuracy is None
    loaded = load_classifier(tmp_path / "finished", ALONE.device)
    pictures = Batch.of(list(Shades().some(None)))
    share = (loaded.logits(pictures.images).argmax(1) == pictures.labels).float().mean().item()
    assert loaded.spec.accuracy == pytest.approx(share, abs=1e-6) and 0 < share < 1
    assert f"- Top-1 accuracy: {share:.2%} of at most 10000 held-out pictures" in (tmp_path / "finished" / "README.md").read_text()

    alone = shades_task(config, None, held_out=False)
    alone.save(tmp_path / "alone", 3, 3)
    assert load_classifier(tmp_path / "alone", ALONE.device).spec.accuracy is None  # its own pictures would flatter it
    assert alone.evaluate(nullcontext()).lines[0].startswith("training cross-entropy")


def test_pictures_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    """A judge's loss is the mean cross-entropy of clean pictures that have one."""
    spec = replace(
        classifier_task(ALONE, train_config()).spec, normalization=LatentNormalization(channels=3, downsampling_factor=1), process=None
    )
    latents = Latents(IdentityConfig().build(), LatentData(train_set=HalfLabelled()), ALONE.device)
    task = ClassifierTask(spec, spec.build_network(), UniformSteps(), latents, train_config(), 0, ALONE)
    batch = next(task.batches(1))
    labels = batch.records.labels
    kept = labels >= 0
    assert 0 < kept.sum() < len(labels)
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(task.network(batch.records.images, torch.zeros(len(labels)))[kept], labels[kept])
    found = numbers_of(_Engine(task, task.config, RunFolder(tmp_path, True), 0, ALONE), 1, batch)
    assert found["loss"] == pytest.approx(wanted.item(), rel=1e-5)
    assert f"{int((~kept).sum())} pictures without a label left out so far, e.g. disc-" in task.evaluate(nullcontext()).lines[-1]


def test_what_is_measured_is_of_all_labelled_pictures() -> None:
    """Mean cross-entropy and share classified right, whichever label they have."""
    spec = replace(
        classifier_task(ALONE, train_config()).spec, normalization=LatentNormalization(channels=3, downsampling_factor=1), process=None
    )
    latents = Latents(IdentityConfig().build(), LatentData(train_set=HalfLabelled()), ALONE.device)
    task = ClassifierTask(spec, spec.build_network(), UniformSteps(), latents, train_config(), 0, ALONE)
    task.average.module.forward = lambda x, network_time: torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], dim=1)
    pictures = Batch.of(list(HalfLabelled().some(None)))
    kept = pictures.labels >= 0
    logits = task.average.module.forward(pictures.images, None)[kept]
    found = task.evaluate(nullcontext()).metrics
    assert found["train_eval/loss"] == pytest.approx(nn.functional.cross_entropy(logits, pictures.labels[kept]).item(), rel=1e-5)
    right = logits.argmax(1) == pictures.labels[kept]
    assert found["train_eval/accuracy"] == pytest.approx(right.float().mean().item())
    assert right[pictures.labels[kept] == 0].float().mean() != right.float().mean()  # or the test would show nothing


def test_the_sample_grid_shows_noise_as_large_as_data() -> None:
    """x / sqrt(alpha^2 + sigma^2): of an exploding process the first row is the shades, and the last one is not black and white only."""
    grid = shades_task(train_config(), VESDE(sigma_min=0.01, sigma_max=50.0)).sample_grid(nullcontext())
    first, last = grid[:, 5 : 5 + SIDE, 5 : 5 + SIDE], grid[:, -SIDE - 5 : -5, 5 : 5 + SIDE]
    assert (first.mean() - 0.5).abs().item() == pytest.approx(LEVEL / 2, rel=0.05)
    assert ((last > 0) & (last < 1)).float().mean() > 0.5


def test_a_label_that_no_class_has_is_refused() -> None:
    task = classifier_task(ALONE, train_config())
    batch = next(task.batches(1))
    wrong = replace(batch, records=replace(batch.records, labels=torch.full((7,), 2)))
    with pytest.raises(UserError, match=r"disc-\d: its label is 2, but there are 2 classes"):
        task._labels(wrong)


def test_the_sample_grid_frames_what_is_told_right(tmp_path: Path) -> None:
    """A network that always says light: light pictures have green frames, dark ones red, at every level of noise."""
    task = shades_task(train_config(), DiscreteVP(spacing="cosine"))
    task.average.module.forward = lambda x, network_time: torch.tensor([[0.0, 1.0]]).expand(len(x), 2)
    grid = task.sample_grid(nullcontext())
    rows, columns = (grid.shape[1] - 2) // (SIDE + 6), (grid.shape[2] - 2) // (SIDE + 6)
    assert (rows, columns) == (7, 8)
    labels = [Shades().sample(index, 0).label for index in range(columns)]
    assert set(labels) == {0, 1}
    for row in range(rows):
        frame = grid[:, 2 + row * (SIDE + 6), 2 :: SIDE + 6]  # its corner's colour
        assert [bool(green > red) for red, green, _ in frame.T[:columns].tolist()] == [label == 1 for label in labels]
