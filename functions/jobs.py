"""HTTP `/jobs`: submit, list, show, cancel, read a log, with an API key; what a rented host asks with its token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import functions_framework.aio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from goblin.core import events
from goblin.core.errors import Forbidden, InvalidRequest, Unauthenticated
from goblin.gateway.ports import Scope
from goblin.jobs import attempt_logs, reconcile, worker_api
from goblin.jobs import lifecycle as service
from goblin.jobs.lifecycle import JobDeps
from goblin.web import asgi, jobs_schema
from goblin.wiring import gateway as gateway_wiring
from goblin.wiring import jobs as job_wiring

LISTED_MAX = 200


async def _person(request: Request) -> str:
    """The name of the API key; an attempt's token opens the gateway and its own job, never this."""
    authorization = request.headers.get("authorization")
    key = await gateway_wiring.gateway().keys.authenticate(authorization, Scope.JOBS)
    if worker_api.is_token(_bearer(request)):
        raise Forbidden("an attempt's token may not do this")
    return key.name


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("send `Authorization: Bearer TOKEN`", code="missing_api_key")
    return token.strip()


@asgi.answers_errors
async def submit(request: Request) -> Response:
    await _person(request)
    spec = jobs_schema.parse(events.JobRequested, await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX))
    job = await service.submit(spec, job_wiring.jobs())
    await reconcile.reconcile(job_wiring.jobs(), only=job.job_id)
    return asgi.json_response(jobs_schema.job(await service.show(job.job_id, job_wiring.jobs())), status=202)


@asgi.answers_errors
async def list_jobs(request: Request) -> Response:
    await _person(request)
    limit = request.query_params.get("limit", "50")
    if not limit.isdigit() or not 1 <= int(limit) <= LISTED_MAX:
        raise InvalidRequest(f"limit is 1 to {LISTED_MAX}", param="limit")
    found = await service.recent(int(limit), job_wiring.jobs())
    return asgi.json_response({"object": "list", "data": [jobs_schema.job(job) for job in found]})


@asgi.answers_errors
async def show(request: Request) -> Response:
    await _person(request)
    return asgi.json_response(jobs_schema.job(await service.show(request.path_params["job_id"], job_wiring.jobs())))


@asgi.answers_errors
async def cancel(request: Request) -> Response:
    name = await _person(request)
    job = await service.cancel(request.path_params["job_id"], job_wiring.jobs(), by=name)
    return asgi.json_response(jobs_schema.job(job))


@asgi.answers_errors
async def show_log(request: Request) -> Response:
    await _person(request)
    attempt = request.query_params.get("attempt")
    if attempt is not None and not (attempt.isdecimal() and len(attempt) < 10):
        raise InvalidRequest("attempt is a number", param="attempt")
    found = await attempt_logs.read(request.path_params["job_id"], int(attempt) if attempt else None, job_wiring.jobs())
    return asgi.json_response(jobs_schema.log(found.attempt, found.text, whole=found.whole))


Work = Callable[[str, str, Request, JobDeps], Awaitable[object]]


def _attempt(work: Work) -> Callable[[Request], Awaitable[Response]]:
    """A route for the host of an attempt: its job from the path, its token from the header."""

    @asgi.answers_errors
    async def route(request: Request) -> Response:
        return asgi.json_response(
            await work(request.path_params["job_id"], _bearer(request), request, job_wiring.jobs())
        )

    return route


async def claim(job_id: str, token: str, _: Request, deps: JobDeps) -> object:
    return jobs_schema.assignment(await worker_api.claim(job_id, token, deps))


async def inputs(job_id: str, token: str, _: Request, deps: JobDeps) -> object:
    return jobs_schema.inputs(await worker_api.inputs(job_id, token, deps))


async def heartbeat(job_id: str, token: str, request: Request, deps: JobDeps) -> object:
    beat = jobs_schema.parse(jobs_schema.HeartbeatBody, await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX))
    return jobs_schema.standing(await worker_api.heartbeat(job_id, token, beat.step, deps, told=beat.told()))


