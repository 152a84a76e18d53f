"""Topic `budget-exceeded`: act on our threshold events and on Cloud Billing's budget notifications."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.billing import budgets
from goblin.core import dead_letters, events
from goblin.web import asgi
from goblin.wiring import billing as billing_wiring
from goblin.wiring import process


async def _follow(event: events.Event) -> None:
    await budgets.follow(event, billing_wiring.budgets())


@functions_framework.aio.http
@asgi.answers_errors
async def on_budget_exceeded(request: Request) -> Response:
    """Handle a message of topic `budget-exceeded` (POST): freeze an account if its budget says so.

    Caller: Pub/Sub's push subscription, with Google's OIDC token of our own service account. IAM guards who may publish
    to the topic.

    Answers 204 when done, also for an event seen before. A malformed event becomes a dead letter with the reason at
    once, which is 204 too. Any other status makes Pub/Sub deliver it again, and after five deliveries it is a dead
    letter: 400 for a body that is no event, 401 or 403 for a wrong token, 413 for a too large body, 500 for an internal
    error, 503 when Firestore, Pub/Sub, Cloud Run or Google's certificates do not answer.
    """
    await process.verify_caller(request.headers.get("authorization"))
    event = events.parse_event(request.headers, await asgi.read_body(request, events.PUSH_BYTES_MAX, is_json=False))
    await dead_letters.handle("budget-exceeded", event, _follow, process.dead_letters)
    return Response(status_code=204)
