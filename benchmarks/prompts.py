"""The 20 fixed prompts that the shipped model is judged by, as one labelled picture.

    python benchmarks/prompts.py --out docs/samples.png

Ten are captions that the model was trained with, ten are wordings that it has never seen; all eight groups of the built-in set are there.
Not cherry-picked: seed 0, pictures 0 to 3 of each prompt.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ldm import LatentDiffusion

SEEN = (
    "a red heart",
    "grinning face",
    "dog face",
    "pizza",
    "pineapple",
    "a house",
    "soccer ball",
    "waving hand",
    "light bulb",
    "cross mark button",
)
NEW = (
    "a smiling yellow face",
    "a puppy",
    "a bunch of yellow bananas",
    "a big green tree",
    "a small blue car",
    "a sad crying face",
    "an orange basketball",
    "a bright crescent moon",
    "a woman with red hair",
    "a blue sign with a white arrow",
)
COLUMNS, MARGIN, LABEL, LETTERS = 5, 12, 36, 20


def main() -> None:
    """Draws all prompts."""
    parser = argparse.ArgumentParser(description="The 20 fixed prompts as one labelled picture.")
    parser.add_argument("--model", default="checkpoints/emoji", help="checkpoint folder (default: checkpoints/emoji)")
    parser.add_argument("--out", type=Path, default=Path("outputs/prompts.png"), help="picture to write (default: outputs/prompts.png)")
    options = parser.parse_args()
    model = LatentDiffusion.from_pretrained(options.model)
    side = 2 * model.spec.size
    prompts = SEEN + NEW
    rows = -(-len(prompts) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (side + MARGIN) + MARGIN, rows * (side + LABEL + MARGIN) + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(findfont("DejaVu Sans"), 11)
    for number, prompt in enumerate(tqdm(prompts, unit="prompt")):
        row, column = divmod(number, COLUMNS)
        left, top = MARGIN + column * (side + MARGIN), MARGIN + row * (side + LABEL + MARGIN)
        for place, picture in enumerate(model.text_to_image(prompt, num_images=4, seed=0)):
            sheet.paste(picture.convert("RGB"), (left + place % 2 * model.spec.size, top + place // 2 * model.spec.size))
        label = "\n".join(textwrap.wrap(prompt, LETTERS))
        draw.text((left + side / 2, top + side + 4), label, fill="black", font=font, anchor="ma", align="center")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out)
    print(f"{len(prompts)} prompts in {options.out}")


if __name__ == "__main__":
    main()
