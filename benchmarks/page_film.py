"""The film in the README: a map is painted on the page, pictures of it are drawn. Needs chromium and the extra `app`.

python benchmarks/page_film.py docs/page.gif
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

SCREEN = {"width": 1100, "height": 1010}
WIDTH = 760  # of the film, in pixels
SIDE = 64  # of the map
STROKES = [  # class, width of the brush, from, to; in pixels of the map
    ("brown", 8, (31, 61), (31, 40)),
    ("green", 16, (18, 30), (45, 30)),
    ("green", 16, (24, 19), (39, 19)),
    ("green", 12, (31, 11), (31, 12)),
    ("red", 4, (25, 22), (25, 23)),
    ("red", 4, (38, 28), (38, 29)),
    ("red", 4, (30, 33), (30, 34)),
]


class Film:
    """Pictures of a page, and how long each is shown, in milliseconds."""

    def __init__(self, page: Page) -> None:
        self.page, self.shots, self.times = page, [], []

    def shot(self, milliseconds: int) -> None:
        image = Image.open(io.BytesIO(self.page.screenshot()), formats=["PNG"]).convert("RGB")
        self.shots.append(image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS))
        self.times.append(milliseconds)

    def write(self, path: Path) -> None:
        first, *others = (shot.quantize(256, kmeans=3, dither=Image.Dither.NONE) for shot in self.shots)
        first.save(path, save_all=True, append_images=others, duration=self.times, loop=0, optimize=True)


def paint(page: Page, film: Film) -> None:
    """The strokes, a shot each."""
    painter = page.locator(".painter:visible")
    for name, width, start, end in STROKES:
        painter.get_by_role("radio", name=name, exact=True).check()
        painter.get_by_role("slider", name="Width of the brush").fill(str(width))
        box = page.locator(".canvas-frame canvas:visible").bounding_box()
        assert box is not None
        scale, left, top = box["width"] / SIDE, box["x"], box["y"]
        (x0, y0), (x1, y1) = ((left + (x + 0.5) * scale, top + (y + 0.5) * scale) for x, y in (start, end))
        page.mouse.move(x0, y0)
        page.mouse.down()
        page.mouse.move((x0 + x1) / 2, (y0 + y1) / 2)
        page.mouse.move(x1, y1)
        page.mouse.up()
        film.shot(350)


def main(path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium is not None, "no chromium here: apt-get install chromium"
    server = subprocess.Popen([sys.executable, "scripts/app.py", "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
        with sync_playwright() as play:
            page = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page(viewport=SCREEN)
            page.set_default_timeout(120_000)
            page.goto(address)
            page.wait_for_selector("body[data-ready]")
            film = Film(page)
            page.locator("[data-control=text]").fill("a green tree")
            film.shot(900)
            page.locator("[data-control=map]").check()
            film.shot(500)
            paint(page, film)
            page.locator(".go button").click()
            page.locator("article.render").first.wait_for()
            page.locator("article.render").first.scroll_into_view_if_needed()
            while page.locator("article.render").first.get_attribute("data-state") not in ("done", "failed"):
                film.shot(250)
                page.wait_for_timeout(400)
            page.wait_for_timeout(500)
            film.shot(3000)
            film.write(path)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
