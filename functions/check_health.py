"""Scheduled, every minute: look at every configured endpoint, without being billed, and store what was found."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.gateway import health
from goblin.web import asgi
from goblin.wiring import gateway as gateway_wiring
from goblin.wiring import process


@functions_framework.aio.http
@asgi.answers_errors
async def check_health(request: Request) -> Response:
    await process.verify_caller(request.headers.get("authorization"))
    judged = await health.check_all(gateway_wiring.health_check())
    return asgi.json_response({found.endpoint: {"status": found.status, "reason": found.reason} for found in judged})
