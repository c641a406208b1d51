"""What the page draws is what the scripts draw; the queue; progress; parameters that come back."""

from __future__ import annotations

import io
import json
import shlex
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from page_client import Client
from PIL import Image

from ldm.web import renders
from ldm.web.renders import SCRIPTS

MAP = np.random.default_rng(1).integers(0, 5, (12, 16)).astype("<u2")  # 4 = unknown


def picture(side: int = 24) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def orders(client: Client) -> dict[str, dict]:
    """By name, an order for each script, and each kind of control."""
    every, boxes, small, plain = (client.get("/api/page").plain["models"])[:4]
    image = client.post("/api/uploads/picture", picture()).plain["name"]
    mask = np.zeros((24, 24), "<u2")
    mask[5:15, 6:20] = 1
    hole = client.post("/api/uploads/mask", mask.tobytes(), width=24, height=24).plain["name"]
    layout = client.post("/api/uploads/indices", MAP.tobytes(), model=every, control="map", width=16, height=12).plain["name"]
    placed = client.post("/api/uploads/boxes", json.dumps([[1, 0.1, 0.1, 0.5, 0.6]])).plain["name"]
    two = {"seed": 5, "num_images": 2, "steps": 2}
    return {
        "text": {"mode": "draw", "model": every, "cond": {"text": "a red heart"}, **two},
        "text that looks like a flag": {"mode": "draw", "model": every, "cond": {"text": "--seed 3"}, **two},
        "all": {
            "mode": "draw", "model": every, "cond": {"text": "a 'red' heart", "class": "dog"}, "files": {"map": layout},
            "negative_prompt": "-blue", "guidance": 1.2345678901, "sampler": "euler", "width": 32, **two,
        },
        "nothing": {"mode": "draw", "model": plain, **two},
        "boxes": {"mode": "draw", "model": boxes, "files": {"boxes": placed}, **two},
        "inpaint": {
            "mode": "inpaint", "model": every, "cond": {"text": "cat"}, "negative_prompt": "dog",
            "files": {"image": image, "mask": hole}, **two,
        },
        "img2img": {"mode": "img2img", "model": every, "cond": {"text": "cat"}, "files": {"image": image}, "strength": 0.7, **two},
        "upscale": {"mode": "upscale", "model": small, "files": {"image": image}, **two},
    }  # fmt: skip


NAMES = ("text", "text that looks like a flag", "all", "nothing", "boxes", "inpaint", "img2img", "upscale")


def drawn(client: Client, order: dict) -> tuple[dict, list[np.ndarray]]:
    render = client.wait(client.order(**order).plain["id"])
    assert render["state"] == "done", render["error"]
    files = [client.get(f"/api/renders/{render['id']}/files/{name}").body for name in render["pictures"]]
    return render, [np.asarray(Image.open(io.BytesIO(file))) for file in files]


@pytest.mark.parametrize("name", NAMES)
def test_copied_as_command_or_python_it_draws_the_same_to_the_bit(shared, name, tmp_path):
    _, client = shared
    render, images = drawn(client, orders(client)[name])
    assert len(images) == 2 and not np.array_equal(*images)

    _, script, *arguments = shlex.split(render["command"])
    parse, draw = SCRIPTS[Path(script).stem]
    options = parse([*arguments, "--out", str(tmp_path / "again"), "--device", "cpu"])
    module = __import__(f"ldm.app.{Path(script).stem}", fromlist=["main"])
    module.main(options)
    for number, image in enumerate(images):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "again" / f"{number:03d}.png")), image)

    found: dict = {}
    exec(render["python"], found)
    for ours, image in zip(found["images"], images, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), image)


@pytest.mark.parametrize("name", NAMES)
def test_a_drawn_png_gives_its_order_back(shared, name):
    _, client = shared
    order = orders(client)[name]
    render, images = drawn(client, order)
    file = client.get(f"/api/renders/{render['id']}/files/{render['pictures'][0]}").body
    found = client.post("/api/uploads/recall", file).plain
    assert not found["notes"]
    assert found["order"]["files"] == order.get("files", {})  # uploads are named by their content
    _, again = drawn(client, found["order"])
    np.testing.assert_array_equal(again, images)


