"""diffusers' scheduler configs: without them a model would be sampled with another noise schedule or prediction than it was trained for.

One config file holds our process, prediction, sampler and grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ldm.checkpoints.model import SamplingDefaults
from ldm.core.errors import UserError, unknown
from ldm.diffusion.grid import Grid, Leading, Trailing, Uniform
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.interop.foreign_config import read_foreign
from ldm.samplers.sampler import Sampler

SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "LMSDiscreteScheduler": "pndm",  # see REPLACED
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp_2m",  # or dpmpp_2m_sde: ALGORITHMS
    "UniPCMultistepScheduler": "unipc",
}
START_AT_INDEX_0 = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")  # their default spacing is `leading`, that of others linspace
DPM, SDE = "DPMSolverMultistepScheduler", "sde-dpmsolver++"
ALGORITHMS = {"dpmsolver++": "dpmpp_2m", SDE: "dpmpp_2m_sde", "dpmsolver": "dpmpp_2m", "sde-dpmsolver": "dpmpp_2m_sde"}
REPLACED = {  # schedulers and algorithms that do not exist here -> the similarity of our sampler
    "LMSDiscreteScheduler": "it extrapolates over past steps too",
    "dpmsolver": "the same solver in x0 instead of eps",
    "sde-dpmsolver": "the same solver in x0 instead of eps",
}
NAME_OF_2022 = "timesteps"  # for num_train_timesteps
BETAS: dict[str, Literal["linear", "sqrt_linear", "cosine"]] = {
    "linear": "linear",
    "scaled_linear": "sqrt_linear",
    "squaredcos_cap_v2": "cosine",
}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
UNREAD = (  # details of the solver, as ours is chosen by name; and of clipping, which does not apply to latents
    "clip_sample", "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "set_alpha_to_one", "skip_prk_steps",
    "tensor_format", "solver_type", "solver_order", "lower_order_final", "euler_at_final", "final_sigmas_type", "interpolation_type",
    "timestep_type", "lambda_min_clipped", "use_lu_lambdas", "predict_x0", "disable_corrector", "sigma_max", "sigma_min", "flow_shift",
    "shift_terminal", "time_shift_type",
)  # fmt: skip
NO_CLIPPING = {"clip_sample": False, "thresholding": False}


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """Fields common to the schedulers. Names and defaults are diffusers'; a Literal lists the values that exist here."""

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = None
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    algorithm_type: str = "dpmsolver++"
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"] = "fixed_small"


@dataclass(frozen=True, kw_only=True)
class SchedulerParts:
    """A scheduler as our parts, with notes for the user."""

    process: DiscreteVP
    prediction: Prediction
    sampler: Sampler
    grid: Grid
    notes: tuple[str, ...]


def read_scheduler(content: Any, where: str) -> SchedulerParts:
    """Our parts from a scheduler's config.

    Raises:
        UserError: a scheduler or setting that does not exist here.
    """
    name = str(content.get("_class_name") if isinstance(content, dict) else None)
    if name not in SAMPLERS:
        raise unknown(f"scheduler of {where}:", name, SAMPLERS)
    if NAME_OF_2022 in content and "num_train_timesteps" not in content:
        content = {"num_train_timesteps" if key == NAME_OF_2022 else key: value for key, value in content.items()}
    theirs = read_foreign(content, Scheduler, where, UNREAD)
    spacing = theirs.timestep_spacing or ("leading" if name in START_AT_INDEX_0 else "linspace")
    grids: dict[str, Grid] = {"leading": Leading(offset=theirs.steps_offset), "trailing": Trailing(), "linspace": Uniform()}
    kind, notes = _sampler(name, theirs.algorithm_type, where)
    sampler, prediction = Sampler.of_kind(kind)(), Prediction.of_kind(PREDICTIONS[theirs.prediction_type])()
    assert isinstance(sampler, Sampler) and isinstance(prediction, Prediction)
    process = DiscreteVP(
        spacing=BETAS[theirs.beta_schedule],
        num_steps=theirs.num_train_timesteps,
        beta_first=theirs.beta_start,
        beta_last=theirs.beta_end,
        zero_terminal_snr=theirs.rescale_betas_zero_snr,
    )
    return SchedulerParts(process=process, prediction=prediction, sampler=sampler, grid=grids[spacing], notes=notes)


def _sampler(name: str, algorithm: str, where: str) -> tuple[str, tuple[str, ...]]:
    """The kind of our sampler for a scheduler, and a note if it is a different one."""
    kind, original = SAMPLERS[name], name
    if name == DPM:
        if algorithm not in ALGORITHMS:
            raise unknown(f"algorithm_type of {where}:", algorithm, ALGORITHMS)
        kind, original = ALGORITHMS[algorithm], algorithm
    reason = REPLACED.get(original)
    return kind, () if reason is None else (f"sampler {kind} takes the place of {original}: {reason}",)


def scheduler_json(process: NoiseProcess, prediction: Prediction, sampling: SamplingDefaults) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A scheduler's config, and notes on settings of ours that it lacks.

    Raises:
        UserError: a process or prediction that diffusers' schedulers for latents lack.
    """
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    if not isinstance(process, DiscreteVP):
        raise UserError(f"diffusers' latent pipelines have no scheduler for process {process.kind!r} with our networks' time input")
    if prediction.kind not in predictions:
        raise UserError(f"diffusers' schedulers have no prediction {prediction.kind!r}; they have eps, x0 and v")
    left_out = []
    names = {kind: name for name, kind in reversed(SAMPLERS.items())} | {ALGORITHMS[SDE]: DPM}
    name = names.get(sampling.sampler.kind, "DDIMScheduler")
    if process.zero_terminal_snr and name != "DDIMScheduler":
        name = "DDIMScheduler"  # not all others have rescale_betas_zero_snr
    if names.get(sampling.sampler.kind) != name:
        left_out.append(f"sampler {sampling.sampler.kind} is left out: its place is taken by DDIMScheduler")
    grid = sampling.grid
    if not isinstance(grid, (Leading, Trailing)):
        left_out.append(f"grid {grid.kind} is left out: its place is taken by trailing")
    written = {
        "_class_name": name,
        "num_train_timesteps": process.num_steps,
        "beta_start": process.beta_first,
        "beta_end": process.beta_last,
        "beta_schedule": {ours: theirs for theirs, ours in BETAS.items()}[process.spacing],
        "prediction_type": predictions[prediction.kind],
        "timestep_spacing": "leading" if isinstance(grid, Leading) else "trailing",
        "steps_offset": grid.offset if isinstance(grid, Leading) else 0,
    }
    if name in ("DDIMScheduler", "DDPMScheduler"):
        written |= NO_CLIPPING
    if name == "DDIMScheduler":
        written |= {"set_alpha_to_one": True, "rescale_betas_zero_snr": process.zero_terminal_snr}
    if name == DPM and sampling.sampler.kind == ALGORITHMS[SDE]:
        written["algorithm_type"] = SDE
    if name == "PNDMScheduler":
        written |= {"skip_prk_steps": True, "set_alpha_to_one": True}
    return written, tuple(left_out)
