"""Scheduled, every minute: promotions whose event is still due, and model servers that serve something else.

A server that was started again is given its model again; in between it serves what it was started with.
"""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.registry import rollout
from goblin.web import asgi
from goblin.wiring import process
from goblin.wiring import registry as registry_wiring


@functions_framework.aio.http
@asgi.answers_errors
async def serve_promoted(request: Request) -> Response:
    await process.verify_caller(request.headers.get("authorization"))
    await rollout.tick(registry_wiring.rollout())
    return Response(status_code=204)