def test_inputs_lie_beside_the_pictures_and_kept_pixels_are_the_inputs(shared):
    out, client = shared
    order = orders(client)["inpaint"]
    render, images = drawn(client, order)
    assert render["inputs"] == {"image": "image.png", "mask": "mask.png"}
    assert str(out / render["id"] / "mask.png") in render["command"]
    before = np.asarray(Image.open(out / render["id"] / "image.png"))
    kept = np.asarray(Image.open(out / render["id"] / "mask.png")) == 0
    for image in images:
        np.testing.assert_array_equal(image[kept], before[kept])
        assert (image[~kept] != before[~kept]).any()


def test_a_map_arrives_as_it_was_painted(shared):
    out, client = shared
    render, _ = drawn(client, orders(client)["all"])
    np.testing.assert_array_equal(np.asarray(Image.open(out / render["id"] / "map.png")), MAP)
    answer = client.get(f"/api/uploads/{render['order']['files']['map']}/indices")
    assert (answer.headers["x-width"], answer.headers["x-height"]) == ("16", "12")
    np.testing.assert_array_equal(np.frombuffer(answer.body, "<u2").reshape(12, 16), MAP)


def test_a_pictures_text_does_not_make_the_page_read_other_files(shared, tmp_path):
    out, client = shared
    order = orders(client)["all"]
    render, _ = drawn(client, order)
    secret = tmp_path / "secret.png"
    Image.fromarray(MAP.astype(np.uint8)).save(secret)
    parameters = json.loads((out / render["id"] / "parameters.json").read_text())
    from PIL.PngImagePlugin import PngInfo

    for path in (str(secret), f"{out}/../{secret.relative_to(secret.parents[1])}", "/etc/passwd"):
        info = PngInfo()
        info.add_itxt("parameters", json.dumps(parameters | {"cond": [f"map={path}"], "image": path}))
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4)).save(buffer, "PNG", pnginfo=info)
        found = client.post("/api/uploads/recall", buffer.getvalue()).plain
        assert found["order"]["files"] == {} and len(found["notes"]) == 2


def test_progress_goes_up_and_previews_are_pictures(shared):
    _, client = shared
    order = orders(client)["text"] | {"steps": 60}
    id_ = client.order(**order).plain["id"]
    done, previews = [], 0
    for render in client.events():
        if render["id"] != id_:
            continue
        done.append(render["done"])
        if render["previews"] and not previews:
            file = client.get(f"/api/renders/{id_}/previews/0")
            if file.status == 200:  # it may have ended meanwhile
                assert Image.open(io.BytesIO(file.body)).size == (16, 16)
                previews += 1
        if render["state"] == "done":
            break
    assert done == sorted(done) and done[-1] == 60 and previews


def test_cancelled_in_mid_run_it_ends_and_leaves_nothing(shared):
    out, client = shared
    slow = orders(client)["text"] | {"steps": 100, "num_images": 16, "width": 128, "height": 128, "sampler": "ddim"}
    first, second = (client.order(**slow).plain["id"] for _ in range(2))
    client.wait(first, "drawing")
    assert client.wait(second, "waiting")["place"] == 1
    assert client.ask("DELETE", f"/api/renders/{second}").status == 200
    assert client.wait(second)["state"] == "cancelled"
    client.ask("DELETE", f"/api/renders/{first}")
    ended = client.wait(first)
    assert ended["state"] == "cancelled" and ended["done"] < 100
    assert not (out / first).exists() and not (out / second).exists()


def test_of_32_clients_each_gets_its_own_and_one_is_drawn_at_a_time(shared, monkeypatch):
    _, client = shared
    order = orders(client)["text"]
    at_once, most, lock = 0, 0, threading.Lock()
    parse, draw = SCRIPTS["txt2img"]

    def counted(*given):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        try:
            return draw(*given)
        finally:
            with lock:
                at_once -= 1

    monkeypatch.setitem(renders.SCRIPTS, "txt2img", (parse, counted))
    found: dict[int, tuple[dict, list[np.ndarray]]] = {}

    def one(number: int) -> None:
        own = Client(client.port, client.token)
        while (answer := own.order(**order | {"seed": number, "num_images": 1})).status == 429:
            time.sleep(0.05)
        render = own.wait(answer.plain["id"])
        file = own.get(f"/api/renders/{render['id']}/files/000.png").body
        found[number] = render, np.asarray(Image.open(io.BytesIO(file)))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and {number: render["order"]["seed"] for number, (render, _) in found.items()} == {n: n for n in range(32)}
    assert len({image.tobytes() for _, image in found.values()}) == 32


