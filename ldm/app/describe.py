"""`scripts/describe.py`: how large a run would be."""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass

from ldm.app.commands import CALLER
from ldm.app.description import Description, describe
from ldm.app.held import Held

# What the time is reckoned by: a common GPU, and the share of its peak that tuned training reaches; the published runs took longer.
GPU, SHARE = "A100", 0.3
PEAK = {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12}  # FLOP/s, as its maker states them; TF32 is off by default
MB, GB = 1e6, 1e9


def main(options: argparse.Namespace) -> None:
    """Prints what a config would cost."""
    found = describe(options.config, options.overrides)
    cost = Cost.of(found, options.processes)
    print(json.dumps(as_json(found, cost), indent=2) if options.json else CALLER.worded(as_text(found, cost)))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a run over so many processes; `held`, `at_once` and `bytes` are of one of them, `flops` and `days` (of one GPU) of it all."""

    processes: int
    held: Held
    at_once: int
    activations: int
    bytes: int
    step_flops: int
    flops: int
    peak: float
    days: float

    @staticmethod
    def of(found: Description, processes: int) -> Cost:
        step, peak = found.step(processes), PEAK[found.train.precision]
        flops, held = step.flops * found.train.steps, found.held_by(processes)
        return Cost(
            processes=processes,
            held=held,
            at_once=found.at_once(processes),
            activations=step.bytes,
            bytes=max(held.total + step.bytes, held.total - held.blocks + held.evaluated),
            step_flops=step.flops,
            flops=flops,
            peak=peak,
            days=flops / (SHARE * peak) / 86_400,
        )


def as_json(found: Description, cost: Cost) -> dict[str, object]:
    """Plain data; memory in bytes."""
    held = {name: count for name, count in dataclasses.asdict(cost.held).items() if count or name not in ("blocks", "evaluated")}
    return {
        "name": found.name,
        "stage": found.stage,
        "image": list(found.image),
        "latent": list(found.latent),
        "parameters": found.parameters,
        "trained": list(found.trained),
        "conditions": found.conditions,
        "batch": {"pictures": found.train.batch_size, "processes": cost.processes, "at_once": cost.at_once},
        "precision": found.train.precision,
        "memory": held | {"activations": cost.activations, "total": cost.bytes},
        "flops": {"step": cost.step_flops, "run": cost.flops},
        "steps": found.train.steps,
        "gpu_days": {"gpu": GPU, "share_of_peak": SHARE, "peak": cost.peak, "days": cost.days},
    }


def as_text(found: Description, cost: Cost) -> str:
    """Some lines to read."""
    train = found.train
    (channels, height, width), (z, h, w) = found.image, found.latent
    stage = "classifier" if found.stage is None else ("stage one", "stage two")[found.stage - 1]
    return "\n".join(
        [
            f"{found.name}: {stage}, pictures {width}x{height} of {channels} channels, latents {w}x{h} of {z}",
            "",
            *(f"conditioned on {name}: {values}" for name, values in found.conditions.items()),
            *[""] * bool(found.conditions),
            "parameters",
            *(f"  {name:<20}{count:>15,}  {_role(name, found)}" for name, count in found.parameters.items()),
            "",
            f"memory of one process of {cost.processes} that share a batch of {train.batch_size}: {cost.at_once} pictures at once, "
            f"{train.precision}, {train.parallel.kind}",
            f"  {'weights':<20}{_size(cost.held.weights):>15}",
            f"  {'gradients':<20}{_size(cost.held.gradients):>15}",
            f"  {'optimizer':<20}{_size(cost.held.optimizer):>15}  AdamW's two moments",
            f"  {'average':<20}{_size(cost.held.average):>15}  of the weights, which checkpoints hold",
            *[f"  {'blocks':<20}{_size(cost.held.blocks):>15}  put together while they are computed"] * (cost.held.blocks > 0),
            f"  {'activations':<20}{_size(cost.activations):>15}  at most, with autocast's copies",
            f"  {'together':<20}{_size(cost.bytes):>15}",
            "",
            f"a step: {cost.step_flops / 1e12:,.3f} TFLOP; {train.steps:,} steps: {cost.flops:.2g} FLOP, {_duration(cost.days)} of "
            f"one {GPU} at {100 * SHARE:.0f}% of its {cost.peak / 1e12:g} TFLOP/s ({train.precision})",
        ]
    )


def _duration(days: float) -> str:
    hours = 24 * days
    return f"{days:,.1f} days" if days >= 1 else f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.2g} minutes"


def _size(count: int) -> str:
    return f"{count / GB:,.1f} GB" if count >= GB else f"{count / MB:,.1f} MB"


def _role(name: str, found: Description) -> str:
    if name in found.trained:
        return "trained"
    return "of these: a published output layer that nothing reads; not here" if name == "conditioner_unused" else "frozen"
