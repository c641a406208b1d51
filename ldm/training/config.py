"""How a run trains: the part of the config that both stages share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from ldm.core.errors import UserError
from ldm.core.precision import DTYPES
from ldm.core.settings import MatmulPrecision, Precision, check_device_name


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019), fused, with linear warm-up and a decay to `final_rate` of the peak."""

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0  # of the whole gradient; None = no clipping
    warmup_steps: int = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    final_rate: float = 0.0  # the last step's rate, as a share of the peak

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.warmup_steps < 0 or not 0 <= self.final_rate <= 1 or self.weight_decay < 0:
            raise UserError("need learning_rate > 0, warmup_steps >= 0, weight_decay >= 0 and final_rate in [0, 1]")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas must be shares from 0 to less than 1, got {list(self.betas)}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(f"clip_norm must be positive or null, got {self.clip_norm}")

    def build(self, parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
        return torch.optim.AdamW(parameters, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay, fused=True)

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate of optimizer step `step`, counted from 1, in a run of `steps`."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        fall = {"constant": 0.0, "linear": done, "cosine": 0.5 - 0.5 * math.cos(math.pi * min(done, 1.0))}[self.decay]
        return self.learning_rate * (1 - (1 - self.final_rate) * fall)


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How several processes share a step; see `ldm.training.parallel`.

    Attributes:
        kind: `ddp`: each has all weights; `fsdp`: each has a part of them, of the optimizer's moments and of the average, in stage two.
    """

    kind: Literal["ddp", "fsdp"] = "ddp"

    def refuse_fsdp(self, why: str) -> None:
        """
        Raises:
            UserError: `fsdp` is asked for.
        """
        if self.kind == "fsdp":
            raise UserError(f"train.parallel=fsdp is for denoisers that do not fit, in stage two: {why}; leave it at ddp")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Counts are optimizer steps; a batch is the *global* batch, over all processes and micro-batches."""

    steps: int
    batch_size: int
    accumulate: int = 1  # micro-batches a step and process
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: Precision = "fp32"
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps; auto = CUDA, else Apple's GPU, else the CPU
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False  # on GPUs: the same run twice gives the same bits, by slower kernels; on a CPU it does so anyway
    matmul_precision: MatmulPrecision = "highest"  # of float32 products; high: TF32 on GPUs that have it, medium: bfloat16
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    ema_decay: float = 0.999
    checkpoint_every: int = 1000
    keep_every: int | None = None  # these steps' checkpoints stay, as checkpoints/step-000500; None = only the newest is there
    keep_best: str | None = (
        None  # the checkpoint with the best of an evaluation's numbers stays, as checkpoints/best: val/loss, val/psnr, ...
    )
    sample_every: int = 1000  # sample grids and evaluation
    log_every: int = 10  # numbers of so many steps are read from the device and written at once, a line a step
    checkpoint_dtype: Precision = "fp32"
    checkpoint_file_mib: int = 4096  # larger parts are split over several files

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every", "sample_every", "log_every", "checkpoint_file_mib"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_device_name(self.device)
        if self.keep_every is not None and self.keep_every < 1:
            raise UserError(f"keep_every must be at least 1, or null, got {self.keep_every}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if self.accumulate > self.batch_size:
            raise UserError(f"accumulate ({self.accumulate}) must not exceed batch_size ({self.batch_size})")

    def keeps(self, step: int) -> bool:
        """Whether a step's checkpoint stays."""
        return self.keep_every is not None and step % self.keep_every == 0

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        return None if self.precision == "fp32" else DTYPES[self.precision]


def check_run_name(name: str) -> None:
    """Refuses a name that would be another folder than one in `runs`.

    Raises:
        UserError: empty, hidden, too long, or with a slash or a character that cannot be printed.
    """
    if not name or name.startswith(".") or "/" in name or "\\" in name or not name.isprintable() or len(name.encode()) > 100:
        raise UserError(f"name {name[:100]!r} must be a plain name of at most 100 bytes: the run's folder in runs is called so")
