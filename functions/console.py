"""HTTP: the page a person looks at. In production Cloud Run lets only operators reach it."""

from __future__ import annotations

from datetime import UTC, datetime

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from goblin.core.errors import MethodNotAllowed, NotFound
from goblin.web import asgi, pages
from goblin.wiring import gateway as gateway_wiring


@functions_framework.aio.http
@asgi.answers_errors
async def console(request: Request) -> Response:
    if request.scope["path"] not in ("/", ""):
        raise NotFound("There is only one page, at /.")
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed("The page is only looked at.")
    health = await gateway_wiring.health_view().fresh()
    page = pages.status(health, now=datetime.now(UTC), base_url=str(request.base_url).rstrip("/"))
    return HTMLResponse(page, headers=pages.HEADERS)
