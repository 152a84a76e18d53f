"""Scheduled, every minute: bring jobs and rented instances from what is to what should be."""

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
    """Run the schedule `reconcile` (POST, every minute): bring jobs and instances in line.

    Caller: Cloud Scheduler, with Google's OIDC token of our own service account.

    Answers 200 with a report as JSON; 401 or 403 for a wrong token; 500 for an invalid configuration; 503 when a store
    or Google's certificates do not answer.
    """
    await process.verify_caller(request.headers.get("authorization"))
    return asgi.json_response(await service.reconcile(job_wiring.jobs()))
