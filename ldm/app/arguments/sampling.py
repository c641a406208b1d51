"""The flags that all picture-making scripts share."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from ldm.app.cli import Parser
from ldm.core.family import kind_names
from ldm.core.settings import Precision

DEFAULT_MODEL = "checkpoints/emoji"


def parser(description: str, examples: str, out: str, *, elsewhere: Mapping[str, str] = {}, model: str | None = None) -> Parser:
    """A parser with the shared flags; what is not given is as the model's checkpoint says.

    Args:
        description, examples: see `Parser`.
        out: default of `--out`.
        elsewhere: see `Parser`; flags of these are left out: --height, with --width; --num-images; --seed.
        model: what models the script is for, where the shipped one is none of them: then `--model` must be given.
    """
    made = Parser(description, examples, elsewhere)
    if model is None:
        made.add_argument("--model", default=DEFAULT_MODEL, help="checkpoint folder (default: %(default)s)")
    else:
        made.add_argument("--model", required=True, help=f"checkpoint folder of {model}")
    made.add_argument("--lora", type=Path, help="folder of a LoRA that was trained on the model, RUN_DIR/lora of such a run")
    made.add_argument("--lora-scale", type=float, help="how strongly it acts (default: 1, as it was trained)")
    add_sampling_flags(made)
    if "--height" not in elsewhere:
        made.add_argument("--height", type=int, help="of the pictures, in pixels (default: as the model was trained)")
        made.add_argument("--width", type=int, help="likewise")
    if "--num-images" not in elsewhere:
        made.add_argument("--num-images", type=int, default=4, help="how many pictures (default: %(default)s)")
    if "--seed" not in elsewhere:
        made.add_argument("--seed", type=int, default=0, help="picture i depends on (seed, i) only (default: %(default)s)")
    made.add_argument("--out", type=Path, default=Path(out), help="folder for the pictures (default: %(default)s)")
    made.add_argument("--precision", choices=get_args(Precision), default="fp32", help="of the networks (default: %(default)s)")
    made.add_device()
    return made


def add_sampling_flags(made: Parser) -> None:
    """How the solver goes; what is not given is as the model's checkpoint says."""
    samplers, grids = _kinds()
    made.add_argument(
        "--sampler", help=f"{', '.join(samplers)}; settings follow: 'pc corrections=0' (default: as the model says)"
    ).completer = lambda **_: samplers  # type: ignore[attr-defined]  # argcomplete's manual has it so
    made.add_argument(
        "--grid", help=f"spacing of the steps: {', '.join(grids)}; e.g. 'karras rho=5' (default: as the model says)"
    ).completer = lambda **_: grids  # type: ignore[attr-defined]
    made.add_argument("--steps", type=int, help="solver steps (default: as the model says, mostly 20)")
    made.add_argument("--guidance", type=float, help="classifier-free guidance; 1 = none (default: as the model says)")
    made.add_argument(
        "--guidance-interval",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="noise levels, in sigma / alpha, at which that guidance acts; HIGH may be inf (default: as the model says, mostly all)",
    )
    made.add_argument(
        "--guidance-rescale",
        type=float,
        metavar="R",
        help="0 to 1, how far the contrast that it adds is taken back (default: as the model says, mostly 0)",
    )
    made.add_argument(
        "--threshold",
        type=_threshold,
        metavar="clip|P|none",
        help="models on pixels: x0 is clipped to [-1, 1], or scaled down by its percentile P, e.g. 0.995 (default: as the model says)",
    )


@functools.cache
def _kinds() -> tuple[list[str], list[str]]:
    """Names of the samplers and of the grids, read once a process."""
    samplers = kind_names("ldm.samplers", "Sampler")
    return samplers, kind_names("ldm.diffusion", "Grid")


def _threshold(text: str) -> float | str:
    return text if text in ("clip", "none") else float(text)
