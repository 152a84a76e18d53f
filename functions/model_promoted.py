"""Topic `model-promoted`: make the model servers serve what is in production."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.core import dead_letters, events
from goblin.registry import rollout
from goblin.web import asgi
from goblin.wiring import process
from goblin.wiring import registry as registry_wiring


async def _follow(event: events.Event) -> None:
    await rollout.follow(events.decode(events.ModelPromoted, event.data), registry_wiring.rollout())


@functions_framework.aio.http
@asgi.answers_errors
async def on_model_promoted(request: Request) -> Response:
    """Handle a message of topic `model-promoted` (POST): bring the model servers in line with the pointers.

    Caller: Pub/Sub's push subscription, with Google's OIDC token of our own service account.

    Answers 204 when done, also for an event seen before or overtaken by a newer one. An event that would be refused at
    each delivery (malformed, a promotion that never was) becomes a dead letter with the reason at once, which is 204
    too. Any other status makes Pub/Sub deliver it again, and after five deliveries it is a dead letter: 400 for a body
    that is no event, 401 or 403 for a wrong token, 413 for a too large body, 500 for an internal error, 503 when a
    model server, a store or Pub/Sub does not answer.
    """
    await process.verify_caller(request.headers.get("authorization"))
    event = events.parse_event(request.headers, await asgi.read_body(request, events.PUSH_BYTES_MAX, is_json=False))
    await dead_letters.handle("model-promoted", event, _follow, process.dead_letters)
    return Response(status_code=204)
