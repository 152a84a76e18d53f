"""HTTP `/jobs`, `/budgets`, `/dead-letters`, `/webhooks`: jobs, the worker API, dead letters, Vast.ai's events.

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
from goblin.core import dead_letters, events
from goblin.core.errors import InvalidRequest, NotFound, Unauthenticated
from goblin.gateway.ports import ApiKey, KeylessCaller, Scope
from goblin.jobs import attempt_logs, reconcile, webhooks, worker_api
from goblin.jobs import lifecycle as service
from goblin.jobs.domain.job import JobOwner
from goblin.jobs.lifecycle import JobDeps
from goblin.jobs.worker_api import AttemptToken
from goblin.providers.vastai import webhooks as vast_webhooks
from goblin.web import asgi, cors, doors, jobs_schema
from goblin.web import dead_letters as dead_letter_schema
from goblin.wiring import billing as billing_wiring
from goblin.wiring import dead_letters as dead_letter_wiring
from goblin.wiring import gateway as gateway_wiring
from goblin.wiring import jobs as job_wiring
from httpguard import whole_number

Visit = doors.Visit[ApiKey]
Host = doors.Visit[AttemptToken]
LISTED_MAX = 200
ATTEMPT_MAX = 10**9 - 1
STEP_MAX = 10**18 - 1


async def _identify(request: Request, *scopes: Scope) -> ApiKey:
    """Check the API key. An attempt token is for the gateway and its own job: it has no other scope."""
    return await gateway_wiring.gateway().keys.authenticate(request.headers.get("authorization"), *scopes)


def _key(*scopes: Scope) -> doors.Door[ApiKey]:
    """Build the door of callers whose API key has one of the scopes.

    Answers 401 without a valid key; 403 for a key without the scope; 429 over the key's rate, or while too many
    requests are under way; 503 when the key store does not answer.
    """
    return doors.Door(
        callers=f"an API key with scope {' or '.join(f'`{scope}`' for scope in scopes)}",
        identify=lambda request: _identify(request, *scopes),
        admission=lambda: gateway_wiring.gateway().admission,
    )


async def _host(request: Request) -> AttemptToken:
    """Recognise an attempt token. Whether it is that of the job's current attempt is for the worker API to say."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("A token is missing: send `Authorization: Bearer TOKEN`.", code="missing_api_key")
    return worker_api.recognise(token.strip(), request.path_params["job_id"])


async def _vast(request: Request) -> KeylessCaller:
    """Count the sender of a webhook event, before its signature is checked: the check reads a secret."""
    return VAST


VAST = KeylessCaller(counted_as="webhook:vastai", rate_per_minute=600, parallel_max=16)
_submitter, _viewer, _operator = _key(Scope.JOBS), _key(Scope.JOBS, Scope.OPERATE), _key(Scope.OPERATE)
_attempts = doors.Door(callers="the host of the job's current attempt", identify=_host, admission=job_wiring.keyless)
_webhooks = doors.Door(callers="Vast.ai, by its signature", identify=_vast, admission=job_wiring.keyless)


def _limit(visit: Visit, *, default: int, most: int) -> int:
    """Read how many items a list may have. Raises `InvalidRequest`."""
    found = whole_number(visit.request.query_params.get("limit", str(default)), most)
    if not found:
        raise InvalidRequest(f"The limit must be a number from 1 to {most}.", param="limit")
    return found


def _tenant(key: ApiKey) -> str | None:
    """Return whose jobs the key sees; None: everybody's."""
    return None if Scope.OPERATE in key.scopes else key.owner


async def submit(visit: Visit) -> Response:
    """Answer `POST /jobs`: store a job, reconcile it, and return it.

    Caller: an API key with scope `jobs`. Answers 202, also for a job that is refused in its state; 400 for an invalid
    specification; 409 for a job id with another specification; 413 for a too large body; 401, 403, 429, 503 as
    `_key`; 500 for an internal error.
    """
    # The parser checks encoding and nesting here, because its refusal names the field.
    spec = jobs_schema.parse(events.JobRequested, visit.body)
    key = visit.caller
    owner = JobOwner(
        tenant=key.owner, key_digest=key.digest, key_name=key.name, models=key.models, sees_all=_tenant(key) is None
    )
    job = await service.submit(spec, owner, job_wiring.jobs())
    await reconcile.reconcile(job_wiring.jobs(), only=job.job_id)
    shown = await service.show(job.job_id, job_wiring.jobs(), tenant=key.owner)
    return asgi.json_response(jobs_schema.job(shown), status=202)


