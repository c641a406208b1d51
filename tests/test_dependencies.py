"""What of our dependencies we lean on: public and documented parts, and listed exceptions; ranges that were tested.

A use is private if a part of its dotted name begins with an underscore and is not ours, or if it is of `torch.ops`. A module deeper than
its package is taken as public if the dependency's manual imports from it (`DOCUMENTED`). All else stands in a table, with the reason why
nothing public does, and with the test that shows that it still works: that test runs at both ends of the range.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from rooms import DEPENDENCY_ROOMS, OTHER_ROOMS

import ldm

pytestmark = pytest.mark.dependency

ROOT = Path(__file__).parents[1]
ROOMS = ("ldm", "scripts", "benchmarks", "tests")
OURS = {*ROOMS, *(file.stem for room in ROOMS[1:] for file in (ROOT / room).rglob("*.py"))}


@dataclass(frozen=True)
class Listed:
    """Why there is no way around it, and the test (file::name) that fails where it is gone."""

    reason: str
    test: str


IN_THE_PACKAGE = {
    "torch.utils._python_dispatch": Listed(
        "TorchDispatchMode: torch's manual has it there, and nothing public sees what a backward pass allocates",
        "tests/app/test_describe.py::test_what_is_kept_for_the_backward_pass_counts_and_what_is_not_does_not",
    ),
    "*._fields": Listed(
        "Python documents it under this name, which no field of a named tuple can have",
        "tests/conditioning/test_conditioning.py::test_drops_are_each_conditioners_own_and_keyed_by_sample",
    ),
}
IN_TESTS = {
    "os._exit": Listed("Python documents it for the child after a fork", "tests/app/test_kill.py::test_killed_at_every_change_on_disk"),
    "diffusers.loaders.single_file_utils": Listed(
        "the peer's own conversion of CompVis files, which its pipelines give out only as a whole",
        "tests/interop/test_peers.py::test_every_tensor_of_the_unet_is_found",
    ),
    "diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion": Listed(
        "the peer's text encoder of the 1.45B model, which diffusers exports nowhere else",
        "tests/interop/test_interop_networks.py::test_the_text_encoder_is_diffusers",
    ),
    "tensorboard.backend.event_processing.event_accumulator": Listed(
        "TensorBoard's reader, the only proof that it can read what we write",
        "tests/app/test_kill.py::test_what_a_whole_run_says_and_leaves",
    ),
    **{
        f"torch_fidelity.{part}": Listed("the peer's arithmetic, which its one public call hides behind Inception", f"tests/metrics/{test}")
        for part, test in {
            "metric_fid": "test_distances.py::test_frechet_is_the_peers_for_more_and_for_fewer_images_than_features",
            "metric_kid": "test_distances.py::test_kernel_distance_is_the_peers_with_one_full_size_subset",
            "metric_prc": "test_distances.py::test_precision_and_recall_are_the_peers",
            "metric_isc": "test_image_metrics.py::test_inception_score_is_the_peers",
        }.items()
    },
}
DOCUMENTED = {
    "PIL.PngImagePlugin",
    "fastapi.exceptions",
    "fastapi.responses",
    "huggingface_hub.errors",
    "matplotlib.axes",
    "matplotlib.font_manager",
    "matplotlib.ticker",
    "numpy.typing",
    "omegaconf.errors",
    "packaging.requirements",
    "playwright.sync_api",
    "safetensors.torch",
    "starlette.exceptions",
    "starlette.requests",
    "starlette.responses",
    "starlette.staticfiles",
    "starlette.types",
    "torch.autograd",
    "torch.autograd.graph",
    "torch.backends",
    "torch.distributed",
    "torch.distributed.device_mesh",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.distributed.checkpoint.api",
    "torch.distributed.checkpoint.default_planner",
    "torch.distributed.checkpoint.hf_storage",
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.planner",
    "torch.distributed.checkpoint.state_dict_loader",
    "torch.distributed.checkpoint.state_dict_saver",
    "torch.distributions",
    "torch.func",
    "torch.nn",
    "torch.nn.attention",
    "torch.nn.functional",
    "torch.nn.parallel",
    "torch.nn.utils",
    "torch.nn.utils.rnn",
    "torch.overrides",
    "torch.profiler",
    "torch.special",
    "torch.testing",
    "torch.utils.checkpoint",
    "torch.utils.data",
    "torch.utils.flop_counter",
    "torch.utils.tensorboard",
    "torchmetrics.functional.image",
    "torchmetrics.image.fid",
    "torchvision.transforms.v2",
    "torchvision.models",
    "torchvision.transforms.v2.functional",
    "torchvision.utils",
    "xformers.ops",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MINOR_RELEASES_BREAK = {"torch", "torchvision", "transformers", "diffusers", "peft"}
BY_NAME = {"getattr", "hasattr", "setattr", "delattr", "import_module", "importorskip"}  # calls that take a part's name as text


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def dotted(node: ast.expr) -> str | None:
    """`a.b.c` as text; what is not a plain chain begins with `*`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value) or '*'}.{node.attr}"
    return None


@cache
def trees() -> dict[Path, ast.Module]:
    return {file: ast.parse(file.read_text()) for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))}


@cache
def own_names() -> frozenset[str]:
    """Private names that our code defines, but for those that a base class of a dependency has already."""
    found = set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return frozenset(name for name in found if is_private(name)) - inherited()


