"""HTTP `/`: the status page for people. In production IAM on Cloud Run admits only operators."""

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
    """Answer `GET /` with the status page in HTML.

    Caller: anyone who reaches the service; it checks no key. In production IAM on Cloud Run admits only operators.

    Answers 200; 404 for another path; 405 for a method other than GET and HEAD; 500 for an invalid configuration.
    """
    if request.scope["path"] not in ("/", ""):
        raise NotFound("There is only one page, at /.")
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed("The page can only be read. Use GET.")
    health = await gateway_wiring.health_view().fresh()
    page = pages.status(health, now=datetime.now(UTC), base_url=str(request.base_url).rstrip("/"))
    return HTMLResponse(page, headers=pages.HEADERS)
