"""Who is let in, what is refused, and that nothing that is sent stops the page."""

from __future__ import annotations

import http.client
import io
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from page_client import Client
from PIL import Image

from ldm.core.errors import UserError
from ldm.web import guard, uploads
from ldm.web.arguments import parse
from ldm.web.renders import Renders

ROOT = Path(__file__).parents[2]
NOBODY = {"authorization": "Bearer wrong"}


def raw(port: int, content: bytes, wait: float = 5) -> bytes:
    """What the page answers to these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        try:
            connection.sendall(content)
            found = b""
            while part := connection.recv(65536):
                found += part
        except (TimeoutError, ConnectionError):
            return b""
        return found


@pytest.mark.parametrize("path", ["/", "/api/page", "/api/runs", "/api/events?session=" + "a" * 32, "/api/uploads/x", "/nowhere"])
def test_without_the_token_nothing_is_told(shared, path):
    _, client = shared
    assert client.ask("GET", path, headers=NOBODY).status == 401
    assert client.ask("POST", path, b"{}", headers=NOBODY).status == 401


def test_the_token_in_the_address_becomes_a_cookie(start, tiny, tmp_path):
    page, client = start("--models", tiny("class"), "--out", tmp_path / "out")
    answer = client.ask("GET", f"/?token={client.token}", headers={"authorization": ""})
    cookie = answer.headers["set-cookie"]
    assert answer.status == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie and client.token not in cookie
    assert client.ask("GET", "/api/page", headers={"authorization": "", "cookie": cookie.partition(";")[0]}).status == 200
    assert client.ask("GET", "/api/page", headers={"authorization": "", "cookie": cookie.partition("=")[0] + "=" + "0" * 64}).status == 401
    assert client.token in page.line


def test_too_many_wrong_passwords_are_a_wait(monkeypatch):
    monkeypatch.setattr(guard, "FAILURE_SECONDS", 0.2)
    door = guard.Doorkeeper(token="token", password="open sesame")
    assert not any(door.is_right(f"wrong {i}") for i in range(guard.FAILURES))
    with pytest.raises(guard.Refused, match="wait a minute"):
        door.is_right("open sesame")
    time.sleep(0.3)
    assert door.is_right("open sesame")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "localhost:notaport", "[::1"])
def test_another_name_is_refused(shared, host):
    _, client = shared
    headers = {"authorization": f"Bearer {client.token}", "host": host}
    assert client.ask("GET", "/api/page", headers=headers).status in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_this_machines_names_are_taken(shared, host):
    _, client = shared
    assert client.ask("GET", "/api/page", headers={"authorization": f"Bearer {client.token}", "host": host}).status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
def test_a_request_from_another_sites_page_is_refused(shared, origin):
    _, client = shared
    headers = {"authorization": f"Bearer {client.token}", "origin": origin, "content-type": "application/json"}
    for method, path in (("POST", "/api/renders?session=" + "a" * 32), ("DELETE", "/api/renders/x"), ("POST", "/api/uploads/picture")):
        assert client.ask(method, path, b"{}", headers).status == 403
    own = {**headers, "origin": f"http://127.0.0.1:{client.port}"}
    assert client.ask("DELETE", "/api/renders/x", headers=own).status == 404


@pytest.mark.parametrize("path", ["/", "/static/js/main.js", "/api/page", "/nowhere", "/api/renders/x/files/y"])
def test_every_answer_has_the_headers_that_keep_scripts_out(shared, path):
    _, client = shared
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert (
        "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    )
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


def test_the_page_asks_nobody_else():
    """Offline: no address in what the browser loads, no inline script or style that the policy would refuse."""
    for file in (ROOT / "ldm/web/static").rglob("*"):
        text = file.read_text() if file.is_file() else ""
        found = [
            address
            for address in re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"^\s*//.*$", "", text, flags=re.M))
            if "www.w3.org" not in address
        ]
        assert not [address for address in found if address.startswith("http")], file
        assert not re.search(r"<script>|style=\"|onclick=\"", text), file


TRAVERSALS = [
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "....//etc/passwd",
    "..\\..\\etc\\passwd",
    "%00",
    "/etc/passwd",
]


@pytest.mark.parametrize("name", TRAVERSALS)
def test_no_path_leads_out_of_the_folders(shared, name, tmp_path):
    _, client = shared
    render = client.wait(client.order(mode="draw", model=client.get("/api/page").plain["models"][0], steps=1, num_images=1).plain["id"])
    for base in ("/static/", "/api/uploads/", f"/api/renders/{render['id']}/files/", "/api/runs/", "/api/runs/x/samples/"):
        request = f"GET {base}{name} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {client.token}\r\nConnection: close\r\n\r\n"
        answer = raw(client.port, request.encode())
        assert re.match(rb"HTTP/1.1 4\d\d", answer) and b"root:" not in answer, answer[:200]


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_thousands_of_malformed_requests_leave_the_page_well(shared, count):
    _, client = shared
    draw = random.Random(0)
    session = f"/api/renders?session={'a' * 32}"
    good = json.dumps({"mode": "draw", "model": "checkpoints/x", "cond": {"text": "a"}, "seed": 1}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=10)
    for number in range(count):
        body = bytearray(good)
        for _ in range(draw.randrange(1, 12)):
            kind, at = draw.randrange(3), draw.randrange(len(body))
            body[at : at + kind] = bytes(draw.randrange(256) for _ in range(draw.randrange(4)))
        path = draw.choice(
            [
                session,
                "/api/uploads/picture",
                "/api/uploads/recall",
                "/api/uploads/boxes",
                "/api/runs",
                "/api/uploads/mask?width=3&height=2",
            ]
        )
        connection.request("POST", path, bytes(body), {"authorization": f"Bearer {client.token}", "content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert 400 <= answer.status < 500, (number, path, answer.status, bytes(body))
    connection.close()
    for number in range(count // 5):
        junk = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 300)))
        line = draw.choice([b"GET / HTTP/1.1\r\n", b"POST /api/renders HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n", b""])
        assert not raw(client.port, line + junk + b"\r\n\r\n", 0.05).startswith((b"HTTP/1.1 2", b"HTTP/1.1 5")), number
    assert client.get("/api/page").status == 200


@pytest.mark.parametrize(
    "body",
    [
        {"steps": "2"}, {"steps": 2.5}, {"seed": -1}, {"seed": 2**60}, {"num_images": 17}, {"num_images": 0}, {"guidance": 1e9}, {"x": 1},
        {"height": 10**9}, {"cond": {"text": "a" * 5000}}, {"cond": {str(i): "a" for i in range(99)}}, {"cond": [1]},
        {"strength": 0}, {"mode": "run"},
    ],
)  # fmt: skip
def test_orders_of_another_form_are_refused(shared, body):
    _, client = shared
    assert client.order(**{"mode": "draw", "model": "m"} | body).status == 422


def test_a_long_body_is_refused_as_soon_as_it_is_too_long(shared):
    _, client = shared
    head = f"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {client.token}\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        connection.sendall(head.encode())
        sent = 0
        try:
            while sent < 100 * guard.MAX_BODY:
                connection.sendall(chunk)
                sent += 0x10000
        except ConnectionError:
            pass
    assert sent < 60 * guard.MAX_BODY  # what the sockets themselves hold


def test_a_large_upload_is_refused(shared, monkeypatch):
    _, client = shared
    monkeypatch.setattr("ldm.web.routes.sending.MAX_UPLOAD", 1000)
    answer = client.post("/api/uploads/picture", b"a" * 1001)
    assert answer.status == 413 and "1,000 bytes" in answer.plain["error"]


@pytest.mark.parametrize("path", ["/api/uploads/picture", "/api/runs"])
def test_a_slow_body_is_given_up(shared, monkeypatch, path):
    _, client = shared
    monkeypatch.setattr("ldm.web.routes.sending.UPLOAD_SECONDS", 0.3)
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {client.token}\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        connection.sendall(head.encode() + b"abc")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_picture_that_would_be_large_is_refused_before_it_is_decoded(shared):
    _, client = shared
    header = struct.pack(">IIBBBBB", 5000, 5000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    chunks = b"".join(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts)
    answer = client.post("/api/uploads/picture", b"\x89PNG\r\n\x1a\n" + chunks)
    assert answer.status == 400 and "million pixels" in answer.plain["error"]
    for path in ("/api/uploads/picture", "/api/uploads/recall"):
        assert client.post(path, b"GIF89a" + b"\0" * 50).status == 400


def test_no_more_uploads_at_once_than_memory_has_room_for(shared):
    _, client = shared
    head = f"POST /api/uploads/picture HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {client.token}\r\nContent-Length: 1000\r\n\r\n"
    slow = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(uploads.AT_ONCE)]
    for connection in slow:
        connection.sendall(head.encode())
    time.sleep(0.3)
    assert client.post("/api/uploads/picture", b"a").status == 503
    for connection in slow:
        connection.close()
    time.sleep(0.3)
    assert client.post("/api/uploads/picture", b"a").status == 400


def test_uploads_are_bounded_and_the_oldest_go(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "KEPT", 3000)
    kept = uploads.Uploads(tmp_path)
    names = []
    for number in range(6):
        buffer = io.BytesIO()
        Image.effect_noise((30, 30), 50 + number).save(buffer, "PNG")
        names.append(kept.add_picture(buffer.getvalue())[0])
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3000
    with pytest.raises(UserError, match="send the file again"):
        kept.path(names[0])
    assert kept.path(names[-1]).is_file()


def test_a_password_is_asked_for_and_let_in_by(start, tiny, tmp_path, monkeypatch):
    (tmp_path / "password").write_text("open sesame\n")
    page, client = start("--models", tiny("class"), "--out", tmp_path / "out", "--password-file", tmp_path / "password")
    assert page.doorkeeper.token not in page.line
    asked = client.ask("GET", "/", headers=NOBODY)
    assert asked.status == 401 and b'type="password"' in asked.body
    assert client.ask("GET", f"/?token={page.doorkeeper.token}", headers={"authorization": ""}).status == 401
    assert client.ask("POST", "/login", b"password=close", headers={"authorization": ""}).status == 401
    answer = client.ask("POST", "/login", b"password=open+sesame", headers={"authorization": ""})
    assert answer.status == 303
    assert (
        client.ask("GET", "/api/page", headers={"authorization": "", "cookie": answer.headers["set-cookie"].partition(";")[0]}).status
        == 200
    )


def test_other_machines_need_a_password(tmp_path, monkeypatch):
    monkeypatch.delenv("LDM_PASSWORD", raising=False)
    with pytest.raises(UserError, match="--password-file"):
        parse(["--host", "0.0.0.0"])
    monkeypatch.setenv("LDM_PASSWORD", "short")
    with pytest.raises(UserError, match="at least 8"):
        parse(["--host", "0.0.0.0"])
    monkeypatch.setenv("LDM_PASSWORD", "long enough")
    assert parse(["--host", "0.0.0.0"]).password == "long enough"


def test_killed_in_mid_render_nothing_is_half_written_and_the_page_starts_again(tiny, tmp_path):
    out, model = tmp_path / "out", tiny("text", "class", "mask", "map")
    command = [sys.executable, "scripts/app.py", "--port", "0", "--models", model, "--runs", tmp_path / "runs", "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    page = subprocess.Popen([*map(str, command)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert page.stdout is not None
    found = re.search(r":(\d+)/\?token=(\S+)", page.stdout.readline())
    assert found is not None
    client = Client(int(found[1]), found[2])
    order = {"mode": "draw", "model": model.as_posix(), "cond": {"text": "a"}, "steps": 1, "num_images": 1}
    whole = client.wait(client.order(**order).plain["id"])["id"]
    slow = client.order(**order | {"steps": 100, "num_images": 16, "width": 128, "height": 128}).plain["id"]
    client.wait(slow, "drawing")
    page.send_signal(signal.SIGKILL)
    page.wait()
    page.stdout.close()
    assert sorted(path.name for path in out.iterdir()) == [whole]
    assert {"000.png", "grid.png", "parameters.json"} <= {path.name for path in (out / whole).iterdir()}


def test_what_a_kill_while_writing_left_is_cleared_away(tmp_path):
    """By the page that starts next; but what another page is writing there stays."""
    gone = tmp_path / ".20261128-072733-3e9309840517.tmp-1-1-00000000"
    gone.mkdir()
    from ldm.core.files import new_folder

    with new_folder(tmp_path / "20261128-072733-aaaaaaaaaaaa") as being_written:
        (being_written / "000.png").write_bytes(b"a")
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, signal\nfrom pathlib import Path\nfrom ldm.core.files import new_folder\n"
            f"with new_folder(Path({str(tmp_path / '20261128-072733-bbbbbbbbbbbb')!r})) as new:\n"
            "    (new / '000.png').write_bytes(b'a')\n    os.kill(os.getpid(), signal.SIGKILL)",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert child.returncode == -signal.SIGKILL and len(list(tmp_path.glob(".*bbbb*tmp*"))) == 1
    renders = Renders(None, None, tmp_path, lambda session: None)  # type: ignore[arg-type]
    renders.close()
    assert not list(tmp_path.glob(".*bbbb*")) and (tmp_path / "20261128-072733-aaaaaaaaaaaa" / "000.png").is_file()
