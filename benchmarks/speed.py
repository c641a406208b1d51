"""Our networks' speed against diffusers', of one architecture and shape, alternating in one process; without diffusers, ours alone.

    OMP_WAIT_POLICY=ACTIVE python benchmarks/speed.py
    python benchmarks/speed.py --device cuda --compile --json > speed.json

Milliseconds are medians over the rounds; the ratio is the median over the rounds of theirs / ours, so above 1 ours is faster. On a GPU the
networks have the width of the published text model, on a CPU a fraction of it. float32 is torch's default: on a GPU convolutions may round
their inputs to TF32, on both sides.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ldm.app.cli import Parser, run
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.precision import Precision, autocast
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.interop.diffusers.parts import SizedAutoencoder, autoencoder_json
from ldm.interop.diffusers.unet import SizedUNet, unet_json
from ldm.networks.unet import UNetConfig

EXAMPLES = """examples:
  OMP_WAIT_POLICY=ACTIVE python benchmarks/speed.py
  python benchmarks/speed.py --only autoencoder --rounds 3
  python benchmarks/speed.py --device cuda --compile --json > speed.json
"""

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
TRAINING = "training step"  # forward, backward and a fused AdamW's step; a squared output stands in for the loss
JOBS = {"UNet": ("forward", TRAINING), "autoencoder": ("decoding", TRAINING)}
WARM_UP = 2  # calls before the network_time runs: memory is taken, kernels are chosen, torch.compile compiles
TOKENS = 32

Call = Callable[[Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large networks and batches are."""

    unet: UNetConfig
    batch: int
    side: int  # of the latents
    autoencoder: KLAutoencoderConfig
    image_batch: int
    image_side: int


