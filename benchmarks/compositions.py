"""Whether a model draws a thing in a style in which it never saw it: the held-out compositions of emoji-styles.

    python benchmarks/compositions.py --model checkpoints/emoji --name "shipped before"
    python benchmarks/compositions.py --pictures twin/pictures --name "diffusers twin"

For each composition one picture is drawn from its first caption ("a red heart, noto style"), and its style where the model takes that by
itself. Judged are, beside real held-out pictures:

- the style, by a linear judge on Inception's features of the training pictures, which must first be right of 95 % of real ones;
- the thing: the nearest of all real pictures of that style, whatever they show, is of the asked thing. The ceiling is what the first stage
  makes of the real picture; chance is one in the number of pictures;
- FID and MIND to the real held-out compositions, and the distance to the nearest training picture.

A row is kept as OUT/NAME.json with its pictures; the table is made of all rows that are there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from held_out import NEAR_FILE
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from ldm.app.cli import run
from ldm.conditioning.inputs import ConditionInputs
from ldm.core.errors import UserError
from ldm.core.files import write_file
from ldm.evaluation.dataset import DrawnFrom, Preprocessing, held_out_images, training_images
from ldm.metrics import bootstrap
from ldm.metrics.features import InceptionFeatures
from ldm.metrics.frechet import FrechetReference
from ldm.metrics.neighbours import nearest
from ldm.metrics.sliced import SlicedReference
from ldm.pipelines.canvas import to_pil
from ldm.pipelines.latent_diffusion import LatentDiffusion

SIZE = 64
CEILING = 0.95  # of the judge's accuracy on real pictures, below which it judges nothing
AT_ONCE = 16
SHOWN = (16, 8)  # columns and rows of the picture
COLUMNS = {
    "style": "style right",
    "thing": "thing right",
    "thing_top_5": "among 5 nearest",
    "fid": "FID",
    "mind": "MIND",
    "nearest": "nearest training",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A held-out composition. index: of its record in the held-out split."""

    index: int
    key: str
    caption: str
    style: str
    thing: str


def main() -> None:
    """Measures one row and writes the table of all."""
    parser = argparse.ArgumentParser(description="Things in styles in which they were never seen.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="checkpoint folder")
    what.add_argument("--pictures", type=Path, help="folder of pictures by another tool: KEY.png for every key that --list prints")
    what.add_argument("--list", action="store_true", help="print key, style and caption of every composition, for another tool")
    parser.add_argument("--name", default="", help="of the row (default: the model's folder)")
    parser.add_argument("--data", default="data/emoji-styles", help="the prepared set (default: %(default)s)")
    parser.add_argument("--num-images", type=int, default=400, help="compositions, evenly chosen (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, help="default: the model's")
    parser.add_argument("--out", type=Path, default=Path("outputs/compositions"), help="folder of rows (default: %(default)s)")
    options = parser.parse_args()

    how = Preprocessing(size=SIZE, channels=3, background=(255, 255, 255))
    train, held_out = training_images(options.data, how), held_out_images(options.data, how, shared=True)
    asked = chosen(held_out, options.num_images)
    if options.list:
        print("\n".join(f"{one.key}\t{one.style}\t{one.caption}" for one in asked))
        return
    judged = Judge.fitted(train, held_out)
    images, ceiling = (drawn(options, asked, held_out)) if options.model else (read(options.pictures, asked), None)
    name = options.name or Path(options.model or options.pictures).name
    row = judged.row(images, asked) | {"name": name, "steps": options.steps, "guidance": options.guidance}
    real = torch.stack([held_out.data.sample(one.index, 0).image for one in asked])
    rows = {"real, held out": judged.row(real, asked, is_real=True)}
    if ceiling is not None:
        rows[f"real, through the first stage of {name}"] = judged.row(ceiling, asked)
    for title, found in {**rows, name: row}.items():
        write_file(options.out / f"{title}.json", json.dumps({"name": title, **found}, indent=1) + "\n")
    picture(images, options.out / f"{name}.png")
    print(table([json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))], judged.accuracy, judged.chance(asked)))


