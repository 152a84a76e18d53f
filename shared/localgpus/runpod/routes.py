"""The HTTP API: `/v2/…` of `api.runpod.io`, and version 1, which answers 410."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from httpguard import Limits, Refusal, check_json, read_body, whole_number
from localgpus.runpod import checks, views
from localgpus.runpod.faults import PAGE, Fault, Faults
from localgpus.runpod.market import Market
from localgpus.runpod.pods import Cloud, Pod
from localgpus.runpod.problems import NO_INSTANCES, Problem
from localgpus.runpod.quota import Quota

LIMITS = Limits(body_bytes=1024 * 1024)
PAGE_MAX = 1000
ALL, READS = "all", "reads"
"""The rights of a key."""

Handler = Callable[[Request], Awaitable[Response]]


@dataclass
class Api:
    """One account's API with its keys, quota and injected faults."""

    market: Market
    keys: Mapping[str, str]
    """Rights by key: `all` or `reads`."""
    quota: Quota = field(default_factory=Quota)
    faults: Faults = field(default_factory=Faults)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of the latest requests with a valid key."""

    def routes(self) -> list[Route]:
        """List the routes, from the root of the host."""
        table: tuple[tuple[str, dict[str, Handler]], ...] = (
            ("/account/ssh-keys", {"GET": self._ssh_keys}),
            ("/pods", {"GET": self._list, "POST": self._create}),
            ("/pods/{id}", {"GET": self._show, "DELETE": self._delete}),
            ("/pods/{id}/action", {"POST": self._act}),
            ("/catalog/gpus", {"GET": self._gpus}),
            ("/catalog/gpus/{id:path}", {"GET": self._gpu}),
            ("/billing", {"GET": self._billing}),
            ("/billing/pods", {"GET": self._pod_billing}),
            ("/serverless", {"GET": self._none("endpoints")}),
            ("/clusters", {"GET": self._none("clusters"), "POST": self._no_cluster}),
            ("/network-volumes", {"GET": self._none("networkVolumes")}),
            ("/templates", {"GET": self._none("templates")}),
            ("/registries", {"GET": self._none("registries")}),
            ("/{rest:path}", {}),
        )
        served = [Route(f"/v2{path}", self._guarded(handlers), methods=_METHODS) for path, handlers in table]
        return [*served, Route("/v1/{rest:path}", _ended, methods=_METHODS)]

    def _guarded(self, handlers: Mapping[str, Handler]) -> Handler:
        async def answer(request: Request) -> Response:
            headers: dict[str, str] = {}
            try:
                self._know(request)
                self.asked = [*self.asked[-999:], (request.method, request.url.path)]
                headers, refused = self.quota.take(self.market.clock())
                if refused is not None:
                    raise Problem(429, f"rate limit exceeded for the {refused} window")
                fault = self.faults.take(request.method, request.url.path)
                if fault is not None and not fault.applied:
                    return _broken(fault)
                handler = handlers.get(request.method)
                if handler is None:
                    raise _no_such(request, handlers)
                response = await handler(request)
                if fault is not None:
                    return _broken(fault)
            except Problem as problem:
                response = _refusal(problem)
            response.headers.update(headers)
            return response

        return answer

    def _know(self, request: Request) -> None:
        sent = request.headers.get("authorization", "")
        if not sent.startswith("Bearer "):
            raise Problem(401, "missing bearer token")
        key = sent.removeprefix("Bearer ").encode()
        # Every key is compared, so that the time taken does not reveal which one was close.
        may = [rights for known, rights in self.keys.items() if hmac.compare_digest(known.encode(), key)]
        if not may:
            raise Problem(401, "invalid bearer token")
        if request.method != "GET" and may[0] != ALL:
            raise Problem(403, "access denied")

    # Pods.

    async def _list(self, request: Request) -> Response:
        pods = await asyncio.to_thread(self.market.pods)
        query, size = request.query_params, self.market.terms.page
        if "limit" in query:
            size = _whole(query["limit"], "limit")
            if size > PAGE_MAX:
                raise Problem(422, "Request validation failed.", errors=[f"limit: must be at most {PAGE_MAX}"])
        start = _after(query.get("cursor"), pods)
        if size is None and "cursor" not in query:
            return JSONResponse({"pods": self._shown(pods)})
        page = pods[start : start + (size or PAGE_MAX)]
        more = start + len(page) < len(pods)
        cursor = _cursor(page[-1]) if more else None
        return JSONResponse({"pods": self._shown(page), "pagination": {"nextCursor": cursor, "hasNextPage": more}})

    def _shown(self, pods: list[Pod]) -> list[dict[str, Any]]:
        now = self.market.clock()
        return [views.pod(pod, now, running_at_once=self.market.terms.running_at_once) for pod in pods]

    async def _create(self, request: Request) -> Response:
        body = await _body(request, checks.Create)
        pod = await asyncio.to_thread(self.market.create, body)
        return JSONResponse(self._shown([pod])[0], HTTPStatus.CREATED)

    async def _show(self, request: Request) -> Response:
        pod = await asyncio.to_thread(self.market.pod, request.path_params["id"])
        return JSONResponse(self._shown([pod])[0])

    async def _delete(self, request: Request) -> Response:
        await asyncio.to_thread(self.market.delete, request.path_params["id"])
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def _act(self, request: Request) -> Response:
        action = (await _body(request, checks.Act)).action
        pod = await asyncio.to_thread(self.market.act, request.path_params["id"], action)
        if action == "terminate":
            return Response(status_code=HTTPStatus.NO_CONTENT)
        return JSONResponse(self._shown([pod])[0])

    # The catalogue.

    async def _gpus(self, request: Request) -> Response:
        asked = _asked(request)
        stock = await asyncio.to_thread(self.market.catalogue)
        return JSONResponse({"gpus": [views.gpu(one, asked) for one in stock]})

    async def _gpu(self, request: Request) -> Response:
        asked = _asked(request)
        for one in await asyncio.to_thread(self.market.catalogue):
            if one.id == request.path_params["id"]:
                return JSONResponse(views.gpu(one, asked))
        raise Problem(404, "gpu type not found")

    # Money.

    async def _billing(self, request: Request) -> Response:
        window = views.window(request.query_params, self.market.clock())
        spans = await asyncio.to_thread(self.market.spans)
        return JSONResponse(views.bill(spans, window, known_until=self._known_until()))

    async def _pod_billing(self, request: Request) -> Response:
        window = views.window(request.query_params, self.market.clock())
        spans = await asyncio.to_thread(self.market.spans)
        pod_id = request.query_params.get("podId")
        return JSONResponse(views.pod_bill(spans, window, known_until=self._known_until(), pod_id=pod_id))

    def _known_until(self) -> int:
        return int(self.market.clock() - self.market.terms.billing_late_s)

    # The rest.

    async def _ssh_keys(self, request: Request) -> Response:
        return JSONResponse({"keys": []})

    def _none(self, name: str) -> Handler:
        async def answer(request: Request) -> Response:
            return JSONResponse({name: []})

        return answer

    async def _no_cluster(self, request: Request) -> Response:
        raise Problem(400, NO_INSTANCES)


def routes(market: Market, *, keys: Mapping[str, str], limits: bool = True) -> list[Route]:
    """Build the API's routes over a market, to be served from the root of a host.

    Args:
        market: The account.
        keys: Rights by key: `all` or `reads`.
        limits: Whether too many requests get 429.
    """
    return Api(market, keys, quota=Quota() if limits else Quota(windows=())).routes()


_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


async def _ended(request: Request) -> Response:
    return _refusal(Problem(410, "REST API v1 has been retired. Use https://api.runpod.io/v2."))


def _refusal(problem: Problem) -> Response:
    return JSONResponse(problem.body(), problem.status, headers=problem.headers, media_type="application/problem+json")


def _no_such(request: Request, handlers: Mapping[str, Handler]) -> Problem:
    if not handlers:
        return Problem(404, "resource not found")
    detail = "The requested method is not allowed for this path."
    return Problem(405, detail, headers={"Allow": ", ".join(sorted(handlers))})


def _broken(fault: Fault) -> Response:
    if fault.status is None:
        return StreamingResponse(_breaks_off(), headers={"content-length": "4096"}, media_type="application/json")
    if fault.html:
        return HTMLResponse(PAGE.format(fault.status), fault.status, headers=fault.headers)
    return _refusal(Problem(fault.status, fault.detail, headers=fault.headers))


async def _breaks_off() -> AsyncIterator[bytes]:
    yield b'{"id": "'
    raise ConnectionError("broken off on purpose")


T = TypeVar("T")


async def _body(request: Request, kind: type[T]) -> T:
    try:
        data = await read_body(request.headers, request.receive, LIMITS)
        check_json(data)
    except Refusal as refusal:
        raise Problem(refusal.status, refusal.message) from None
    try:
        return checks.read(data, kind)
    except checks.Invalid as invalid:
        raise Problem(422, "Request validation failed.", errors=invalid.violations) from invalid
    except msgspec.DecodeError as error:
        raise Problem(400, "request could not be processed") from error


def _asked(request: Request) -> views.Asked:
    """Parse the query of a catalogue request. Raises `Problem`."""
    query = request.query_params
    with_stock = "AVAILABILITY" in query.get("include", "").split(",")
    if with_stock != ("product" in query):
        raise Problem(400, "include=AVAILABILITY and product must be given together")
    if not with_stock and ({"count", "cloud"} & set(query)):
        raise Problem(400, "count and cloud are valid only with include=AVAILABILITY")
    products = query.get("product", "POD").split(",")
    if unknown := set(products) - {"POD", "CLUSTER", "SERVERLESS"}:
        raise Problem(422, "Request validation failed.", errors=[f"product: unknown value {min(unknown)!r}"])
    cloud = query.get("cloud", Cloud.SECURE)
    if cloud not in tuple(Cloud):
        raise Problem(422, "Request validation failed.", errors=[f"cloud: unknown value {cloud!r}"])
    count = _whole(query.get("count", "1"), "count")
    return views.Asked(with_stock=with_stock, pods="POD" in products, cloud=Cloud(cloud), count=count)


def _whole(text: str, name: str) -> int:
    if not (found := whole_number(text, 10**6)):
        raise Problem(422, "Request validation failed.", errors=[f"{name}: must be a positive integer"])
    return found


def _cursor(pod: Pod) -> str:
    return base64.urlsafe_b64encode(json.dumps([pod.created_at, pod.id]).encode()).decode()


def _after(cursor: str | None, pods: list[Pod]) -> int:
    """Return the index where the page begins. Pods created or deleted since do not shift it."""
    if cursor is None:
        return 0
    try:
        at, last = json.loads(base64.urlsafe_b64decode(cursor))
        return sum((pod.created_at, pod.id) <= (float(at), str(last)) for pod in pods)
    except (ValueError, TypeError, binascii.Error) as error:
        raise Problem(422, "Request validation failed.", errors=["cursor: invalid"]) from error