async def list_jobs(visit: Visit) -> Response:
    """Answer `GET /jobs?limit=50` with the newest jobs; `limit` is 1 to 200.

    Caller: an API key with scope `jobs`, which sees its tenant's jobs, or `operate`, which sees all. Answers 200; 400
    for an invalid limit; 401, 403, 429, 503 as `_key`.
    """
    limit = _limit(visit, default=50, most=LISTED_MAX)
    found = await service.recent(limit, job_wiring.jobs(), tenant=_tenant(visit.caller))
    return asgi.json_response(jobs_schema.listing(found))


async def show(visit: Visit) -> Response:
    """Answer `GET /jobs/{job_id}` with one job.

    Caller: as `list_jobs`; a job of another tenant is unknown to it. Answers 200; 404 for an unknown job; 401, 403,
    429, 503 as `_key`.
    """
    job = await service.show(visit.request.path_params["job_id"], job_wiring.jobs(), tenant=_tenant(visit.caller))
    return asgi.json_response(jobs_schema.job(job))


async def cancel(visit: Visit) -> Response:
    """Answer `POST /jobs/{job_id}/cancel`: cancel a job and return it.

    Caller: as `list_jobs`; a job of another tenant is unknown to it. Answers 200; 404 for an unknown job; 409 when it
    is too late to cancel; 401, 403, 429, 503 as `_key`.
    """
    job = await service.cancel(
        visit.request.path_params["job_id"], job_wiring.jobs(), by=visit.caller.name, tenant=_tenant(visit.caller)
    )
    return asgi.json_response(jobs_schema.job(job))


async def show_log(visit: Visit) -> Response:
    """Answer `GET /jobs/{job_id}/logs?attempt=N` with the end of an attempt's log; by default of the last attempt.

    Caller: as `list_jobs`; a job of another tenant is unknown to it. Answers 200; 400 for an invalid attempt; 404 for
    an unknown job or attempt; 401, 403, 429, 503 as `_key`.
    """
    attempt = visit.request.query_params.get("attempt")
    number = None if attempt is None else whole_number(attempt, ATTEMPT_MAX)
    if attempt is not None and number is None:
        raise InvalidRequest("The attempt must be a number with at most 9 digits.", param="attempt")
    job_id = visit.request.path_params["job_id"]
    found = await attempt_logs.read(job_id, number, job_wiring.jobs(), tenant=_tenant(visit.caller))
    return asgi.json_response(jobs_schema.log(found.attempt, found.text, whole=found.whole))


Work = Callable[[Host, JobDeps], Awaitable[object]]


def _attempt(work: Work) -> doors.Handler:
    """Build a route for the host of an attempt: its job from the path, its token from the header.

    Caller: the host of the job's current attempt, with the attempt token as `Authorization: Bearer`.

    Answers 200; 400 for an invalid body; 401 without a token; 403 for an API key, and with code `attempt_over` for a
    token of another attempt or an unknown job; 409 with code `attempt_over` when the attempt is over, with `untrue` for
    an invalid report; 413 for a too large body; 429 over the token's rate; 500 for an internal error; 503 when the job
    changed meanwhile or a store does not answer: try again.
    """

    async def route(visit: Host) -> Response:
        return asgi.json_response(await work(visit, job_wiring.jobs()))

    return _attempts(route, body_bytes_max=jobs_schema.BODY_BYTES_MAX)


