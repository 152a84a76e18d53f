"""Scheduled, every minute: publish promotion events that are still due, and bring model servers in line.

A restarted model server loads its promoted model again; until then it serves the model that it was started with.
"""

from __future__ import annotations

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from goblin.registry import rollout
from goblin.web import asgi
from goblin.wiring import process
from goblin.wiring import registry as registry_wiring


@functions_framework.aio.http
@asgi.answers_errors
async def serve_promoted(request: Request) -> Response:
    """Run the schedule `serve-promoted` (POST, every minute): publish due events, bring model servers in line.

    Caller: Cloud Scheduler, with Google's OIDC token of our own service account.

    Answers 204; 401 or 403 for a wrong token; 500 for an internal error; 503 when a model server, a store, Pub/Sub or
    Google's certificates do not answer.
    """
    await process.verify_caller(request.headers.get("authorization"))
    await rollout.tick(registry_wiring.rollout())
    return Response(status_code=204)
