"""Topic `job-requested`: store a job and reconcile it."""

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
    """Handle a message of topic `job-requested` (POST): store the job, then reconcile it.

    Caller: Pub/Sub's push subscription, with Google's OIDC token of our own service account. IAM guards who may publish
    to the topic.

    Answers 204 when done, also for an event seen before. Any other status makes Pub/Sub deliver it again, and after
    five deliveries it is a dead letter: 400 for an unknown event or a too large specification, 401 or 403 for a wrong
    token, 409 for a job id with another specification, 413 for a too large body, 500 for an internal error, 503 when a
    store does not answer.
    """
    await process.verify_caller(request.headers.get("authorization"))
    event = events.parse_event(request.headers, await asgi.read_body(request, events.PUSH_BYTES_MAX, is_json=False))
    job = await lifecycle.request(events.decode(events.JobRequested, event.data), job_wiring.jobs())
    await reconcile.reconcile(job_wiring.jobs(), only=job.job_id)
    return Response(status_code=204)
