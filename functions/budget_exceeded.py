"""Topic `budget-exceeded`: freeze what costs money; ours, and Cloud Billing's own budget notifications."""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.billing import budgets
from goblin.core import events
from goblin.web import asgi
from goblin.wiring import billing as billing_wiring
from goblin.wiring import process


@functions_framework.aio.http
@asgi.answers_errors
async def on_budget_exceeded(request: Request) -> Response:
    await process.verify_caller(request.headers.get("authorization"))
    event = events.parse_event(request.headers, await asgi.read_body(request, events.PUSH_BYTES_MAX))
    await budgets.follow(event, billing_wiring.budgets())
    return Response(status_code=204)
