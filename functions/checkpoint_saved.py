"""Topic `checkpoint-saved`: verify a manifest again and move its job's checkpoint forward."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.core import dead_letters, events
from goblin.jobs import checkpoints
from goblin.web import asgi
from goblin.wiring import jobs as job_wiring
from goblin.wiring import process


async def _follow(event: events.Event) -> None:
    await checkpoints.note(events.decode(events.CheckpointSaved, event.data), job_wiring.jobs())


@functions_framework.aio.http
@asgi.answers_errors
async def on_checkpoint_saved(request: Request) -> Response:
    """Handle a message of topic `checkpoint-saved` (POST): verify the manifest, then update the job.

    Caller: Pub/Sub's push subscription, with Google's OIDC token of our own service account.

    Answers 204 when done, also for an event seen before. An event that would be refused at each delivery (malformed, of
    an unknown job) becomes a dead letter with the reason at once, which is 204 too. Any other status makes Pub/Sub
    deliver it again, and after five deliveries it is a dead letter: 400 for a body that is no event, 401 or 403 for a
    wrong token, 413 for a too large body, 500 for a manifest that is missing or false, 503 when a store or Pub/Sub does
    not answer.
    """
    await process.verify_caller(request.headers.get("authorization"))
    event = events.parse_event(request.headers, await asgi.read_body(request, events.PUSH_BYTES_MAX, is_json=False))
    await dead_letters.handle("checkpoint-saved", event, _follow, process.dead_letters)
    return Response(status_code=204)
