"""The page in a real browser: chromium of the system, driven by playwright."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from page_client import Client
from PIL import Image

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(240),
    pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium"),
]
WAIT = 60_000  # milliseconds; machines are slow


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, shared) -> Iterator[Callable]:
    """`visit()`: the page in a browser of its own, with a model of text, class, mask and map. Errors in its console fail the test."""
    _, client = shared
    contexts, errors = [], []

    def opened(who: Client = client, **options):
        context = chromium.new_context(**({"viewport": {"width": 1200, "height": 900}, "accept_downloads": True} | options))
        contexts.append(context)
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" and "status of 4" not in line.text else None)
        page.goto(f"http://127.0.0.1:{who.port}/?token={who.token}")
        page.wait_for_selector("body[data-ready]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not errors


def draw(page) -> str:
    """Presses Draw; the render's id once it is done."""
    before = page.locator("article.render").count()
    page.locator(".go button").click()
    page.locator("article.render").nth(before).wait_for()
    page.wait_for_selector("article.render:first-child:is([data-state=done], [data-state=failed])")
    card = page.locator("article.render").first
    assert card.get_attribute("data-state") == "done", card.inner_text()
    return card.get_attribute("data-id")


def few(page) -> None:
    """Two pictures, two steps."""
    page.get_by_role("spinbutton", name="Images").fill("2")
    page.locator("details.more > summary").click()
    page.get_by_role("spinbutton", name="Steps").fill("2")


def at(page, x: float, y: float, side: int = 16) -> tuple[float, float]:
    """The middle of a pixel of the painted buffer, on the screen."""
    box = page.locator(".canvas-frame canvas:visible").bounding_box()
    return box["x"] + (x + 0.5) * box["width"] / side, box["y"] + (y + 0.5) * box["height"] / side


def stroke(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*((a + b) / 2 for a, b in zip(start, end, strict=True)))
    page.mouse.move(*end)
    page.mouse.up()


def test_a_prompt_gives_a_picture_that_can_be_downloaded(visit, shared):
    out, _ = shared
    page = visit()
    few(page)
    page.locator("[data-control=text]").fill("a red heart")
    id_ = draw(page)
    assert page.locator(".picture img").count() == 2
    page.locator(".picture button").nth(1).click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert Path(download.value.path()).read_bytes() == (out / id_ / "001.png").read_bytes()
    assert "a red heart" in page.locator("dialog .facts").inner_text()


def test_a_map_painted_with_two_classes_arrives_as_exactly_these_indices(visit, shared):
    out, _ = shared
    page = visit()
    few(page)
    page.locator("[data-control=map]").check()
    painter = page.locator(".painter:visible")
    painter.get_by_role("slider", name="Width of the brush").fill("1")
    painter.get_by_role("button", name="Line").click()
    painter.get_by_role("radio", name="class 1", exact=True).check()
    stroke(page, at(page, 0, 8), at(page, 15, 8))
    painter.get_by_role("button", name="Fill").click()
    painter.get_by_role("radio", name="class 2", exact=True).check()
    page.mouse.click(*at(page, 3, 12))
    wanted = np.zeros((16, 16), int)
    wanted[8], wanted[9:] = 1, 2
    np.testing.assert_array_equal(np.asarray(Image.open(out / draw(page) / "map.png")), wanted)

    painter.get_by_role("button", name="Undo").click()
    np.testing.assert_array_equal(np.asarray(Image.open(out / draw(page) / "map.png")), np.where(wanted == 2, 0, wanted))
    page.keyboard.press("Escape")
    page.locator(".painter canvas").focus()
    page.keyboard.press("Control+Shift+z")
    np.testing.assert_array_equal(np.asarray(Image.open(out / draw(page) / "map.png")), wanted)

    painter.get_by_role("button", name="Eraser").click()
    stroke(page, at(page, 5, 0), at(page, 5, 15))
    wanted[:, 5] = 0
    np.testing.assert_array_equal(np.asarray(Image.open(out / draw(page) / "map.png")), wanted)


