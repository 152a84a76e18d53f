"""HTTP `/jobs`, `/budgets`, `/webhooks`: jobs with an API key, the worker API with an attempt token, Vast.ai's events.

They share one public host, apart from the gateway: heartbeats come every ten seconds and must not keep it awake.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from goblin.billing import budgets
from goblin.core import events
from goblin.core.errors import Forbidden, InvalidRequest, NotFound, Unauthenticated
from goblin.gateway.ports import Scope
from goblin.jobs import attempt_logs, reconcile, webhooks, worker_api
from goblin.jobs import lifecycle as service
from goblin.jobs.lifecycle import JobDeps
from goblin.providers.vastai import webhooks as vast_webhooks
from goblin.web import asgi, jobs_schema
from goblin.wiring import billing as billing_wiring
from goblin.wiring import gateway as gateway_wiring
from goblin.wiring import jobs as job_wiring

LISTED_MAX = 200


async def _person(request: Request) -> str:
    """Check the API key and return its name. An attempt token is for the gateway and its own job, not for this.

    Raises:
        Unauthenticated: No key, or an invalid one (401).
        Forbidden: A key without scope `jobs`, or an attempt token (403).
        RateLimited: Too many keys are being looked up (429).
        StoreUnavailable: The key store does not answer (503).
    """
    authorization = request.headers.get("authorization")
    key = await gateway_wiring.gateway().keys.authenticate(authorization, Scope.JOBS)
    if worker_api.is_token(_bearer(request)):
        raise Forbidden("An attempt token may not do this. Send an API key with the scope `jobs`.")
    return key.name


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("A token is missing: send `Authorization: Bearer TOKEN`.", code="missing_api_key")
    return token.strip()


@asgi.answers_errors
async def submit(request: Request) -> Response:
    """Answer `POST /jobs`: store a job, reconcile it, and return it.

    Caller: an API key with scope `jobs`. Answers 202, also for a job that is refused in its state; 400 for an invalid
    specification; 409 for a job id with another specification; 413 for a too large body; 401, 403, 429, 503 as
    `_person`; 500 for an internal error.
    """
    await _person(request)
    # The parser checks encoding and nesting here, because its refusal names the field.
    body = await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX, is_json=False)
    spec = jobs_schema.parse(events.JobRequested, body)
    job = await service.submit(spec, job_wiring.jobs())
    await reconcile.reconcile(job_wiring.jobs(), only=job.job_id)
    return asgi.json_response(jobs_schema.job(await service.show(job.job_id, job_wiring.jobs())), status=202)


@asgi.answers_errors
async def list_jobs(request: Request) -> Response:
    """Answer `GET /jobs?limit=50` with the newest jobs; `limit` is 1 to 200.

    Caller: an API key with scope `jobs`. Answers 200; 400 for an invalid limit; 401, 403, 429, 503 as `_person`.
    """
    await _person(request)
    limit = request.query_params.get("limit", "50")
    if not (limit.isdecimal() and len(limit) < 10 and 1 <= int(limit) <= LISTED_MAX):
        raise InvalidRequest(f"The limit must be a number from 1 to {LISTED_MAX}.", param="limit")
    found = await service.recent(int(limit), job_wiring.jobs())
    return asgi.json_response({"object": "list", "data": [jobs_schema.job(job) for job in found]})


@asgi.answers_errors
async def show(request: Request) -> Response:
    """Answer `GET /jobs/{job_id}` with one job.

    Caller: an API key with scope `jobs`. Answers 200; 404 for an unknown job; 401, 403, 429, 503 as `_person`.
    """
    await _person(request)
    return asgi.json_response(jobs_schema.job(await service.show(request.path_params["job_id"], job_wiring.jobs())))


@asgi.answers_errors
async def cancel(request: Request) -> Response:
    """Answer `POST /jobs/{job_id}/cancel`: cancel a job and return it.

    Caller: an API key with scope `jobs`. Answers 200; 404 for an unknown job; 409 when it is too late to cancel; 401,
    403, 429, 503 as `_person`.
    """
    name = await _person(request)
    job = await service.cancel(request.path_params["job_id"], job_wiring.jobs(), by=name)
    return asgi.json_response(jobs_schema.job(job))


@asgi.answers_errors
async def show_log(request: Request) -> Response:
    """Answer `GET /jobs/{job_id}/logs?attempt=N` with the end of an attempt's log; by default of the last attempt.

    Caller: an API key with scope `jobs`. Answers 200; 400 for an invalid attempt; 404 for an unknown job or attempt;
    401, 403, 429, 503 as `_person`.
    """
    await _person(request)
    attempt = request.query_params.get("attempt")
    if attempt is not None and not (attempt.isdecimal() and len(attempt) < 10):
        raise InvalidRequest("The attempt must be a number with at most 9 digits.", param="attempt")
    found = await attempt_logs.read(request.path_params["job_id"], int(attempt) if attempt else None, job_wiring.jobs())
    return asgi.json_response(jobs_schema.log(found.attempt, found.text, whole=found.whole))


Work = Callable[[str, str, Request, JobDeps], Awaitable[object]]


def _attempt(work: Work) -> Callable[[Request], Awaitable[Response]]:
    """Build a route for the host of an attempt: its job from the path, its token from the header.

    Caller: the host of the job's current attempt, with the attempt token as `Authorization: Bearer`.

    Answers 200; 400 for an invalid body; 401 without a token; 403 with code `attempt_over` for a token of another
    attempt; 404 for an unknown job; 409 with code `attempt_over` when the attempt is over, with `untrue` for an invalid
    report; 413 for a too large body; 500 for an internal error; 503 when the job changed meanwhile or a store does not
    answer: try again.
    """

    @asgi.answers_errors
    async def route(request: Request) -> Response:
        return asgi.json_response(
            await work(request.path_params["job_id"], _bearer(request), request, job_wiring.jobs())
        )

    return route


async def claim(job_id: str, token: str, _: Request, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/claim`: begin the attempt, or begin again after a restart; return its assignment.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`.
    """
    return jobs_schema.assignment(await worker_api.claim(job_id, token, deps))


