"""A prepared set of a model's own pictures, each with what it was conditioned on."""

from __future__ import annotations

import argparse
import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm.app.sampling_run import check_folder, npy_file, open_model, sampling_of
from ldm.conditioning.control import Choice
from ldm.config.loader import to_short_form
from ldm.core.condition import Condition
from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.core.files import recover_folder
from ldm.core.settings import height_width
from ldm.core.version import __version__
from ldm.data.batch import Sample
from ldm.data.facts import ATTRIBUTES, BOXES, CAPTIONS, LABELS, MAPS
from ldm.data.parts import Pages
from ldm.data.prepare import CHUNK, Preparation, prepare_part, prepare_sources
from ldm.data.record import Record
from ldm.data.sources.source import Source
from ldm.data.text import decode_text, lines_of
from ldm.evaluation.conditions import EvaluationConditions
from ldm.evaluation.dataset import Preprocessing, training_images
from ldm.first_stage.latent_normalization import weights_digest
from ldm.pipelines.canvas import to_pil
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.numbers import as_numbers, has_numbers
from ldm.pipelines.sampling import Sampling

BLOCK = CHUNK[0]  # pictures drawn at once; whoever prepares a part of the set draws whole blocks


def draw_set(options: argparse.Namespace) -> None:
    """Draws `options.count` pictures into `options.out_set`, by all processes of a `torchrun`; after a kill the same command goes on.

    Raises:
        UserError: what the model cannot draw; data whose classes it does not know; a folder of something else.
    """
    check_folder(options.out_set)
    world = World.join(options.device)
    try:
        model = open_model(options, world.device)
        source = DrawnSource(model, sampling_of(model, options), options.count, _asked(model, options))
        world.on_first(lambda: recover_folder(options.out_set))
        sources: dict[str, Source] = {"train": source}
        if world.size > 1:
            which = (world.rank + 1, world.size)
            prepare_part(sources, options.out_set, Preparation(), which, _progress if world.is_first else _silence)
            world.wait()
        world.on_first(lambda: _finish(sources, options.out_set))
    finally:
        world.leave()


def _finish(sources: dict[str, Source], out: Path) -> None:
    report = prepare_sources(sources, out, Preparation(), _progress)
    print(f"done: {report.counts['train']} pictures in {out}; train on them with data.train={out}")


def _progress(records: Iterable[Pages], count: int, name: str) -> Iterable[Pages]:
    return tqdm(records, total=count, desc="drawing", unit=" pictures", mininterval=0.5)