def test_maps_are_painted_by_the_keyboard_and_by_touch(visit, shared):
    out, _ = shared
    page = visit(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844})
    few(page)
    page.locator("[data-control=map]").check()
    painter = page.locator(".painter:visible")
    painter.get_by_role("slider", name="Width of the brush").fill("1")
    painter.get_by_role("radio", name="class 1", exact=True).check()
    canvas = painter.locator("canvas")
    canvas.scroll_into_view_if_needed()
    page.touchscreen.tap(*at(page, 4, 6))
    canvas.focus()
    page.keyboard.press("ArrowRight")  # from the middle, (8, 8)
    page.keyboard.press("Space")
    found = np.asarray(Image.open(out / draw(page) / "map.png"))
    assert {(int(x), int(y)) for y, x in np.argwhere(found == 1)} == {(4, 6), (9, 8)} and found.sum() == 2


def upload(page, side: int = 24) -> np.ndarray:
    pixels = np.random.default_rng(3).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    page.locator("input[type=file]:visible, input.visually-hidden").first.set_input_files(
        {"name": "mine.png", "mimeType": "image/png", "buffer": file.getvalue()}
    )
    return pixels


def test_inpainting_keeps_known_pixels_and_its_mask_and_compares(visit, shared):
    out, _ = shared
    page = visit()
    few(page)
    page.locator("[data-mode=inpaint]").click()
    pixels = upload(page)
    page.wait_for_selector(".painter:visible")
    stroke(page, at(page, 6, 6, 24), at(page, 14, 12, 24))
    page.locator("[data-control=text]").fill("cat")
    first = draw(page)
    page.locator("[data-control=text]").fill("an owl")
    second = draw(page)
    masks = [np.asarray(Image.open(out / id_ / "mask.png")) for id_ in (first, second)]
    np.testing.assert_array_equal(*masks)
    kept = masks[0] == 0
    assert 0 < kept.sum() < 24 * 24
    page.locator("article.render").first.locator(".picture button").first.click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    np.testing.assert_array_equal(np.asarray(Image.open(download.value.path()))[kept], pixels[kept])
    slider = page.get_by_role("slider", name="How much is shown as it was before")
    slider.focus()
    page.keyboard.press("Home")
    assert "100%" in page.locator(".compare .before").evaluate("element => element.style.clipPath")
    page.keyboard.press("Escape")


def test_a_result_becomes_the_picture_to_begin_with(visit, shared):
    out, _ = shared
    page = visit()
    few(page)
    drawn = draw(page)
    page.locator(".picture button").first.click()
    page.locator("[data-use=img2img]").click()
    page.wait_for_selector("img.shown:visible")
    varied = draw(page)
    before, image = (Image.open(out / path) for path in (f"{drawn}/000.png", f"{varied}/image.png"))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(before))


def slow(page) -> None:
    page.get_by_role("spinbutton", name="Images").fill("16")
    page.locator("details.more > summary").click()
    page.get_by_role("spinbutton", name="Steps").fill("100")
    for side in ("Width", "Height"):
        page.get_by_role("spinbutton", name=f"{side} in pixels").fill("128")


def test_reloaded_in_mid_run_it_goes_on_and_can_be_cancelled(visit):
    page = visit()
    page.locator("[data-control=text]").fill("a slow one")
    slow(page)
    page.locator(".go button").click()
    page.wait_for_selector("article[data-state=drawing]")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    page.wait_for_selector("article[data-state=drawing]")
    assert page.locator("[data-control=text]").input_value() == "a slow one"
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector("article[data-state=cancelled]")


def test_two_browsers_wait_for_each_other_and_see_their_own(visit):
    one, other = visit(), visit()
    slow(one)
    one.locator(".go button").click()
    one.wait_for_selector("article[data-state=drawing]")
    few(other)
    other.locator(".go button").click()
    other.wait_for_selector("text=next in the queue")
    one.get_by_role("button", name="Cancel").click()
    other.wait_for_selector("article[data-state=done]")
    assert one.locator("article.render").count() == other.locator("article.render").count() == 1


