"""What `gpu.py` measures besides tests and pairs: the host's gaps, a published model's throughput, latency, and a training run."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from speed import milliseconds
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ldm.config.loader import build, read
from ldm.core.condition import Condition
from ldm.core.precision import autocast
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.grid import Uniform
from ldm.diffusion.prediction import VPrediction
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.guidance.classifier_free import classifier_free
from ldm.networks.unet import UNetConfig
from ldm.profiling.footprint import training_footprint
from ldm.samplers.ddim import DDIM

ROOT = Path(__file__).resolve().parents[1]
SPECIFIED = 989e12  # dense bf16 operations a second of an H100 or H200, as its maker has them
MEASURED = "measured"

Row = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """The parts of a latent model of a size, with random weights.

    Attributes:
        unet: its denoiser, v-prediction, with cross-attention.
        autoencoder: its first stage.
        side: of the latents.
        tokens: of a caption.
        batches: at which training is measured.
        product: side of the square matrices that are multiplied for comparison.
    """

    unet: UNetConfig
    autoencoder: KLAutoencoderConfig
    side: int
    tokens: int
    batches: tuple[int, ...]
    product: int


def model_of(device: torch.device) -> Model:
    """Stable Diffusion 2's sizes on a GPU; on a CPU, for a rehearsal, tiny ones."""
    if device.type == "cpu":
        unet = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(1, 2), head_width=16, context_width=24)
        return Model(unet, KLAutoencoderConfig(channels=32, multipliers=(1, 2), blocks=1, latent_channels=4), 8, 7, (1, 2), 64)
    denoiser = read(ROOT / "configs/published/sd2.yaml")["denoiser"] | {"checkpointing": False}
    unet = build(denoiser, UNetConfig)
    return Model(unet, KLAutoencoderConfig(channels=128, multipliers=(1, 2, 4, 4), blocks=2, latent_channels=4), 64, 77, (8, 16, 32), 8192)


class Step:
    """A training step in bf16: the objective's target, a mean square, a fused AdamW."""

    def __init__(self, model: Model, batch: int, device: torch.device, *, compiled: bool, channels_last: bool) -> None:
        self.device = device
        order = torch.channels_last if channels_last else torch.contiguous_format
        self.network = model.unet.build(4, 4).to(device).to(memory_format=order)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)
        self.x, self.target = torch.randn(2, batch, 4, model.side, model.side, device=device)
        self.t = torch.randint(0, 1000, (batch,), device=device).float()
        self.condition = Condition(tokens=torch.randn(batch, model.tokens, model.unet.context_width or 0, device=device))
        self.call: Callable[..., Tensor] = torch.compile(self.network) if compiled else self.network

    def __call__(self) -> None:
        with autocast(self.device, "bf16"):
            output = self.call(self.x, self.t, self.condition)
        (output.float() - self.target).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def variants(model: Model, deadline: float) -> Iterator[tuple[int, bool, bool]]:
    """(batch, compiled, channels_last) as long as there is time."""
    for compiled in (False, True):
        for channels_last in (True, False):
            for batch in model.batches:
                if time.monotonic() < deadline:
                    yield batch, compiled, channels_last


def run_sd2(device: torch.device, deadline: float, send: Callable[[Row], None]) -> None:
    """Training throughput of an 866M UNet on 64x64 latents, as a share of what the GPU can multiply."""
    model = model_of(device)
    best = matmul_rate(model.product, device)
    send({"case": f"bf16 product of {model.product}x{model.product}", "outcome": MEASURED, "TFLOP/s": best / 1e12})
    with torch.device("meta"):
        counted = model.unet.build(4, 4)
        x, t, tokens = (
            torch.randn(1, 4, model.side, model.side),
            torch.zeros(1),
            torch.randn(1, model.tokens, model.unet.context_width or 0),
        )
    operations = training_footprint([counted], lambda: counted(x, t, Condition(tokens=tokens)).sum(), torch.bfloat16).flops
    for batch, compiled, channels_last in variants(model, deadline):
        case = f"batch {batch}" + ", compiled" * compiled + ", channels-last" * channels_last
        try:
            one = Step(model, batch, device, compiled=compiled, channels_last=channels_last)
            spent = _median_ms(one, device)
        except RuntimeError as error:  # no memory, or no compiler
            send({"case": case, "outcome": "error", "said": str(error)})
            continue
        finally:
            one = None  # before the next one is made
        rate = batch * operations / spent * 1e3
        shares = {"of the product, %": 100 * rate / best, "of the specified, %": 100 * rate / SPECIFIED}
        send({"case": case, "outcome": MEASURED, "images/s": batch / spent * 1e3, "TFLOP/s": rate / 1e12, **shares})


def matmul_rate(side: int, device: torch.device) -> float:
    """Operations a second of a product of square bf16 matrices."""
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 / _median_ms(lambda: torch.mm(a, b), device) * 1e3


