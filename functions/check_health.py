"""Scheduled, every minute: check the health of every configured endpoint, without being billed, and store it."""

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
    """Run the schedule `check-health` (POST, every minute): check every endpoint and store its health.

    Caller: Cloud Scheduler, with Google's OIDC token of our own service account.

    Answers 200 with status and reason of each endpoint as JSON; 401 or 403 for a wrong token; 500 for an invalid
    configuration; 503 when Firestore or Google's certificates do not answer. An unhealthy endpoint is not an error.
    """
    await process.verify_caller(request.headers.get("authorization"))
    judged = await health.check_all(gateway_wiring.health_check())
    return asgi.json_response({found.endpoint: {"status": found.status, "reason": found.reason} for found in judged})
