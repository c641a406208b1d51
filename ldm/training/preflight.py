"""What a run prints before and soon after it starts: sizes, memory, speed, finish."""

from __future__ import annotations

import sys
import time

import psutil
import torch

from ldm.training.config import TrainConfig

try:
    import resource
except ImportError:  # Windows

    def _peak_of_process() -> int:
        of_this = psutil.Process().memory_info()
        return int(getattr(of_this, "peak_wset", of_this.rss))
else:

    def _peak_of_process() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # kilobytes but on macOS


SPEED_STEPS = 10  # steps after which the measured speed and memory are printed


def sizes(parts: dict[str, int], trained: int, config: TrainConfig, first_step: int) -> str:
    """The line before the first step.

    Args:
        parts: parameters of each part, frozen ones too.
        trained: how many of them are trained.
        config: of the run.
        first_step: the one to come, from 1.
    """
    frozen = max(0, sum(parts.values()) - trained)
    # float32 weights, gradients, two Adam moments and the average; frozen weights once
    memory = (trained * 20 + frozen * 4) / 2**30
    listed = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in parts.items())
    begins = f"step {first_step} of {config.steps}" if first_step <= config.steps else f"finished at step {first_step - 1}"
    return (
        f"parameters: {listed}; weights and optimizer {memory:.2f} GiB (activations come on top, measured after {SPEED_STEPS} steps); "
        f"batch {config.batch_size}; {begins}"
    )


def speed(config: TrainConfig, step: int, seconds: float, device: torch.device) -> str:
    """The line after SPEED_STEPS steps, which took `seconds`."""
    per_step = seconds / SPEED_STEPS
    left = (config.steps - step) * per_step
    finish = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left))
    return (
        f"speed: {config.batch_size / per_step:.1f} samples/s; about {left / 60:.0f} minutes left, finished near {finish}; "
        f"memory at most {_peak_memory(device) / 2**30:.2f} GiB so far"
    )


def _peak_memory(device: torch.device) -> int:
    """Bytes that this process has had at once: on a CUDA GPU, or in all elsewhere (Apple's GPUs share the machine's memory)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _peak_of_process()