async def begin_checkpoint(job_id: str, token: str, request: Request, deps: JobDeps) -> object:
    said = jobs_schema.parse(jobs_schema.BeginCheckpointBody, await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX))
    files = [file.artifact() for file in said.files]
    upload_id, grants = await worker_api.begin_checkpoint(job_id, token, said.step, files, deps)
    return {
        "upload_id": upload_id,
        "grants": {name: jobs_schema.signed_request(grant) for name, grant in grants.items()},
    }


async def commit_checkpoint(job_id: str, token: str, request: Request, deps: JobDeps) -> object:
    said = jobs_schema.parse(
        jobs_schema.CommitCheckpointBody, await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX)
    )
    saved = await worker_api.commit_checkpoint(
        job_id, token, request.path_params["step"], said.previous_step, said.upload_id,
        [file.artifact() for file in said.files], deps, loss=said.loss,
    )  # fmt: skip
    return jobs_schema.checkpoint(saved)


async def log_piece(job_id: str, token: str, request: Request, deps: JobDeps) -> object:
    said = jobs_schema.parse(jobs_schema.LogPieceBody, await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX))
    given = await worker_api.log_piece(job_id, token, said.number, size=said.size, crc32c=said.crc32c, deps=deps)
    return jobs_schema.signed_request(given)


async def finish(job_id: str, token: str, request: Request, deps: JobDeps) -> object:
    said = jobs_schema.parse(jobs_schema.FinishBody, await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX))
    await worker_api.finish(job_id, token, deps, step=said.step)
    await reconcile.reconcile(deps, only=job_id)
    return {"state": (await service.show(job_id, deps)).state}


async def withdraw(job_id: str, token: str, request: Request, deps: JobDeps) -> object:
    said = jobs_schema.parse(jobs_schema.ReasonBody, await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX))
    job = await worker_api.withdraw(job_id, token, said.reason, deps, step=said.step)
    await reconcile.reconcile(deps, only=job_id)
    return {"state": job.state}


async def fail(job_id: str, token: str, request: Request, deps: JobDeps) -> object:
    said = jobs_schema.parse(jobs_schema.ReasonBody, await asgi.read_body(request, jobs_schema.BODY_BYTES_MAX))
    return {"state": (await worker_api.fail(job_id, token, said.reason, deps)).state}


_router = Starlette(
    routes=[
        Route("/jobs", submit, methods=["POST"]),
        Route("/jobs", list_jobs, methods=["GET"]),
        Route("/jobs/{job_id}", show, methods=["GET"]),
        Route("/jobs/{job_id}/cancel", cancel, methods=["POST"]),
        Route("/jobs/{job_id}/claim", _attempt(claim), methods=["POST"]),
        Route("/jobs/{job_id}/inputs", _attempt(inputs), methods=["POST"]),
        Route("/jobs/{job_id}/heartbeat", _attempt(heartbeat), methods=["POST"]),
        Route("/jobs/{job_id}/checkpoints", _attempt(begin_checkpoint), methods=["POST"]),
        Route("/jobs/{job_id}/checkpoints/{step:int}/commit", _attempt(commit_checkpoint), methods=["POST"]),
        Route("/jobs/{job_id}/logs", show_log, methods=["GET"]),
        Route("/jobs/{job_id}/logs", _attempt(log_piece), methods=["POST"]),
        Route("/jobs/{job_id}/finish", _attempt(finish), methods=["POST"]),
        Route("/jobs/{job_id}/withdraw", _attempt(withdraw), methods=["POST"]),
        Route("/jobs/{job_id}/fail", _attempt(fail), methods=["POST"]),
    ],
    exception_handlers={HTTPException: asgi.on_http_error},
)


@functions_framework.aio.http
async def jobs(request: Request) -> Response:
    return asgi.Delegated(_router)