async def inputs(job_id: str, token: str, _: Request, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/inputs` with new signed requests for the inputs, when the first ones have expired.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`.
    """
    return jobs_schema.inputs(await worker_api.inputs(job_id, token, deps))


async def heartbeat(job_id: str, token: str, request: Request, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/heartbeat`: prolong the attempt lease, store the worker report; return the reply.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`.
    """
    beat = jobs_schema.parse(jobs_schema.HeartbeatBody, await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX))
    return jobs_schema.standing(await worker_api.heartbeat(job_id, token, beat.step, deps, told=beat.told()))


async def begin_checkpoint(job_id: str, token: str, request: Request, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/checkpoints` with an upload id and a signed request for each file.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`.
    """
    said = jobs_schema.parse(jobs_schema.BeginCheckpointBody, await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX))
    files = [file.artifact() for file in said.files]
    upload_id, grants = await worker_api.begin_checkpoint(job_id, token, said.step, files, deps)
    return {
        "upload_id": upload_id,
        "grants": {name: jobs_schema.signed_request(grant) for name, grant in grants.items()},
    }


async def commit_checkpoint(job_id: str, token: str, request: Request, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/checkpoints/{step}/commit`: verify the uploaded files and write the manifest.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`.
    """
    said = jobs_schema.parse(
        jobs_schema.CommitCheckpointBody, await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX)
    )
    step = request.path_params["step"]
    if not (step.isdecimal() and len(step) < 19):
        raise NotFound("There is no such step.")
    saved = await worker_api.commit_checkpoint(
        job_id, token, int(step), said.previous_step, said.upload_id,
        [file.artifact() for file in said.files], deps, loss=said.loss,
    )  # fmt: skip
    return jobs_schema.checkpoint(saved)


async def log_piece(job_id: str, token: str, request: Request, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/logs` with a signed request to upload one piece of the attempt's log.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`.
    """
    said = jobs_schema.parse(jobs_schema.LogPieceBody, await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX))
    given = await worker_api.log_piece(job_id, token, said.number, size=said.size, crc32c=said.crc32c, deps=deps)
    return jobs_schema.signed_request(given)


async def finish(job_id: str, token: str, request: Request, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/finish`: all work is checkpointed; reconcile the job. A second call is no error.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`; 409 also when the
    last step is not checkpointed.
    """
    said = jobs_schema.parse(jobs_schema.FinishBody, await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX))
    await worker_api.finish(job_id, token, deps, step=said.step)
    await reconcile.reconcile(deps, only=job_id)
    return {"state": (await service.show(job_id, deps)).state}


