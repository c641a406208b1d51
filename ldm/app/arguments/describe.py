"""The command line of `scripts/describe.py`: how large a run would be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.app.cli import NO_GPU, Parser
from ldm.core.errors import UserError

EXAMPLES = """examples:
  python scripts/describe.py --config configs/published/txt2img-1.45b.yaml
      the 1.45B text-to-image model: parameters, memory, operations, days
  python scripts/describe.py --config configs/published/txt2img-1.45b.yaml --processes 32 train.accumulate=2
      the same, its batch shared by 32 processes
  python scripts/describe.py --config configs/published/txt2img-1.45b.yaml --processes 8 --parallel fsdp
      the same, weights, moments and average shared out over 8 processes
  python scripts/describe.py --config configs/ldm/emoji.yaml --json
"""


def main(arguments: Sequence[str]) -> None:
    """Prints what a config would cost."""
    parser = Parser(
        "Say how many parameters a config has and what training it costs. Nothing is allocated or fetched.", EXAMPLES, {"--device": NO_GPU}
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of train_vae, train_ldm or train_classifier")
    parser.add_argument("--processes", type=int, default=1, help="that share each batch (default: 1)")
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), help="how they share it, the same as train.parallel=")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config, e.g. train.batch_size=8")
    options = parser.parse_intermixed_args(arguments)
    options.overrides += [f"train.parallel={options.parallel}"] * (options.parallel is not None)
    if options.processes < 1:
        raise UserError(f"--processes must be at least 1, got {options.processes}")

    from ldm.app import describe

    describe.main(options)
