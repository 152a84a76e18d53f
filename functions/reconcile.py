"""Scheduled, every minute: jobs and rented instances, desired against actual."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin import job_wiring, wiring
from goblin.adapters import asgi
from goblin.services import reconcile as service


@functions_framework.aio.http
@asgi.answers_errors
async def reconcile(request: Request) -> Response:
    await wiring.verify_caller(request.headers.get("authorization"))
    return asgi.json_response(await service.reconcile(job_wiring.jobs()))
