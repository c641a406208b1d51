"""`scripts/describe.py`: footprints against numbers known by hand, and the command itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldm.app.arguments import describe
from ldm.app.describe import Cost
from ldm.app.description import describe as description_of
from ldm.app.held import Held
from ldm.app.train_classifier import TrainClassifier
from ldm.checkpoints.model import load_latent_diffusion
from ldm.config.loader import load
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.networks.attention.attend import attend
from ldm.networks.blocks.spatial_attention import SpatialSelfAttention
from ldm.networks.unet import UNetConfig
from ldm.profiling.footprint import Footprint, measure, training_footprint

ROOT = Path(__file__).parents[2]
META = torch.device("meta")
pytestmark = pytest.mark.dependency


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_linear_layers_footprint_is_known():
    """2 B I O operations forward, twice that backward; at most x, y and the gradient's parts are alive."""
    layer = nn.Linear(10, 30, device=META)
    x = torch.empty(4, 10, device=META, requires_grad=True)
    forward = measure(lambda: layer(x), None)
    assert forward == Footprint(flops=2 * 4 * 10 * 30, bytes=4 * 4 * 30)
    assert training_footprint([layer], lambda: layer(x).sum(), None).flops == 3 * forward.flops
    without = training_footprint([layer], lambda: layer(x.detach()).sum(), None)
    assert without.flops == 2 * forward.flops  # nobody asks for the gradient of x


def test_what_is_kept_for_the_backward_pass_counts_and_what_is_not_does_not():
    """silu keeps its input, a sum keeps nothing: k of them in a row hold k maps and the last result."""
    x = torch.empty(1000, device=META)

    def chain(count: int) -> int:
        weight = nn.Parameter(torch.empty(1000, device=META))

        def loss() -> torch.Tensor:
            h = x * weight
            for _ in range(count):
                h = F.silu(h)
            return h.sum()

        holder = nn.ParameterList([weight])
        return training_footprint(list(nn.ModuleList([holder])), loss, None).bytes

    assert chain(8) - chain(3) == 5 * 4000
    with torch.no_grad():
        assert measure(lambda: F.silu(F.silu(F.silu(x))), None).bytes == 2 * 4000


def test_gradients_of_weights_are_not_counted_twice():
    """They outlive the pass; while one is made there is a second copy of it, 4 MB here."""
    layer, x = nn.Linear(1000, 1000, bias=False, device=META), torch.empty(1, 1000, device=META)
    assert 4e6 <= training_footprint([layer], lambda: layer(x).sum(), None).bytes < 4.1e6


def test_a_real_pass_keeps_what_the_footprint_says():
    """A small UNet on the CPU: what autograd saves of it, weights aside, is nearly all of the most that is alive."""
    config = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(1, 2), heads=2, context_width=8)

    def loss(network: nn.Module, device: str) -> torch.Tensor:
        condition = Condition(tokens=torch.zeros(2, 5, 8, device=device))
        return network(torch.zeros(2, 4, 32, 32, device=device), torch.zeros(2, device=device), condition).square().mean()

    network, saved = config.build(4, 4), {}
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(network, "cpu")
    held = sum(count for place, count in saved.items() if place not in weights)
    with META:
        counted = config.build(4, 4)
    said = training_footprint([counted], lambda: loss(counted, "meta"), None).bytes
    assert held < said < 1.25 * held


def test_autocast_halves_what_a_gpu_halves():
    """Weights are copied once, in half precision; norms give float32."""
    layer, norm = nn.Linear(64, 64, bias=False, device=META), nn.GroupNorm(1, 64, device=META)
    x = torch.empty(1, 64, device=META)
    full, half = (measure(lambda: layer(layer(x)), dtype) for dtype in (None, torch.bfloat16))
    assert full.flops == half.flops
    copies = 2 * 64 * 64
    assert half.bytes == copies + 3 * 64 * 2  # what went in is kept for the backward pass, as is what came out between
    dtypes = set()

    def compute() -> torch.Tensor:
        between = layer(x)
        out = norm(between)
        dtypes.add((between.dtype, out.dtype))
        return out

    measure(compute, torch.bfloat16)
    assert dtypes == {(torch.bfloat16, torch.float32)}