def test_the_queue_is_bounded(shared):
    _, client = shared
    slow = orders(client)["text"] | {"steps": 100, "num_images": 16, "width": 128, "height": 128, "sampler": "ddim"}
    answers = [client.order(**slow) for _ in range(renders.MOST_WAITING_OF_ONE + 3)]
    taken = [answer.plain["id"] for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 429]
    for id_ in reversed(taken):
        client.ask("DELETE", f"/api/renders/{id_}")
    client.wait(taken[0])
    assert refused and "waiting already" in refused[0].plain["error"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model": "elsewhere"}, "there is no model"),
        ({"mode": "upscale"}, "is not for upscale"),
        ({"cond": {"text": "a", "size": "b"}}, "unknown control 'size'"),
        ({"cond": {"class": "cow"}}, "unknown label 'cow'"),
        ({"sampler": "fast"}, "'fast'; allowed: ddim"),
        ({"steps": 1000}, "steps"),
        ({"height": 21}, "height must be a multiple of"),
        ({"height": 2048, "width": 2048, "num_images": 16}, "too many for the page"),
        ({"mode": "inpaint"}, "choose a picture first"),
        ({"files": {"map": "0" * 32 + ".png"}}, "not here any more"),
        ({"cond": {"map": "/etc/passwd"}}, "given as a file"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(shared, change, said):
    _, client = shared
    answer = client.order(**orders(client)["text"] | change)
    line = answer.plain["error"] if answer.status == 400 else client.wait(answer.plain["id"])["error"]
    assert said in line and "\n" not in line


def test_previews_change_nothing(shared, monkeypatch):
    _, client = shared
    order = orders(client)["all"] | {"steps": 12}
    _, watched = drawn(client, order)
    monkeypatch.setattr("ldm.web.preview.Preview.of", lambda self, step: None)
    _, unwatched = drawn(client, order)
    np.testing.assert_array_equal(watched, unwatched)


def test_the_model_says_what_it_takes(shared):
    _, client = shared
    name = client.get("/api/page").plain["models"][0]
    model = client.get("/api/model", name=name).plain
    assert {control["name"]: control["kind"] for control in model["controls"]} == {
        "text": "text", "class": "choice", "mask": "mask", "map": "class_map",
    }  # fmt: skip
    assert model["modes"] == ["draw", "inpaint", "img2img"]
    assert len(set(model["controls"][3]["colours"])) == 4


def test_a_model_written_anew_is_loaded_anew(start, tmp_path, write_model):
    folder = write_model(tmp_path / "model", ("class",))
    _, client = start("--models", folder, "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    order = {"mode": "draw", "model": folder.as_posix(), "cond": {"class": "dog"}, "steps": 1, "num_images": 1}
    _, first = drawn(client, order)
    from safetensors.torch import load_file

    weights = {name: torch.ones_like(value) for name, value in load_file(folder / "denoiser.safetensors").items()}
    from ldm.checkpoints.folder import write_checkpoint

    others = {part: load_file(folder / f"{part}.safetensors") for part in ("first_stage", "conditioner")}
    write_checkpoint(folder, (folder / "config.yaml").read_text(), {**others, "denoiser": weights}, "# tiny\n")
    _, second = drawn(client, order)
    assert not np.array_equal(first, second)


def test_a_picture_of_the_set_lends_its_map(start, tmp_path, write_model, monkeypatch):
    from ldm.conditioning.semantic_map import SemanticMapConfig
    from ldm.data.config import DataConfig
    from ldm.data.open import open_dataset

    pictures = open_dataset(DataConfig(train="emoji-128", size=16), "train", 0)
    names = pictures.facts.map_names
    monkeypatch.setitem(write_model.__globals__["CONDITIONERS"], "map", SemanticMapConfig(num_classes=len(names), names=names))
    model = write_model(tmp_path / "model", ("map",)).as_posix()
    other = write_model(tmp_path / "other", ("class",)).as_posix()
    _, client = start("--models", model, other, "--out", tmp_path / "out", "--runs", tmp_path / "runs")
    found = client.get("/api/uploads/examples", model=model, control="map").plain
    stride = range(0, len(pictures), len(pictures) // 60)
    first = next(sample for index in stride if len((sample := pictures.sample(index, 0)).map.unique()) >= 3)
    answer = client.get(f"/api/uploads/{found[0]['map']}/indices").body
    np.testing.assert_array_equal(np.frombuffer(answer, "<u2").reshape(16, 16), first.map.where(first.map >= 0, len(names)).numpy())
    assert len(found) == 12 and found[0]["caption"] in first.captions
    assert client.get("/api/uploads/examples", model=other, control="map").plain == []