SCALES = {
    "cpu": Scale(
        unet=UNetConfig(channels=96, multipliers=(1, 2, 4), blocks=2, attention=(2, 4), head_width=32, context_width=384),
        batch=8,
        side=16,
        autoencoder=KLAutoencoderConfig(channels=64, multipliers=(1, 2, 4), blocks=1, latent_channels=4),
        image_batch=4,
        image_side=64,
    ),
    "cuda": Scale(
        unet=UNetConfig(channels=320, multipliers=(1, 2, 4), blocks=2, attention=(1, 2, 4), head_width=32, context_width=768),
        batch=64,
        side=32,
        autoencoder=KLAutoencoderConfig(channels=128, multipliers=(1, 2, 4), blocks=2, latent_channels=4),
        image_batch=16,
        image_side=256,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two networks of one architecture, and how each is called for a job; theirs is None where diffusers is not installed."""

    ours: nn.Module
    theirs: nn.Module | None
    calls: dict[str, tuple[Call, Call]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of a case, in milliseconds a round.

    Attributes:
        case: what was measured.
        ours: of our network.
        theirs: of diffusers', in the same rounds; empty without it.
        note: why there are no numbers; else empty.
    """

    case: str
    ours: tuple[float, ...] = ()
    theirs: tuple[float, ...] = ()
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Median of theirs / ours."""
        return median(b / a for a, b in zip(self.ours, self.theirs, strict=True)) if self.theirs else None

    def as_json(self) -> dict[str, Any]:
        return {"case": self.case, "ours_ms": self.ours, "theirs_ms": self.theirs, "ratio": self.ratio, "note": self.note}

    def cells(self) -> tuple[str, str, str, str]:
        """Case, ours, theirs, ratio, for a table."""
        ours, theirs = (f"{median(times):.1f}" if times else "" for times in (self.ours, self.theirs))
        return self.case, ours or self.note, theirs, "" if self.ratio is None else f"{self.ratio:.2f}"


def main(arguments: Sequence[str]) -> None:
    """Measures and prints, a line a case."""
    flags = Parser("Our networks' speed against diffusers', of one architecture and shape.", EXAMPLES)
    flags.add_argument("--device", choices=SCALES, default="cpu", help="where (default: %(default)s)")
    flags.add_argument("--rounds", type=int, default=7, help="timed calls of either side (default: %(default)s)")
    flags.add_argument("--threads", type=int, default=1, help="of the CPU (default: %(default)s)")
    flags.add_argument("--only", default="", metavar="TEXT", help="cases whose name has this in it, e.g. 'bf16' or 'autoencoder decoding'")
    flags.add_argument("--compile", action="store_true", help="both sides through torch.compile")
    flags.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    options = flags.parse_args(arguments)
    for name in ("rounds", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU here that torch can use: take --device cpu")
    cases = [case for case in all_cases() if options.only in case]
    if not cases:
        raise UserError(f"no case has {options.only!r} in its name; there are: {', '.join(all_cases())}")
    torch.set_num_threads(options.threads)
    device, rows = torch.device(options.device), []
    if not options.json:
        print(f"{machine(device)}; {peer()}")
    for row in measured(cases, device, options.rounds, compiled=options.compile):
        rows.append(row)
        if not options.json:
            print("{:34}{:>10} ms{:>10} ms{:>8}".format(*row.cells()), flush=True)
    if options.json:
        asked = {name: getattr(options, name) for name in ("device", "rounds", "threads", "compile")}
        print(json.dumps({"machine": machine(device), "peer": peer(), **asked, "rows": [row.as_json() for row in rows]}, indent=1))


def all_cases() -> list[str]:
    """Names, as `--only` looks at them."""
    return [f"{network} {job} {precision}" for network, jobs in JOBS.items() for precision in PRECISIONS for job in jobs]


def machine(device: torch.device) -> str:
    """The processor and torch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def peer() -> str:
    """diffusers and its version, or that it is not there."""
    if importlib.util.find_spec("diffusers") is None:
        return "diffusers is not installed: ours alone"
    import diffusers

    return f"diffusers {diffusers.__version__}"


def measured(cases: Sequence[str], device: torch.device, rounds: int, *, compiled: bool = False) -> Iterator[Row]:
    """A row a case, each measured when it is asked for; networks are made once for cases that follow one another."""
    scale = SCALES[device.type]
    for network, make in (("UNet", unets), ("autoencoder", autoencoders)):
        wanted = [(job, precision) for precision in PRECISIONS for job in JOBS[network] if f"{network} {job} {precision}" in cases]
        if not wanted:
            continue
        torch.manual_seed(0)
        pair = make(scale, device)
        for job, precision in wanted:
            case = f"{network} {job} {precision}" + (", compiled" if compiled else "")
            try:
                yield timed(case, pair, job, precision, device, rounds, compiled=compiled)
            except RuntimeError as error:  # no memory, or no compiler: the other cases are measured all the same
                yield Row(case=case, note=f"{type(error).__name__}: {str(error).splitlines()[0]}")
            for side in (pair.ours, pair.theirs):
                if side is not None:
                    side.zero_grad()
        del pair  # before the next one is made


def timed(case: str, pair: Pair, job: str, precision: Precision, device: torch.device, rounds: int, *, compiled: bool) -> Row:
    """Both sides in turn, so that whatever slows the machine down slows both."""
    sides = [(network, call) for network, call in zip((pair.ours, pair.theirs), pair.calls[job], strict=True) if network is not None]
    works = [work(network, torch.compile(call) if compiled else call, job, precision, device) for network, call in sides]
    for one in works:
        for _ in range(WARM_UP):
            one()
    times = [[milliseconds(one, device) for one in works] for _ in range(rounds)]
    ours, *theirs = (tuple(column) for column in zip(*times, strict=True))
    return Row(case=case, ours=ours, theirs=theirs[0] if theirs else ())


def work(network: nn.Module, call: Call, job: str, precision: Precision, device: torch.device) -> Callable[[], None]:
    """One timed call."""
    network.train(job == TRAINING)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def forward() -> None:
        with torch.no_grad(), autocast(device, precision):
            call(network)

    def step() -> None:
        with autocast(device, precision):
            output = call(network)
        output.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step if job == TRAINING else forward


def milliseconds(one: Callable[[], None], device: torch.device) -> float:
    """Of one call, and of all that it left to the device."""
    _wait(device)
    began = time.perf_counter()
    one()
    _wait(device)
    return (time.perf_counter() - began) * 1e3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def unets(scale: Scale, device: torch.device) -> Pair:
    """The denoiser, with cross-attention to TOKENS tokens."""
    batch, side, config = scale.batch, scale.side, scale.unet
    x, t = torch.randn(batch, 4, side, side, device=device), torch.randint(0, 1000, (batch,), device=device)
    tokens = torch.randn(batch, TOKENS, config.context_width or 0, device=device)
    condition = Condition(tokens=tokens)

    def our_call(network: Any) -> Tensor:
        return network(x, t.float(), condition)

    def their_call(network: Any) -> Tensor:
        return network(x, t, encoder_hidden_states=tokens, return_dict=False)[0]

    described = unet_json(SizedUNet(config=config, in_channels=4, out_channels=4, sample_size=side))
    ours, theirs = config.build(4, 4), _theirs("UNet2DConditionModel", described)
    for network in (ours, theirs):
        if network is not None:
            _without_zeros(network)
            network.to(device)
    both = our_call, their_call
    return Pair(ours=ours, theirs=theirs, calls={"forward": both, TRAINING: both})


def autoencoders(scale: Scale, device: torch.device) -> Pair:
    """The KL autoencoder; its training step has neither LPIPS nor an adversary, which are the same on both sides."""
    batch, side, config = scale.image_batch, scale.image_side, scale.autoencoder
    shape = (batch, config.latent_channels, side // config.downsampling_factor, side // config.downsampling_factor)
    images, (latent, noise) = torch.rand(batch, 3, side, side, device=device) * 2 - 1, torch.randn(2, *shape, device=device)

    def our_step(network: Any) -> Tensor:
        return network.reconstruct(images, noise)[0]

    def their_step(network: Any) -> Tensor:
        posterior = network.encode(images).latent_dist
        return network.decode(posterior.mean + posterior.std * noise).sample

    described = autoencoder_json(SizedAutoencoder(config=config, scale=1.0, shift=0.0, size=side))
    ours, theirs = config.build().to(device), _theirs("AutoencoderKL", described)
    calls: dict[str, tuple[Call, Call]] = {
        "decoding": (lambda network: network.decode(latent), lambda network: network.decode(latent).sample),
        TRAINING: (our_step, their_step),
    }
    return Pair(ours=ours, theirs=None if theirs is None else theirs.to(device), calls=calls)


def _theirs(kind: str, described: dict[str, Any]) -> nn.Module | None:
    """diffusers' network of a description as its config files have it."""
    if importlib.util.find_spec("diffusers") is None:
        return None
    import diffusers

    return getattr(diffusers, kind)(**{key: value for key, value in described.items() if not key.startswith("_")})


def _without_zeros(network: nn.Module) -> None:
    """Layers that start at zero, as ours do, would let a kernel off."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)


if __name__ == "__main__":
    run(main)