def run_profile(device: torch.device, deadline: float, send: Callable[[Row], None]) -> None:
    """How much of a training step's time the device waits for the host: no kernel runs then."""
    model = model_of(device)
    for batch, compiled, channels_last in variants(model, deadline):
        case = f"batch {batch}" + ", compiled" * compiled + ", channels-last" * channels_last
        try:
            one = Step(model, batch, device, compiled=compiled, channels_last=channels_last)
            spent = _median_ms(one, device)
            kind = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
            with profile(activities=[kind]) as found:
                one()
                _wait(device)
        except RuntimeError as error:
            send({"case": case, "outcome": "error", "said": str(error)})
            continue
        events = [event for event in found.events() or () if device.type == "cpu" or event.device_type.name == "CUDA"]
        busy = _covered([(event.time_range.start, event.time_range.end) for event in events]) / 1e3
        kernels = sorted(found.key_averages(), key=lambda one: -_own_time(one, device))[:3]
        names = "; ".join(one.key[:48] for one in kernels)
        send({"case": case, "outcome": MEASURED, "step, ms": spent, "gaps, %": max(0.0, 100 * (1 - busy / spent)), "longest": names})


def run_latency(device: torch.device, deadline: float, send: Callable[[Row], None]) -> None:
    """From noise to pixels: 20 guided steps of an 866M UNet and the decoding, in bf16."""
    model = model_of(device)
    network = model.unet.build(4, 4).to(device, torch.bfloat16, memory_format=torch.channels_last).eval()
    first_stage = model.autoencoder.build().to(device, memory_format=torch.channels_last).eval()
    process = DiscreteVP(spacing="sqrt_linear")
    for compiled in (False, True):
        call: nn.Module | Callable[..., Tensor] = torch.compile(network) if compiled else network
        denoiser = Denoiser(network=call, process=process, prediction=VPrediction())
        for batch in (1, 16):
            if time.monotonic() > deadline:
                return
            tokens = torch.randn(2, batch, model.tokens, model.unet.context_width or 0, device=device, dtype=torch.bfloat16)
            guided = classifier_free(denoiser, Condition(tokens=tokens[0]), Condition(tokens=tokens[1]), 5.0)
            x = torch.randn(batch, 4, model.side, model.side, device=device)

            def draw(guided: Any = guided, x: Tensor = x) -> None:
                with torch.inference_mode(), autocast(device, "bf16"):
                    latent = DDIM().sample(guided, x, Uniform().times(process, 20), process, lambda *_: x)
                    first_stage.decode(latent)

            case = f"batch {batch}" + ", compiled" * compiled
            try:
                spent = _median_ms(draw, device, rounds=3)
            except RuntimeError as error:
                send({"case": case, "outcome": "error", "said": str(error)})
                continue
            send({"case": case, "outcome": MEASURED, "seconds": spent / 1e3, "images/s": batch / spent * 1e3})


def run_train(data: Path, device: torch.device, deadline: float, send: Callable[[Row], None]) -> None:
    """Both stages by their scripts on a prepared set, each in half of the time; what they print of speed and loss."""
    own = [f"data.train={data}", "data.val=null", f"train.device={device.type}", "train.precision=bf16", "loss.perceptual_weight=0"]
    runs = data.parent / f"{data.name}-runs"
    for stage, share in (("vae", 0.5), ("ldm", 1.0)):
        left = (deadline - time.monotonic()) * share
        words = [sys.executable, f"scripts/train_{stage}.py", "--run-dir", str(runs / stage)]
        config = ["--config", "configs/vae/emoji-f4.yaml", *own] if stage == "vae" else ["--config", "configs/ldm/emoji.yaml", *own[:-1]]
        config += [f"first_stage.checkpoint={runs / 'vae' / 'checkpoint'}"] if stage == "ldm" else []
        process = subprocess.Popen([*words, *config], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            said, _ = process.communicate(timeout=max(left - 20, 1))
        except subprocess.TimeoutExpired:
            process.terminate()  # it saves its state
            said, _ = process.communicate()
        speed = re.findall(r"speed: ([\d.,]+) samples/s", said)
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
        outcome = MEASURED if speed else "error"
        send(
            {
                "case": f"train_{stage}.py",
                "outcome": outcome,
                "images/s": float(speed[-1].replace(",", "")) if speed else None,
                "said": last,
            }
        )


def _median_ms(one: Callable[[], Any], device: torch.device, rounds: int = 5) -> float:
    for _ in range(3):
        one()
    return median(milliseconds(one, device) for _ in range(rounds))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def _own_time(one: Any, device: torch.device) -> float:
    time_of: float = one.self_device_time_total if device.type == "cuda" else one.self_cpu_time_total
    return time_of
