"""CompVis's tables of the noise schedule: without them a model with another schedule would be imported and draw noise.

They are in CompVis's single files beside the networks, together with numbers of training, which are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.interop.keymap import check_numbers, check_shape, check_unread

TABLES = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights",
)  # fmt: skip
OF_TRAINING = ("logvar", "cond_ids")  # one number a step, as in the tables
SCALE = "scale_factor"
BESIDE = (*TABLES, *OF_TRAINING, SCALE)


def tables_of(process: DiscreteVP) -> dict[str, Tensor]:
    """The two tables that determine the noise schedule, (num_steps,); some tools recognise such a checkpoint by them."""
    t = torch.arange(1, process.num_steps + 1, dtype=torch.float64) / process.num_steps
    kept = process.alpha(t).square()
    betas = 1 - kept / torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    return {"betas": betas.float(), "alphas_cumprod": kept.float()}


def check_tables(tensors: Mapping[str, Tensor], process: DiscreteVP, path: Path) -> list[str]:
    """Checks the tables of a file; returns notes on those that are passed over.

    Raises:
        UserError: a table of another length; NaN; another noise schedule than the config's.
    """
    for name in (*TABLES, *OF_TRAINING):
        if name in tensors:
            check_shape(tensors[name], (process.num_steps,), f"{path}: {name}", " (config key timesteps)")
            check_unread(tensors[name], f"{path}: {name}")
    for name, wanted in tables_of(process).items():
        stored = tensors.get(name)
        if stored is not None and not torch.allclose(stored.float(), wanted, rtol=1e-2, atol=1e-5):
            raise UserError(
                f"{path}: {name} belongs to another noise schedule than the config's (config keys timesteps, beta_schedule, linear_start, "
                f"linear_end)"
            )
    tables, others = ([name for name in names if name in tensors] for names in (TABLES, OF_TRAINING))
    notes = []
    if tables:
        notes.append(f"passed over {_few(tables)}: the noise schedule's tables, which are computed anew")
    if others:
        notes.append(f"passed over {', '.join(others)}: of training")
    return notes


def stored_scale(tensors: Mapping[str, Tensor], path: Path) -> float | None:
    """The latents' scale that was measured in training; None = the file has none.

    Raises:
        UserError: it is not one finite number.
    """
    stored = tensors.get(SCALE)
    if stored is None:
        return None
    if stored.numel() != 1:
        raise UserError(f"{path}: {SCALE} has shape {tuple(stored.shape)}; it is one number")
    check_numbers(stored, f"{path}: {SCALE}")
    return stored.item()


def _few(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