def test_attention_never_holds_all_scores():
    few, many = ([torch.empty(1, 2, n, 8, device=META)] * 3 for n in (256, 512))
    sizes = [measure(lambda qkv=qkv: attend(*qkv), None) for qkv in (few, many)]
    assert sizes[1].bytes == 2 * sizes[0].bytes
    assert sizes[1].flops == 4 * sizes[0].flops == 4 * (2 * 2 * 256 * 256 * 8 * 2)


def test_an_autoencoders_attention_is_counted_without_all_scores():
    """Training at 32 x 32 and 64 x 64 positions: two products forward and five backward, of four convolutions three times as many."""
    with META:
        block = SpatialSelfAttention(64)

    def footprint(side: int) -> Footprint:
        x = torch.empty(1, 64, side, side, device=META, requires_grad=True)
        return training_footprint([block], lambda: block(x).sum(), None)

    few, many = footprint(32), footprint(64)
    assert many.bytes <= 4 * few.bytes and many.bytes < 64**4  # a quarter of what the scores alone would take
    assert many.flops == 2 * 64 * 64**2 * (7 * 64**2 + 4 * 3 * 64)


def test_functions_are_put_back_even_after_an_error():
    before = F.linear, F.group_norm, F.scaled_dot_product_attention
    with pytest.raises(ZeroDivisionError):
        measure(lambda: torch.empty(1, device=META) / (1 // 0), torch.bfloat16)
    assert (F.linear, F.group_norm, F.scaled_dot_product_attention) == before


def test_costs_grow_with_pictures_as_between_one_and_two():
    one, two = Footprint(flops=10, bytes=100), Footprint(flops=17, bytes=130)
    assert one.extended(two, 1) == one
    assert one.extended(two, 5) == Footprint(flops=10 + 4 * 7, bytes=100 + 4 * 30)


def small(*changes: str) -> Cost:
    found = description_of(ROOT / "configs/pixel/mnist-ddpm.yaml", ["data.train=nowhere", *changes])
    return Cost.of(found, 1)


def test_checkpointing_trades_memory_for_operations_and_parts_of_a_batch_for_nothing():
    plain, recomputed, in_parts = small(), small("denoiser.checkpointing=true"), small("train.accumulate=4")
    assert recomputed.activations < 0.5 * plain.activations
    assert 1.2 * plain.step_flops < recomputed.step_flops < 1.4 * plain.step_flops
    assert in_parts.step_flops == plain.step_flops
    assert in_parts.activations < 0.3 * plain.activations


def test_of_eight_processes_that_share_the_weights_out_each_holds_little():
    found = description_of(ROOT / "configs/ldm/emoji.yaml", ["train.parallel=fsdp"])
    assert found.held_by(1) == found.held
    held = found.held_by(8)
    assert held.optimizer < 0.16 * found.held.optimizer and 0 < held.blocks < 0.5 * found.held.weights
    assert held.evaluated + held.average == found.held.average
    assert description_of(ROOT / "configs/ldm/emoji.yaml").held_by(8) == found.held


def test_what_training_holds_of_weights_that_are_trained_averaged_and_frozen():
    found = description_of(ROOT / "configs/ldm/emoji.yaml")
    count = found.parameters
    trained, frozen = count["denoiser"] + count["conditioner"], count["first_stage"] + count["frozen_encoder"]
    assert found.held == Held(weights=4 * (trained + frozen), gradients=4 * trained, optimizer=8 * trained, average=4 * trained)
    found = description_of(ROOT / "configs/vae/emoji-f4.yaml")
    stage, adversary, lpips = (found.parameters[name] for name in ("first_stage", "discriminator", "lpips"))
    assert found.held.total == 20 * stage + 16 * adversary + 4 * lpips
    assert (found.held.optimizer, found.held.average) == (8 * (stage + adversary), 4 * stage)


def test_the_numbers_are_those_of_the_model_that_training_builds():
    """Here, of the shipped checkpoint."""
    parts = load_latent_diffusion(ROOT / "checkpoints/emoji", torch.device("cpu"))
    found = description_of(ROOT / "configs/ldm/emoji.yaml").parameters
    given = {"denoiser": parts.network, "first_stage": parts.first_stage, "conditioner": parts.conditioners}
    assert {name: found[name] for name in given} == {name: sum(p.numel() for p in part.parameters()) for name, part in given.items()}


def test_a_classifier_is_described_with_the_first_stage_that_it_sees_through():
    """Its network is that which training builds; frozen parts have no gradients."""
    found = description_of(ROOT / "configs/classifier/emoji.yaml")
    config = load(ROOT / "configs/classifier/emoji.yaml", TrainClassifier)
    built = config.network.build(4, (16, 16), num_classes=8)
    assert found.parameters == {"classifier": sum(p.numel() for p in built.parameters()), "first_stage": 2_702_087}
    count, frozen = found.parameters.values()
    assert found.held == Held(weights=4 * (count + frozen), gradients=4 * count, optimizer=8 * count, average=4 * count)
    assert (found.stage, found.latent, found.trained) == (None, (4, 16, 16), ("classifier",))
    uncached = description_of(ROOT / "configs/classifier/emoji.yaml", ["data.cache_latents=false"])
    assert uncached.step(1).flops > found.step(1).flops > 2 * 3 * count * 64  # more than each weight once, forward and back, for a batch


def test_a_classifiers_text_says_what_it_is(capsys):
    describe.main(["--config", "configs/classifier/emoji.yaml"])
    assert "emoji-classifier: classifier, pictures 64x64 of 3 channels, latents 16x16 of 4" in capsys.readouterr().out


def test_the_1_45_billion_model_in_seconds_as_json(capsys):
    describe.main(["--config", "configs/published/txt2img-1.45b.yaml", "--json", "--processes", "34"])
    described = json.loads(capsys.readouterr().out)
    assert described["parameters"] == {
        "denoiser": 872_300_484,
        "first_stage": 83_653_863,
        "conditioner": 581_994_042,
        "conditioner_unused": 39_098_682,
    }
    assert (described["latent"], described["batch"]) == ([4, 32, 32], {"pictures": 680, "processes": 34, "at_once": 2})
    parts = {name: count for name, count in described["memory"].items() if name != "total"}
    assert parts.keys() == {"weights", "gradients", "optimizer", "average", "activations"}
    assert described["memory"]["total"] == sum(parts.values())
    trained = 872_300_484 + 581_994_042 - 39_098_682
    assert parts["weights"] == 4 * (trained + 83_653_863) and parts["optimizer"] == 2 * parts["gradients"] == 8 * trained
    # A step is at least forward and backward of every weight of the denoiser at one of 1024 places, twice for checkpointing.
    assert described["flops"]["run"] == 390_000 * described["flops"]["step"]
    assert 5e14 < described["flops"]["step"] < 2e15


def test_output_that_is_not_read_to_its_end_is_no_error():
    """As of `describe.py ... | head`."""
    command = [sys.executable, "scripts/describe.py", "--config", "configs/vae/emoji-f4.yaml", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as done:
        done.stdout.close()
        said = done.stderr.read()
    assert (done.returncode, said) == (141, "")


def test_the_text_says_what_the_json_says(capsys):
    describe.main(["--config", "configs/vae/emoji-f4.yaml", "train.batch_size=4"])
    text = capsys.readouterr().out
    for line in ("emoji-f4: stage one, pictures 64x64 of 3 channels, latents 16x16 of 4", "2,702,087  trained", "14,716,160  frozen"):
        assert line in text
    assert "that share a batch of 4: 4 pictures at once, bf16" in text
    assert re.search(r"weights +72\.5 MB\n", text)  # 4 bytes each; not "0.1 GB"
    assert re.search(r"FLOP, 0\.\d+ minutes of one A100", text)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--config", "checkpoints/emoji/manifest.json"], "has none of `denoiser`, `loss` and `network`"),
        (["--config", "checkpoints/emoji/config.yaml"], "is a checkpoint's, which says what a model is and not how it trains"),
        (["--config", "configs/classifier/emoji.yaml", "data.train=nowhere"], "nowhere"),
        (["--config", "nowhere.yaml"], "no such file"),
        (["--config", "configs/ldm/emoji.yaml", "--processes", "0"], "--processes must be at least 1"),
        (["--config", "configs/ldm/emoji.yaml", "first_stage.checkpoint=nowhere"], "first_stage.checkpoint nowhere: no such folder"),
        (["--config", "configs/ldm/emoji.yaml", "data.size=66"], "must be a multiple of the first stage's downsampling factor"),
        ([], "--config"),
    ],
)
def test_mistakes_get_one_line(words, message):
    with pytest.raises(UserError, match=message):
        describe.main(words)
