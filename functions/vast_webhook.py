"""HTTP `/webhooks/vastai`: what Vast.ai tells of instances, signed; a reason to look, never a fact."""

from __future__ import annotations

import time

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.core.errors import MethodNotAllowed
from goblin.jobs import webhooks
from goblin.providers.vastai import webhooks as vast_webhooks
from goblin.web import asgi
from goblin.wiring import jobs as job_wiring


@functions_framework.aio.http
@asgi.answers_errors
async def vast_webhook(request: Request) -> Response:
    secret = await job_wiring.webhook_secret(vast_webhooks.VARIABLE)
    if request.method != "POST":
        raise MethodNotAllowed("events are posted")
    body = await asgi.read_body(request, vast_webhooks.BODY_BYTES_MAX)
    event = vast_webhooks.read_hint(request.headers, body, secret=secret, now=time.time())
    await webhooks.follow(event, job_wiring.jobs(), job_wiring.webhook_events())
    return Response(status_code=204)
