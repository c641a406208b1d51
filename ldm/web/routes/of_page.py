"""What routes take of a request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request

from ldm.web.page import Page


def _page(request: Request) -> Page:
    page: Page = request.app.state.page
    return page


PageOf = Annotated[Page, Depends(_page)]
Session = Annotated[str, Query(pattern="^[0-9a-f]{16,64}$")]
"""A browser's tab, by a number that it drew."""

ModelName = Annotated[str, Query(max_length=1000)]