def chosen(held_out: DrawnFrom, count: int) -> list[Asked]:
    """So many of the compositions, evenly from the first to the last, without those that are no test."""
    near = json.loads(NEAR_FILE.read_text())["near"]
    source = held_out.data.source
    found = []
    for index, (row, (_, captions)) in enumerate(zip(source.attributes(), source.captions(), strict=True)):
        key = source.key(index)
        if row["held_out"] == "composition" and key not in near:
            found.append(Asked(index=index, key=key, caption=captions[0], style=str(row["style"]), thing=str(row["thing"])))
    places = torch.linspace(0, len(found) - 1, min(count, len(found))).round().long().tolist()
    return [found[place] for place in places]


def drawn(options: argparse.Namespace, asked: list[Asked], held_out: DrawnFrom) -> tuple[Tensor, Tensor]:
    """The model's pictures, and what its first stage makes of the real ones."""
    model = LatentDiffusion.from_pretrained(options.model, precision="bf16")
    if model.spec.size != SIZE:
        raise UserError(f"{options.model} draws {model.spec.size} pixels; this benchmark compares {SIZE}")
    how = model.sampling(steps=options.steps, guidance=options.guidance)
    styled = [name for name, part in model.conditioners.items() if "style" in part.controls]
    uncond = model.encode_condition(model.uncond())
    images, ceiling = [], []
    for first in tqdm(range(0, len(asked), AT_ONCE), desc="drawing", unit="batch"):
        some = asked[first : first + AT_ONCE]
        conds = []
        for one in some:
            values = model.text_inputs(one.caption).values | model.inputs({f"{name}.style": one.style for name in styled}).values
            conds.append(model.encode_condition(ConditionInputs(count=1, values=values)))
        images.append(model.render(conds, [uncond] * len(some), how, numbers=range(first, first + len(some))))
        real = torch.stack([held_out.data.sample(one.index, 0).image for one in some])
        with torch.no_grad():
            ceiling.append(model.first_stage.decode(model.first_stage.encode(real)).float())
    return torch.cat(images).clamp(-1, 1), torch.cat(ceiling).clamp(-1, 1)


def read(folder: Path, asked: list[Asked]) -> Tensor:
    """Another tool's pictures, (B, 3, SIZE, SIZE) in [-1, 1]."""
    paths = [folder / f"{one.key}.png" for one in asked]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} pictures, {missing[0]} first; --list prints all keys")
    found = [pil_to_tensor(Image.open(path, formats=["PNG"]).convert("RGB")).float() / 127.5 - 1 for path in paths]
    return torch.stack(found)


