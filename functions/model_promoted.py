"""Topic `model-promoted`: make the model servers serve what is in production."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.core import events
from goblin.registry import rollout
from goblin.web import asgi
from goblin.wiring import process
from goblin.wiring import registry as registry_wiring


@functions_framework.aio.http
@asgi.answers_errors
async def on_model_promoted(request: Request) -> Response:
    await process.verify_caller(request.headers.get("authorization"))
    event = events.parse_event(request.headers, await asgi.read_body(request, events.PUSH_BYTES_MAX))
    await rollout.follow(events.decode(events.ModelPromoted, event.data), registry_wiring.rollout())
    return Response(status_code=204)