async def withdraw(job_id: str, token: str, request: Request, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/withdraw`: the host is taken away, the job goes on elsewhere at once.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`.
    """
    said = jobs_schema.parse(jobs_schema.ReasonBody, await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX))
    job = await worker_api.withdraw(job_id, token, said.reason, deps, step=said.step)
    await reconcile.reconcile(deps, only=job_id)
    return {"state": job.state}


async def fail(job_id: str, token: str, request: Request, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/fail`: end the attempt with an error that a new attempt would meet too.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`; 400 also without a
    reason.
    """
    said = jobs_schema.parse(jobs_schema.ReasonBody, await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX))
    return {"state": (await worker_api.fail(job_id, token, said.reason, deps)).state}


@asgi.answers_errors
async def show_budgets(request: Request) -> Response:
    """Answer `GET /budgets` with every limit and its usage, as JSON. Set them with `goblin budget set`.

    Caller: an API key with scope `operate`. Answers 200; 401 without a valid key; 403 for a key without the scope; 429
    while too many keys are looked up; 503 when Firestore does not answer.
    """
    await gateway_wiring.gateway().keys.authenticate(request.headers.get("authorization"), Scope.OPERATE)
    return asgi.json_response(await budgets.overview(billing_wiring.budgets()))


@asgi.answers_errors
async def vast_webhook(request: Request) -> Response:
    """Handle a webhook event (`POST /webhooks/vastai`): reconcile if it may concern an instance of ours.

    Caller: Vast.ai; the body is signed (HMAC-SHA256) with the secret in `VASTAI_WEBHOOK_SECRET`. Answers 204 when done,
    also for an event seen before or one that is of no interest; 400 for an invalid body; 403 for a wrong signature or a
    time more than 300 seconds off; 404 if no secret is configured; 413 for a body over 64 KiB; 503 when a store does
    not answer, so that Vast.ai sends it again.
    """
    secret = await job_wiring.webhook_secret(vast_webhooks.VARIABLE)
    body = await asgi.read_body(request, vast_webhooks.BODY_BYTES_MAX)
    event = vast_webhooks.read_event(request.headers, body, secret=secret, now=time.time())
    await webhooks.follow(event, job_wiring.jobs(), job_wiring.webhook_events())
    return Response(status_code=204)


_router = asgi.routed(
    [
        Route("/jobs", submit, methods=["POST"]),
        Route("/jobs", list_jobs, methods=["GET"]),
        Route("/jobs/{job_id}", show, methods=["GET"]),
        Route("/jobs/{job_id}/cancel", cancel, methods=["POST"]),
        Route("/jobs/{job_id}/claim", _attempt(claim), methods=["POST"]),
        Route("/jobs/{job_id}/inputs", _attempt(inputs), methods=["POST"]),
        Route("/jobs/{job_id}/heartbeat", _attempt(heartbeat), methods=["POST"]),
        Route("/jobs/{job_id}/checkpoints", _attempt(begin_checkpoint), methods=["POST"]),
        Route("/jobs/{job_id}/checkpoints/{step}/commit", _attempt(commit_checkpoint), methods=["POST"]),
        Route("/jobs/{job_id}/logs", show_log, methods=["GET"]),
        Route("/jobs/{job_id}/logs", _attempt(log_piece), methods=["POST"]),
        Route("/jobs/{job_id}/finish", _attempt(finish), methods=["POST"]),
        Route("/jobs/{job_id}/withdraw", _attempt(withdraw), methods=["POST"]),
        Route("/jobs/{job_id}/fail", _attempt(fail), methods=["POST"]),
        Route("/budgets", show_budgets, methods=["GET"]),
        Route("/webhooks/vastai", vast_webhook, methods=["POST"]),
    ],
)


@functions_framework.aio.http
async def jobs(request: Request) -> Response:
    """Route a request to `/jobs` or below.

    Caller: an API key with scope `jobs`, or an attempt token, as each route says. Answers 404 for an unknown path and
    405 for a wrong method, else as the route says.
    """
    return asgi.Delegated(_router)