DROP = """([file, name]) => {
  const bytes = Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


def test_a_dropped_png_sets_every_control(visit, shared):
    out, _ = shared
    page = visit()
    few(page)
    page.locator("[data-control=text]").fill("an owl")
    page.get_by_role("radio", name="dog").check(force=True)
    page.get_by_label("Avoid").fill("a cat")
    page.get_by_role("spinbutton", name="Guidance").fill("3.5")
    page.get_by_label("Solver").select_option("euler")
    page.locator("[data-control=map]").check()
    page.mouse.click(*at(page, 3, 12))
    first = draw(page)

    fresh = visit()
    fresh.evaluate(DROP, [base64.b64encode((out / first / "001.png").read_bytes()).decode(), "001.png"])
    fresh.wait_for_selector("text=Every control is set")
    assert fresh.locator("[data-control=text]").input_value() == "an owl"
    again = draw(fresh)
    for name in ("000.png", "001.png", "map.png"):
        np.testing.assert_array_equal(*(np.asarray(Image.open(out / id_ / name)) for id_ in (first, again)))
    fresh.evaluate(DROP, [base64.b64encode((out / first / "map.png").read_bytes()).decode(), "map.png"])
    fresh.wait_for_selector(".toast.error")


def test_a_command_is_copied(visit):
    page = visit()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    few(page)
    draw(page)
    page.locator(".picture button").first.click()
    page.get_by_role("button", name="Command").click()
    page.wait_for_selector("text=Command copied")
    assert page.evaluate("navigator.clipboard.readText()").startswith("python scripts/sample.py --model ")


def test_every_model_shows_the_controls_that_it_declares(visit, shared):
    _, client = shared
    page = visit()
    names = client.get("/api/page").plain["models"]
    boxes, small, plain = names[1:4]
    page.select_option("#model", boxes)
    page.wait_for_selector("[data-control=boxes]")
    page.select_option("#model", plain)
    page.wait_for_selector("[data-control=boxes]", state="detached")
    page.select_option("#model", small)
    page.wait_for_selector(".go button:text-is('Enlarge')")
    upload(page)
    page.wait_for_selector("img.shown:visible")
    few(page)
    draw(page)


@pytest.mark.parametrize("width", [1440, 820, 390])
def test_nothing_runs_off_the_edge(visit, width):
    page = visit(viewport={"width": width, "height": 844})
    few(page)
    page.locator("[data-control=map]").check()
    draw(page)
    page.locator(".picture button").first.click()
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) == 0
    assert page.locator("dialog").evaluate("dialog => dialog.scrollWidth - dialog.clientWidth") == 0
    page.keyboard.press("Escape")
    page.locator("[data-mode=inpaint]").click()
    assert page.evaluate(overflow) == 0
    page.locator("#tab-runs").click()
    assert page.evaluate(overflow) == 0


def test_the_whole_of_it_is_reached_by_keyboard(visit):
    page = visit()
    page.locator("#tab-draw").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#runs:visible")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#draw:visible")
    few(page)
    page.locator("[data-control=text]").focus()
    page.keyboard.type("a cat")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("article[data-state=done]")
    page.locator(".picture button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("ArrowRight")
    assert "Picture 2 of 2" in page.locator("dialog").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    unnamed = (
        "[...document.querySelectorAll('button, input, select, textarea')].filter((one) => one.offsetParent && !one.textContent.trim()"
    )
    assert page.evaluate(f"{unnamed} && !one.labels?.length && !one.getAttribute('aria-label')).length") == 0


def test_a_run_is_started_watched_and_stopped(chromium, trainer):
    _, client = trainer
    context = chromium.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.goto(f"http://127.0.0.1:{client.port}/?token={client.token}")
    page.wait_for_selector("text=No model yet")
    page.locator("#tab-runs").click()
    page.wait_for_selector("text=No runs yet")
    page.get_by_role("button", name="New run").click()
    page.get_by_label("Name").fill("mine")
    page.get_by_label("Changes to it").fill("train.stepps=3")
    page.get_by_role("button", name="Start training").click()
    page.wait_for_selector(".toast.error:has-text('train.stepps')")
    page.get_by_label("Changes to it").fill("train.batch_size=2\ntrain.log_every=1")
    page.get_by_role("button", name="Start training").click()
    page.wait_for_selector(".badge.training")
    page.wait_for_selector(".chart svg polyline")
    assert "images/s" in page.locator(".numbers").inner_text()
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector(".badge.stopped")
    page.get_by_role("button", name="Draw with it").click()
    page.wait_for_selector("#draw:visible")
    assert page.locator("#model").input_value() == "runs/mine/checkpoint"
    context.close()
