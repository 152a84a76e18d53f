"""Topic `checkpoint-saved`: verify a manifest once more and move its job's checkpoint forward."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.core import events
from goblin.jobs import checkpoints
from goblin.web import asgi
from goblin.wiring import jobs as job_wiring
from goblin.wiring import process


@functions_framework.aio.http
@asgi.answers_errors
async def on_checkpoint_saved(request: Request) -> Response:
    await process.verify_caller(request.headers.get("authorization"))
    event = events.parse_event(request.headers, await asgi.read_body(request, events.PUSH_BYTES_MAX))
    await checkpoints.note(events.decode(events.CheckpointSaved, event.data), job_wiring.jobs())
    return Response(status_code=204)
