"""Topic `job-requested`: write a job down and bring it on."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.core import events
from goblin.jobs import lifecycle, reconcile
from goblin.web import asgi
from goblin.wiring import jobs as job_wiring
from goblin.wiring import process


@functions_framework.aio.http
@asgi.answers_errors
async def on_job_requested(request: Request) -> Response:
    await process.verify_caller(request.headers.get("authorization"))
    event = events.parse_event(request.headers, await asgi.read_body(request, events.PUSH_BYTES_MAX))
    job = await lifecycle.request(events.decode(events.JobRequested, event.data), job_wiring.jobs())
    await reconcile.reconcile(job_wiring.jobs(), only=job.job_id)
    return Response(status_code=204)