@cache
def inherited() -> frozenset[str]:
    """Private names of the classes of dependencies from which ours are derived."""
    bases = set()
    for found in pkgutil.walk_packages(ldm.__path__, "ldm."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for _, part in inspect.getmembers(module, inspect.isclass):
            if part.__module__.startswith("ldm"):
                bases |= {base for base in part.__mro__ if base.__module__.split(".")[0] not in ("ldm", "builtins")}
    return frozenset(name for base in bases for name in (*vars(base), *vars(base).get("__annotations__", {})) if is_private(name))


def short(name: str) -> str | None:
    """A dotted name up to its first private part; None if it has none."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if is_private(part) or parts[: i + 1] == ["torch", "ops"]:
            return ".".join(parts[: i + 1])
    return None


def uses(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Private and undocumented parts of dependencies, by name, and the lines that use them."""
    known: dict[str, str] = {}  # a file's own names of what it imports
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else alias.name.split(".")[0]
                yield from ((name, node.lineno) for name in of_import(alias.name))
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield from ((name, node.lineno) for name in of_import(node.module, alias.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, *rest = (dotted(node) or "*").split(".")
            if first in known:
                if known[first].split(".")[0] not in OURS and (found := short(".".join([known[first], *rest]))):
                    yield found, node.lineno
            elif is_private(node.attr) and node.attr not in own_names():
                yield f"*.{node.attr}", node.lineno
        elif isinstance(node, ast.Call) and (dotted(node.func) or "").split(".")[-1] in BY_NAME:
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    found = short(argument.value)
                    if found and found.split(".")[-1] not in own_names() and re.fullmatch(r"[\w.]+", found):
                        yield found if "." in found else f"*.{found}", node.lineno


def of_import(module: str, name: str = "") -> Iterator[str]:
    top = module.split(".")[0]
    if top in OURS or top == "__future__":
        return
    found = short(f"{module}.{name}")
    if found:
        yield found
    elif "." in module and module not in DOCUMENTED and top not in sys.stdlib_module_names:
        yield module


def test_ranges_end_where_they_were_tested():
    """At the oldest that `make test-oldest` takes, and before the next major version; or the next minor one, where those break things."""
    for requirement in (*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())):
        name, bounds = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()
        cap = r"\d+\.\d+" if name in MINOR_RELEASES_BREAK else r"\d+"
        assert re.fullmatch(rf">=[\d.]+(,!=[\d.]+)*,<{cap}", bounds), requirement


@cache
def found() -> dict[str, list[str]]:
    """Where each private or undocumented part is used: `path:line` by name."""
    places: dict[str, list[str]] = {}
    for file, tree in trees().items():
        for name, line in uses(tree):
            places.setdefault(name, []).append(f"{file.relative_to(ROOT)}:{line}")
    return places


def test_what_is_private_is_listed():
    unlisted = {
        name: [place for place in places if name not in IN_THE_PACKAGE and not (name in IN_TESTS and place.startswith("tests/"))]
        for name, places in found().items()
    }
    lines = [f"{place}: {name}" for name, places in unlisted.items() for place in places]
    assert not lines, "private or undocumented parts of dependencies:\n" + "\n".join(lines)


def test_the_lists_have_nothing_that_nobody_uses():
    modules = {node.module for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert IN_THE_PACKAGE.keys() | IN_TESTS.keys() <= found().keys()
    assert modules >= DOCUMENTED


def test_what_is_listed_is_held_by_a_test_that_runs_at_both_ends_of_the_range():
    for listed in (*IN_THE_PACKAGE.values(), *IN_TESTS.values()):
        file, _, name = listed.test.partition("::")
        tests = {node.name for node in trees()[ROOT / file].body if isinstance(node, ast.FunctionDef)}
        assert name in tests, f"no test {listed.test}"


@pytest.mark.parametrize(
    "source, names",
    [
        ("import torch\ntorch.optim.AdamW", []),
        ("import torch\ntorch._foreach_lerp_(a, b, c)", ["torch._foreach_lerp_"]),
        ("import torch\ntorch._functorch.config.donated_buffer = False", ["torch._functorch"]),
        ("import torch as t\nt.ops.aten.mm(a, b)", ["torch.ops"]),
        ("from torch import _dynamo\n_dynamo.reset()", ["torch._dynamo"]),
        ("from torch.nn import functional as F\nF.silu(x)", []),
        ("from torch.nn import functional as F\nF._no_such(x)", ["torch.nn.functional._no_such"]),
        ("from torch.nn.utils.fusion import fuse_conv_bn_eval", ["torch.nn.utils.fusion"]),
        ("import lpips.pretrained_networks", ["lpips.pretrained_networks"]),
        ("from ldm.training.engine import _Engine", []),
        ("from collections import abc\nimport xml.etree.ElementTree", []),
        ("module._modules", ["*._modules"]),
        ("f(x)._parameters", ["*._parameters"]),
        ("engine._call(x)", []),
        ("getattr(torch, '_C')", ["*._C"]),
        ("monkeypatch.setattr('torch._dynamo.reset', f)", ["torch._dynamo"]),
        ("class A(nn.Module):\n    def _apply(self, f): ...\n\nA()._apply(f)", ["*._apply"]),
    ],
)
def test_the_check_itself(source, names):
    assert sorted({name for name, _ in uses(ast.parse(source))}) == names


def test_every_room_of_tests_is_marked_or_left_out_on_purpose():
    """Those of DEPENDENCY_ROOMS get the marker in conftest.py."""
    rooms = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert rooms == {*DEPENDENCY_ROOMS, *OTHER_ROOMS}