def _silence(records: Iterable[Pages], count: int, name: str) -> Iterable[Pages]:
    return records


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What pictures are conditioned on, by number.

    Attributes:
        condition: of a picture, encoded.
        size: (height, width) of a picture.
        known: what its `Record` says of it.
        has: of `ldm.data.facts`, what records say.
        digest: changes when anything else is asked.
        label_names, map_names: of the set.
    """

    condition: Callable[[int], Condition]
    size: Callable[[int], tuple[int, int]]
    known: Callable[[int], dict[str, Any]]
    has: frozenset[str]
    digest: str
    label_names: tuple[str, ...] = ()
    map_names: tuple[str, ...] = ()


def _asked(model: LatentDiffusion, options: argparse.Namespace) -> Asked:
    if options.like is not None:
        return _alike(model, options.like)
    if options.prompts is not None:
        return _prompted(model, options.prompts)
    condition, size = model.encode_condition(model.inputs({}, label=options.label)), height_width(model.spec.size)
    if options.label is None:
        return Asked(condition=lambda _: condition, size=lambda _: size, known=lambda _: {}, has=frozenset(), digest="")
    part = next(iter(model.require("choice").values()))
    control, label = part.controls[""], int(part.of_user(options.label))
    assert isinstance(control, Choice)
    names = control.names
    known = {"label": names[label] if names else label}
    return Asked(
        condition=lambda _: condition,
        size=lambda _: size,
        known=lambda _: known,
        has=frozenset((LABELS,)),
        digest=str(label),
        label_names=names,
    )


def _prompted(model: LatentDiffusion, file: Path) -> Asked:
    """Of the texts of a file, a line each, in turn.

    Raises:
        UserError: no such file, an empty one, a model without text conditioning.
    """
    try:
        texts = lines_of(decode_text(file.read_bytes(), str(file)))
    except OSError as error:
        raise UserError(f"--prompts {file}: cannot be read ({error.strerror})") from None
    if not texts:
        raise UserError(f"--prompts {file}: holds no text; it must have one prompt a line")

    def condition(number: int) -> Condition:
        return model.encode_condition(model.text_inputs(texts[number % len(texts)]))

    condition(0)  # refused before any work
    return Asked(
        condition=condition,
        size=lambda _: height_width(model.spec.size),
        known=lambda number: {"captions": (texts[number % len(texts)],)},
        has=frozenset((CAPTIONS,)),
        digest="\n".join(texts),
    )


def _alike(model: LatentDiffusion, place: str) -> Asked:
    """Of what the pictures of a data set have, in turn: whatever of it the model reads.

    Raises:
        UserError: no such data, nothing that the model reads, labels or classes that it does not know.
    """
    spec = model.spec
    conditions = EvaluationConditions(model=model, source=training_images(place, Preprocessing.of(spec)))
    conditions.check()
    if not conditions.given:
        raise UserError(f"--like {place}: its pictures have nothing that this model is conditioned on")
    data, given = conditions.source.data, conditions.given
    facts = data.facts
    read = {name for part in model.conditioners if part.reads == ATTRIBUTES for name in part.controls}

    def known(number: int) -> dict[str, Any]:
        sample = data.sample(number % conditions.source.count, 0)
        found: dict[str, Any] = {}
        if CAPTIONS in given:
            found["captions"] = sample.captions[:1]
        if LABELS in given and sample.label >= 0:
            found["label"] = facts.label_names[sample.label] if facts.label_names else sample.label
        if MAPS in given and sample.map is not None:
            found["map"] = _map(sample, spec.map_void)
        if BOXES in given and sample.boxes is not None:
            found["boxes"] = tuple((int(kind), *sides) for kind, *sides in sample.boxes.tolist())
        if ATTRIBUTES in given:
            found["attributes"] = {name: value for name, value in sample.attributes.items() if name in read}
        return found

    return Asked(
        condition=conditions.condition,
        size=conditions.size_of,
        known=known,
        has=frozenset(given),
        digest=f"{data.digest} {data.transform_digest}",
        label_names=facts.label_names if LABELS in given else (),
        map_names=facts.map_names if MAPS in given else (),
    )


def _map(sample: Sample, void: int | None) -> bytes:
    """A map as a grey PNG.

    Raises:
        UserError: it has pixels without a class, and there is no number for them.
    """
    assert sample.map is not None
    if void is None and bool((sample.map < 0).any()):
        raise UserError(f"{sample.name}: its map has pixels without a class, for which this model has no number (data.map_void)")
    classes = sample.map if void is None else sample.map.where(sample.map >= 0, void)
    return _file(Image.fromarray(classes.numpy().astype(np.uint8)))


class DrawnSource(Source):
    """Pictures that are drawn when they are read, a block at a time.

    Args:
        model: that draws.
        how: picture i depends on (how.seed, i) only.
        count: of the set.
        asked: see `Asked`.
    """

    def __init__(self, model: LatentDiffusion, how: Sampling, count: int, asked: Asked) -> None:
        self.name, self.split, self.unreadable = f"drawn by {model.spec.name}", "train", {}
        self.model, self.count, self.asked = model, count, asked
        self.how = how if asked.has else replace(how, guidance=1.0)  # nothing to lead away from
        settings = (to_short_form(how.sampler), to_short_form(how.grid), how.steps, how.guidance, how.guidance_interval, how.seed)
        weights = {name: tensor.cpu() for name, tensor in model.network.state_dict().items()}
        what = (settings, how.guidance_rescale, how.threshold, model.precision, model.spec, weights_digest(weights), asked.digest)
        self.digest = hashlib.sha256(repr(what).encode(errors="surrogatepass")).hexdigest()
        self.label_names, self.map_names = asked.label_names, asked.map_names
        self.credits = (f"Drawn by the model {model.spec.name} with ldm {__version__}, seed {how.seed}.",)
        has = asked.has
        self.has_captions, self.has_labels, self.has_maps = CAPTIONS in has, LABELS in has, MAPS in has
        self.has_boxes, self.has_attributes = BOXES in has, ATTRIBUTES in has
        self._block = lru_cache(maxsize=1)(self._drawn)

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"{index:08d}"

    @property
    def listing(self) -> str:
        return self.digest

    def record(self, index: int) -> Record:
        image = self._block(index // BLOCK)[index % BLOCK]
        known = self.asked.known(index)
        if not has_numbers(self.model.spec):
            return Record(key=self.key(index), suffix="png", image=_file(to_pil(image[None])[0]), **known)
        (numbers,) = as_numbers(image[None], self.model.spec)
        if numbers.dtype == np.uint16 and numbers.shape[2] == 1:
            return Record(key=self.key(index), suffix="png", image=_file(Image.fromarray(numbers[:, :, 0])), **known)
        return Record(key=self.key(index), suffix="npy", image=npy_file(numbers), **known)

    def _drawn(self, block: int) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        by_size: dict[tuple[int, int], list[int]] = {}
        for number in range(block * BLOCK, min((block + 1) * BLOCK, self.count)):
            by_size.setdefault(self.asked.size(number), []).append(number)
        for size, numbers in by_size.items():
            model = self.model.at_size(*size)
            cond = [self.asked.condition(number) for number in numbers]
            uncond = cond if self.how.guidance == 1 else [self._uncond(size)] * len(cond)
            images = model.render(cond, uncond, self.how, numbers=numbers)
            if not images.isfinite().all():
                raise UserError(f"the pictures came out as NaN or infinity in {self.model.precision}: use bf16 or fp32")
            found |= dict(zip(numbers, images.clamp(-1, 1), strict=True))
        return [found[number] for number in sorted(found)]

    @cached_property
    def _uncond(self) -> Callable[[tuple[int, int]], Condition]:
        return cache(lambda size: self.model.at_size(*size).encode_condition(self.model.uncond()))


def _file(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