class Judge:
    """Real pictures' features, and a linear judge of styles on them."""

    def __init__(self, inception: InceptionFeatures, train: DrawnFrom, held_out: DrawnFrom) -> None:
        self.inception = inception
        self.training = train.features(inception, "training pictures")
        self.held_out = held_out.features(inception, "held-out pictures")
        self.rows = [list(part.data.source.attributes()) for part in (train, held_out)]
        self.styles = sorted({str(row["style"]) for row in self.rows[0]})
        self.mean, self.std = self.training.mean(0), self.training.std(0) + 1e-6
        self.layer = nn.Linear(self.training.shape[1], len(self.styles))
        self.accuracy = 0.0

    @staticmethod
    def fitted(train: DrawnFrom, held_out: DrawnFrom) -> Judge:
        """Trained on the training pictures.

        Raises:
            UserError: it is right of too few real held-out pictures to judge anything.
        """
        judge = Judge(InceptionFeatures(torch.device("cpu")), train, held_out)
        labels, held_labels = (torch.tensor([judge.styles.index(str(row["style"])) for row in rows]) for rows in judge.rows)
        optimizer = torch.optim.LBFGS(judge.layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")
        x = judge._scaled(judge.training)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(judge.layer(x), labels) + 1e-3 * judge.layer.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        judge.accuracy = (judge.style_of(judge.held_out) == held_labels).float().mean().item()
        if judge.accuracy < CEILING:
            raise UserError(f"the judge of styles is right of {judge.accuracy:.1%} of real held-out pictures only: it judges nothing")
        return judge

    def _scaled(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    @torch.no_grad()
    def style_of(self, features: Tensor) -> Tensor:
        """(N,) of the styles' numbers."""
        return self.layer(self._scaled(features)).argmax(1)

    def candidates(self, style: str) -> tuple[Tensor, list[str]]:
        """Features of all real pictures of a style, and the things they show."""
        features, things = [], []
        for part, rows in zip((self.training, self.held_out), self.rows, strict=True):
            places = [place for place, row in enumerate(rows) if row["style"] == style]
            features.append(part[places])
            things += [str(rows[place]["thing"]) for place in places]
        return torch.cat(features), things

    def chance(self, asked: list[Asked]) -> float:
        """Of the right thing."""
        shares = []
        for one in asked:
            things = self.candidates(one.style)[1]
            shares.append(things.count(one.thing) / len(things))
        return sum(shares) / len(shares)

    def row(self, images: Tensor, asked: list[Asked], is_real: bool = False) -> dict[str, Any]:
        """Everything that is measured; each number with its interval."""
        features = self.inception.of(images.split(AT_ONCE), len(images), "pictures")
        style = self.style_of(features) == torch.tensor([self.styles.index(one.style) for one in asked])
        found: dict[str, Any] = {"pictures": len(images), "style": _share(style)}
        if not is_real:  # its nearest picture is itself
            hits = torch.tensor([self._place_of(one, feature) for one, feature in zip(asked, features, strict=True)])
            found |= {"thing": _share(hits < 1), "thing_top_5": _share(hits < 5)}
            own = self.held_out[[one.index for one in asked]]
            for name, reference in (("fid", FrechetReference(own)), ("mind", SlicedReference(own))):
                value = reference.distance(features)
                replicates = partial(reference.replicates, progress=True)(features, bootstrap.draws(len(features)))
                found[name] = [value, *bootstrap.around(value, replicates)]
        distances = nearest(features, self.training)
        found["nearest"] = [distances.median().item(), *(bootstrap.of_statistic(distances, lambda rows: rows.quantile(0.5, 1)) or ())]
        return found

    def _place_of(self, one: Asked, feature: Tensor) -> int:
        """How many real pictures of the style are nearer than the first of the asked thing."""
        features, things = self.candidates(one.style)
        order = torch.cdist(feature[None].double(), features.double())[0].argsort().tolist()
        return next(place for place, row in enumerate(order) if things[row] == one.thing)


def _share(hits: Tensor) -> list[float]:
    share = hits.double().mean().item()
    return [share, *(bootstrap.of_share(share, len(hits)) or ())]


def picture(images: Tensor, path: Path) -> None:
    """The first pictures, in the order of the things."""
    columns, rows = SHOWN
    count = min(len(images), columns * rows)
    places = torch.linspace(0, len(images) - 1, count).round().long()
    grid = Image.new("RGB", (columns * (SIZE + 4) - 4, -(-count // columns) * (SIZE + 4) - 4), "white")
    for number, image in enumerate(to_pil(images[places])):
        grid.paste(image, (number % columns * (SIZE + 4), number // columns * (SIZE + 4)))
    grid.save(path)


def table(rows: list[dict[str, Any]], accuracy: float, chance: float) -> str:
    """In Markdown, with intervals."""
    lines = [f"Judge of styles: right of {accuracy:.1%} of real held-out pictures. Right thing by chance: {chance:.2%}.", ""]
    lines += ["| | pictures | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row in rows:
        cells = [_cell(row[name], name) if name in row else "" for name in COLUMNS]
        lines.append(f"| {row['name']} | {row['pictures']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float], name: str) -> str:
    form = "{:.1%}" if name.startswith(("style", "thing")) else "{:.1f}"
    shown = [form.format(value) for value in values]
    return shown[0] + (f" ({shown[1]}–{shown[2]})" if len(shown) == 3 else "")


if __name__ == "__main__":
    run(lambda _: main())
