"""The page that asks for the password."""

from __future__ import annotations

import html

from starlette.responses import HTMLResponse

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>ldm</title>
<link rel="stylesheet" href="/static/css/tokens.css"><link rel="stylesheet" href="/static/css/base.css">
<link rel="stylesheet" href="/static/css/controls.css">
</head>
<body class="login">
<form method="post" action="/login" class="card">
<h1>ldm</h1>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
<p role="alert" class="error">{message}</p>
<button class="primary">Open the page</button>
</form>
</body>
</html>
"""


def login_page(message: str = "") -> HTMLResponse:
    """Asks for the password, saying what was wrong with the last one."""
    return HTMLResponse(PAGE.format(message=html.escape(message)), status_code=401)
