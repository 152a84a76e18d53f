"""HTTP `/webhooks/vastai`: signed webhook events of Vast.ai about instances; a reason to look, never a fact."""

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
    """Handle a webhook event (`POST /webhooks/vastai`): reconcile if it may concern an instance of ours.

    Caller: Vast.ai; the body is signed (HMAC-SHA256) with the secret in `VASTAI_WEBHOOK_SECRET`.

    Answers 204 when done, also for an event seen before or one that is of no interest; 400 for an invalid body; 403 for
    a wrong signature or a time more than 300 seconds off; 404 if no secret is configured; 405 for a method other than
    POST; 413 for a body over 64 KiB; 503 when a store does not answer, so that Vast.ai sends it again.
    """
    secret = await job_wiring.webhook_secret(vast_webhooks.VARIABLE)
    if request.method != "POST":
        raise MethodNotAllowed("Webhook events must be sent with POST.")
    body = await asgi.read_body(request, vast_webhooks.BODY_BYTES_MAX)
    event = vast_webhooks.read_hint(request.headers, body, secret=secret, now=time.time())
    await webhooks.follow(event, job_wiring.jobs(), job_wiring.webhook_events())
    return Response(status_code=204)