async def claim(visit: Host, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/claim`: begin the attempt, or begin again after a restart; return its assignment.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`.
    """
    return jobs_schema.assignment(await worker_api.claim(*visit.caller.pair, deps))


async def inputs(visit: Host, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/inputs` with new signed requests for the inputs, when the first ones have expired.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`.
    """
    return jobs_schema.inputs(await worker_api.inputs(*visit.caller.pair, deps))


async def heartbeat(visit: Host, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/heartbeat`: prolong the attempt lease, store the worker report; return the reply.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`.
    """
    beat = jobs_schema.parse(jobs_schema.HeartbeatBody, visit.body)
    return jobs_schema.standing(await worker_api.heartbeat(*visit.caller.pair, beat.step, deps, told=beat.told()))


async def begin_checkpoint(visit: Host, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/checkpoints` with an upload id and a signed request for each file.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`.
    """
    said = jobs_schema.parse(jobs_schema.BeginCheckpointBody, visit.body)
    files = [file.artifact() for file in said.files]
    upload_id, grants = await worker_api.begin_checkpoint(*visit.caller.pair, said.step, files, deps)
    return {
        "upload_id": upload_id,
        "grants": {name: jobs_schema.signed_request(grant) for name, grant in grants.items()},
    }


async def commit_checkpoint(visit: Host, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/checkpoints/{step}/commit`: verify the uploaded files and write the manifest.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`.
    """
    said = jobs_schema.parse(jobs_schema.CommitCheckpointBody, visit.body)
    step = whole_number(visit.request.path_params["step"], STEP_MAX)
    if step is None:
        raise NotFound("There is no such step.")
    saved = await worker_api.commit_checkpoint(
        visit.caller.job_id, visit.caller.token, step, said.previous_step, said.upload_id,
        [file.artifact() for file in said.files], deps, loss=said.loss,
    )  # fmt: skip
    return jobs_schema.checkpoint(saved)


async def log_piece(visit: Host, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/logs` with a signed request to upload one piece of the attempt's log.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`.
    """
    said = jobs_schema.parse(jobs_schema.LogPieceBody, visit.body)
    given = await worker_api.log_piece(
        visit.caller.job_id, visit.caller.token, said.number, size=said.size, crc32c=said.crc32c, deps=deps
    )
    return jobs_schema.signed_request(given)


async def finish(visit: Host, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/finish`: all work is checkpointed; reconcile the job. A second call is no error.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`; 409 also when the
    last step is not checkpointed.
    """
    said = jobs_schema.parse(jobs_schema.FinishBody, visit.body)
    await worker_api.finish(*visit.caller.pair, deps, step=said.step)
    await reconcile.reconcile(deps, only=visit.caller.job_id)
    return {"state": (await service.show(visit.caller.job_id, deps, tenant=None)).state}


async def withdraw(visit: Host, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/withdraw`: the host is taken away, the job goes on elsewhere at once.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`.
    """
    said = jobs_schema.parse(jobs_schema.ReasonBody, visit.body)
    job = await worker_api.withdraw(*visit.caller.pair, said.reason, deps, step=said.step)
    await reconcile.reconcile(deps, only=visit.caller.job_id)
    return {"state": job.state}


async def fail(visit: Host, deps: JobDeps) -> object:
    """Answer `POST /jobs/{job_id}/fail`: end the attempt with an error that a new attempt would meet too.

    Caller: the host of the current attempt, with its attempt token. Status codes: see `_attempt`; 400 also without a
    reason.
    """
    said = jobs_schema.parse(jobs_schema.ReasonBody, visit.body)
    return {"state": (await worker_api.fail(*visit.caller.pair, said.reason, deps)).state}


async def show_budgets(visit: Visit) -> Response:
    """Answer `GET /budgets` with every limit and its usage, as JSON. Set them with `goblin budget set`.

    Caller: an API key with scope `operate`. Answers 200; 401 without a valid key; 403 for a key without the scope; 429
    over the key's rate; 503 when Firestore does not answer.
    """
    return asgi.json_response(await budgets.overview(billing_wiring.budgets()))


async def list_dead_letters(visit: Visit) -> Response:
    """Answer `GET /dead-letters?topic=T&limit=100` with the dead letters, the oldest first; they stay where they are.

    Caller: an API key with scope `operate`. Answers 200 with `total` and `whole` (whether `total` counts all); 400 for
    an invalid limit; 404 for an unknown topic; 401, 403, 429 as `_key`; 503 when Pub/Sub does not answer.
    """
    limit = _limit(visit, default=100, most=dead_letters.PULLED_MAX)
    found = await dead_letters.list_letters(visit.request.query_params.get("topic"), dead_letter_wiring.box())
    return asgi.json_response(dead_letter_schema.listing(found, limit=limit))


async def replay_dead_letter(visit: Visit) -> Response:
    """Answer `POST /dead-letters/{topic}/{message_id}/replay`: publish the event again; return the letter as it was.

    Caller: as `list_dead_letters`. Answers 200; 400 for an event that cannot be parsed, unless `?force=true`; 404 for
    an unknown letter; 401, 403, 429, 503 as there.
    """
    topic, message_id = (visit.request.path_params[name] for name in ("topic", "message_id"))
    force = visit.request.query_params.get("force", "false")
    if force not in ("true", "false"):
        raise InvalidRequest("`force` is `true` or `false`.", param="force")
    found = await dead_letters.replay(topic, message_id, dead_letter_wiring.box(), force=force == "true")
    return asgi.json_response(dead_letter_schema.letter(found.replayed[0]))


async def drop_dead_letter(visit: Visit) -> Response:
    """Answer `POST /dead-letters/{topic}/{message_id}/drop`: delete the letter; return it as it was.

    Caller: as `list_dead_letters`. Answers 200; 404 for an unknown letter; 401, 403, 429, 503 as there.
    """
    topic, message_id = (visit.request.path_params[name] for name in ("topic", "message_id"))
    gone = await dead_letters.drop(topic, message_id, dead_letter_wiring.box())
    return asgi.json_response(dead_letter_schema.letter(gone))


async def vast_webhook(visit: doors.Visit[KeylessCaller]) -> Response:
    """Handle a webhook event (`POST /webhooks/vastai`): reconcile if it may concern an instance of ours.

    Caller: Vast.ai; the body is signed (HMAC-SHA256) with the secret in `VASTAI_WEBHOOK_SECRET`. Answers 204 when done,
    also for an event seen before or one that is of no interest; 400 for an invalid body; 403 for a wrong signature or a
    time more than 300 seconds off; 404 if no secret is configured; 413 for a body over 64 KiB; 429 for more than 600 a
    minute; 503 when a store does not answer, so that Vast.ai sends it again.
    """
    secret = await job_wiring.webhook_secret(vast_webhooks.VARIABLE)
    event = vast_webhooks.read_event(visit.request.headers, visit.body, secret=secret, now=time.time())
    await webhooks.follow(event, job_wiring.jobs(), job_wiring.webhook_events())
    return Response(status_code=204)


_router = doors.routed(
    [
        Route("/jobs", _submitter(submit, body_bytes_max=jobs_schema.BODY_BYTES_MAX, is_json=False), methods=["POST"]),
        Route("/jobs", _viewer(list_jobs), methods=["GET"]),
        Route("/jobs/{job_id}", _viewer(show), methods=["GET"]),
        Route("/jobs/{job_id}/cancel", _viewer(cancel), methods=["POST"]),
        Route("/jobs/{job_id}/claim", _attempt(claim), methods=["POST"]),
        Route("/jobs/{job_id}/inputs", _attempt(inputs), methods=["POST"]),
        Route("/jobs/{job_id}/heartbeat", _attempt(heartbeat), methods=["POST"]),
        Route("/jobs/{job_id}/checkpoints", _attempt(begin_checkpoint), methods=["POST"]),
        Route("/jobs/{job_id}/checkpoints/{step}/commit", _attempt(commit_checkpoint), methods=["POST"]),
        Route("/jobs/{job_id}/logs", _viewer(show_log), methods=["GET"]),
        Route("/jobs/{job_id}/logs", _attempt(log_piece), methods=["POST"]),
        Route("/jobs/{job_id}/finish", _attempt(finish), methods=["POST"]),
        Route("/jobs/{job_id}/withdraw", _attempt(withdraw), methods=["POST"]),
        Route("/jobs/{job_id}/fail", _attempt(fail), methods=["POST"]),
        Route("/dead-letters", _operator(list_dead_letters), methods=["GET"]),
        Route("/dead-letters/{topic}/{message_id}/replay", _operator(replay_dead_letter), methods=["POST"]),
        Route("/dead-letters/{topic}/{message_id}/drop", _operator(drop_dead_letter), methods=["POST"]),
        Route("/budgets", _operator(show_budgets), methods=["GET"]),
        Route(
            "/webhooks/vastai", _webhooks(vast_webhook, body_bytes_max=vast_webhooks.BODY_BYTES_MAX), methods=["POST"]
        ),
    ],
)


@functions_framework.aio.http
async def jobs(request: Request) -> Response:
    """Route a request to `/jobs` or below.

    Caller: an API key with scope `jobs`, or an attempt token, as each route says. Answers 404 for an unknown path and
    405 for a wrong method, else as the route says.
    """
    return await cors.served(request, gateway_wiring.origins, _answer)


async def _answer(request: Request) -> Response:
    return asgi.Delegated(_router)
