"""Topic `job-requested`: store a job and reconcile it."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.core import dead_letters, events
from goblin.jobs import lifecycle, reconcile
from goblin.web import asgi
from goblin.wiring import jobs as job_wiring
from goblin.wiring import process


async def _follow(event: events.Event) -> None:
    job = await lifecycle.request(events.decode(events.JobRequested, event.data), job_wiring.jobs())
    await reconcile.reconcile(job_wiring.jobs(), only=job.job_id)


@functions_framework.aio.http
@asgi.answers_errors
async def on_job_requested(request: Request) -> Response:
    """Handle a message of topic `job-requested` (POST): store the job, then reconcile it.

    Caller: Pub/Sub's push subscription, with Google's OIDC token of our own service account. IAM guards who may publish
    to the topic.

    Answers 204 when done, also for an event seen before. An event that would be refused at each delivery (a malformed
    or too large specification, a job id with another one) becomes a dead letter with the reason at once, which is 204
    too. Any other status makes Pub/Sub deliver it again, and after five deliveries it is a dead letter: 400 for a body
    that is no event, 401 or 403 for a wrong token, 413 for a too large body, 500 for an internal error, 503 when a
    store or Pub/Sub does not answer.
    """
    await process.verify_caller(request.headers.get("authorization"))
    event = events.parse_event(request.headers, await asgi.read_body(request, events.PUSH_BYTES_MAX, is_json=False))
    await dead_letters.handle("job-requested", event, _follow, process.dead_letters)
    return Response(status_code=204)
