"""Scheduled, every minute: jobs and rented instances, desired against actual."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.jobs import reconcile as service
from goblin.web import asgi
from goblin.wiring import jobs as job_wiring
from goblin.wiring import process


@functions_framework.aio.http
@asgi.answers_errors
async def reconcile(request: Request) -> Response:
    await process.verify_caller(request.headers.get("authorization"))
    return asgi.json_response(await service.reconcile(job_wiring.jobs()))
