"""Vast.ai's HTTP API: its paths with their trailing slashes, its errors in their several shapes."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from httpguard import Limits as RequestLimits
from httpguard import Refusal, read_body, whole_number
from localgpus.vast import hooks, renting, rows
from localgpus.vast.faults import Faults
from localgpus.vast.limits import Limits, QuotaExceeded, TooSoon
from localgpus.vast.market import UNAVAILABLE, Market
from localgpus.vast.renting import No
from localgpus.vast.state import Contract, Hook, Notice

LIMITS = RequestLimits(body_bytes=256 * 1024)
PAGE_MAX = 25
CHARGES_MAX = 100
ID_MAX = 10**15
CONTROLS = frozenset({"order", "type", "limit", "allocated_storage", "q", "select_cols"})
COMPUTED = frozenset({"dph_total", "storage_total_cost", "duration", "uptime_mins"})
"""Fields of an instance that cannot be filtered by."""

Call = Callable[["Ask"], Any]


class Ask:
    """One request with its whole body."""

    def __init__(self, request: Request, data: bytes) -> None:
        self.request = request
        self.data = data

    @property
    def query(self) -> Any:
        return self.request.query_params

    def number(self) -> int:
        """Return the id in the path; 0, which nothing has, if it is no number."""
        return whole_number(self.request.path_params["id"], ID_MAX) or 0

    def json(self) -> dict[str, Any]:
        """Parse the body, a JSON object. Raises `No`."""
        try:
            body = msgspec.json.decode(self.data or b"{}")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise No(400, "invalid_args", "error 400: body is no JSON") from error
        if not isinstance(body, dict):
            raise No(400, "invalid_args", "error 400: body is no object")
        return body

    def param(self, name: str, default: Any) -> Any:
        """Parse a JSON value of the query. Raises `No`."""
        try:
            return json.loads(self.query[name]) if name in self.query else default
        except (ValueError, RecursionError) as error:
            raise No(400, "invalid_request", f"{name} is no JSON") from error


class Api:
    """The routes of one market."""

    def __init__(self, market: Market, *, limits: Limits, faults: Faults) -> None:
        self.market = market
        self.limits = limits
        self.faults = faults

    def routes(self) -> list[Route]:
        """List the routes. A path without its trailing slash is another path and answers 404."""
        return [
            self._route("POST", "/api/v0/bundles/", "search", self._search, public=True),
            self._route("PUT", "/api/v0/search/asks/", "search", self._search, public=True),
            self._route("GET", "/api/v0/metrics/gpu/current/", "metrics", self._metrics),
            self._route("PUT", "/api/v0/asks/{id}/", "create", self._create),
            self._route("GET", "/api/v0/instances/", "list", self._ended),
            self._route("GET", "/api/v1/instances/", "list", self._list),
            self._route("GET", "/api/v0/instances/{id}/", "one", self._one),
            self._route("PUT", "/api/v0/instances/{id}/", "manage", self._manage),
            self._route("DELETE", "/api/v0/instances/{id}/", "destroy", self._destroy),
            self._route("PUT", "/api/v0/instances/bid_price/{id}/", "bid", self._bid),
            self._route("GET", "/api/v0/charges/", "charges", self._charges),
            self._route("GET", "/api/v0/users/current/", "user", self._user),
            self._route("GET", "/api/v0/notification-types/", "webhooks", self._kinds),
            self._route("GET", "/api/v0/webhooks/", "webhooks", self._hooks),
            self._route("POST", "/api/v0/webhooks/", "webhooks", self._add_hook),
            self._route("PUT", "/api/v0/webhooks/{id}/", "webhooks", self._change_hook),
            self._route("DELETE", "/api/v0/webhooks/{id}/", "webhooks", self._drop_hook),
            self._route("POST", "/api/v0/webhooks/{id}/test/", "webhooks", self._test_hook),
            self._route("POST", "/api/v0/webhooks/{id}/rotate-secret/", "webhooks", self._rotate),
        ]

    def _route(self, method: str, path: str, kind: str, call: Call, *, public: bool = False) -> Route:
        async def answer(request: Request) -> Response:
            try:
                data = await read_body(request.headers, request.receive, LIMITS)
            except Refusal as refusal:
                no = No(refusal.status, refusal.code, refusal.message)
                return JSONResponse(no.body, no.status)
            if fault := self.faults.take(kind, after=False):
                return Response(fault.body, fault.status, fault.headers)
            answered = self._answer(kind, call, Ask(request, data), public=public)
            if answered.status_code < 400 and (fault := self.faults.take(kind, after=True)):
                return Response(fault.body, fault.status, fault.headers)
            return answered

        return Route(path, answer, methods=[method])

    def _answer(self, kind: str, call: Call, ask: Ask, *, public: bool) -> Response:
        try:
            if not public:
                self._let_in(ask.request)
            self.limits.take(kind)
            with self.market.lock:
                self.market.tick()
                said = call(ask)
                if ask.request.method != "GET" and not public:
                    self.market.save()
            return JSONResponse(said)
        except No as no:
            return JSONResponse(no.body, no.status)
        except rows.BadFilter as error:
            return JSONResponse({"success": False, "error": "invalid_request", "msg": str(error)}, 400)
        except QuotaExceeded as error:
            return JSONResponse({"error": str(error)}, 429, {"x-ratelimit-reset": str(error.resets_at)})
        except TooSoon as error:
            # Vast.ai answers in two shapes, by call.
            if kind in ("create", "search"):
                return PlainTextResponse(str(error), 429)
            return JSONResponse({"detail": str(error)}, 429)

    def _let_in(self, request: Request) -> None:
        """Check the API key. Raises `No`: 403 for a missing key, 404 or 401 for a bad one."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if not key:
            raise No(403, "auth_error", "This action requires login")
        if scheme != "Bearer" or not any(hmac.compare_digest(key.encode(), good.encode()) for good in self.market.keys):
            raise No(404 if request.method == "GET" else 401, "auth_error", "Invalid user key")

    def _contract(self, ask: Ask) -> Contract:
        found = self.market.state.contracts.get(ask.number())
        if found is None:
            raise No(404, "no_such_instance", f"error 404: no_such_instance {ask.number()}")
        return found

    # Searching and renting.

    def _search(self, ask: Ask) -> Any:
        body = ask.json()
        body = body["q"] if isinstance(body.get("q"), dict) else body
        kind, limit, disk = body.get("type", "on-demand"), body.get("limit", 64), body.get("allocated_storage", 5.0)
        if kind not in ("on-demand", "ondemand", "bid", "interruptible", "reserved"):
            raise rows.BadFilter(f"unknown type {kind!r}")
        if not isinstance(limit, int) or limit < 1 or not isinstance(disk, int | float) or disk < 0:
            raise rows.BadFilter("limit and allocated_storage are numbers")
        found = rows.offers(self.market, bid=kind in ("bid", "interruptible"), disk_gb=disk)
        found = rows.matching(found, {name: value for name, value in body.items() if name not in CONTROLS})
        return {"offers": rows.ordered(found, body.get("order", [["score", "desc"]]))[:limit]}

    def _metrics(self, ask: Ask) -> Any:
        return {"success": True, "gpus": rows.gpu_metrics(self.market)}

    def _create(self, ask: Ask) -> Any:
        try:
            order = msgspec.convert(ask.json(), renting.Order)
        except msgspec.ValidationError as error:
            raise No(400, "invalid_args", f"error 400: {error}") from error
        try:
            contract = renting.rent(self.market, ask.number(), order)
        except No:
            self.market.save()
            raise
        return {"success": True, "new_contract": contract.id}

    # Instances.

    def _ended(self, ask: Ask) -> Any:
        raise No(410, "deprecated_endpoint", "This endpoint is deprecated. Use GET /api/v1/instances/ instead.")

    def _list(self, ask: Ask) -> Any:
        filters = ask.param("select_filters", {})
        if not isinstance(filters, dict) or COMPUTED & filters.keys():
            raise No(400, "invalid_request", "select_filters names a field that cannot be filtered")
        limit = whole_number(ask.query.get("limit", str(PAGE_MAX)), PAGE_MAX)
        start = whole_number(ask.query.get("after_token") or "0", ID_MAX)
        if not limit:
            raise No(400, "invalid_request", f"limit must be between 1 and {PAGE_MAX}")
        if start is None:
            raise No(400, "invalid_request", "after_token is not one of ours")
        every = [rows.instance(self.market, contract) for contract in self.market.state.contracts.values()]
        order = [(item["col"], item["dir"]) for item in ask.param("order_by", [{"col": "id", "dir": "asc"}])]
        found = [row for row in rows.ordered(rows.matching(every, filters), order) if row["id"] > start]
        page, counts = found[:limit], dict[str, int]()
        for row in every:
            if row["label"]:
                counts[row["label"]] = counts.get(row["label"], 0) + 1
        return {
            "success": True, "instances_found": len(page), "total_instances": len(every), "label_counts": counts,
            "next_token": str(page[-1]["id"]) if len(found) > len(page) else None, "instances": page,
        }  # fmt: skip

    def _one(self, ask: Ask) -> Any:
        found = self.market.state.contracts.get(ask.number())
        return {"instances": rows.instance(self.market, found) if found else None}

    def _manage(self, ask: Ask) -> Any:
        contract, body = self._contract(ask), ask.json()
        if "label" in body:
            contract.label = str(body["label"] or "")
        match body.get("state"):
            case "stopped":
                self.market.halt(contract)
            case "running" if not self.market.resume(contract):
                raise No(400, "resources_unavailable", UNAVAILABLE)
            case None | "running":
                pass
            case _:
                raise No(400, "invalid_args", "error 400: state is running or stopped")
        return {"success": True}

    def _destroy(self, ask: Ask) -> Any:
        self.market.destroy(self._contract(ask))
        return {"success": True, "msg": f"Destroyed instance {ask.number()}"}

    def _bid(self, ask: Ask) -> Any:
        contract, price = self._contract(ask), ask.json().get("price")
        most = 32.0 * contract.gpus
        if not isinstance(price, int | float) or not renting.BID_MIN <= price <= most:
            raise No(400, "invalid_price", f"Price must be between {renting.BID_MIN} and {most}")
        if contract.bid is None:
            raise No(400, "invalid_args", "error 400: not an interruptible instance")
        self.market.tick()
        contract.bid = float(price)
        self.market.settle_machine(self.market.state.machines[contract.machine_id], self.market.clock())
        return {"success": True}

    # Money.

    def _charges(self, ask: Ask) -> Any:
        filters = ask.param("select_filters", {})
        day = filters.get("day") if isinstance(filters, dict) else None
        if not isinstance(day, dict) or not {"gte", "lte"} <= day.keys():
            raise No(400, "invalid_request", "select_filters.day needs gte and lte")
        kinds = filters.get("type", {}).get("in", ["instance"])
        limit = whole_number(ask.query.get("limit", "20"), CHARGES_MAX)
        start = whole_number(ask.query.get("after_token") or "0", ID_MAX)
        if not limit or start is None:
            raise No(400, "invalid_request", f"limit must be between 1 and {CHARGES_MAX}")
        wanted = [m for m in self.market.state.meters if day["gte"] <= m.day <= day["lte"] and "instance" in kinds]
        page = wanted[start : start + limit]
        end = start + len(page)
        return {
            "success": True, "count": len(page), "total": len(wanted),
            "next_token": str(end) if end < len(wanted) else None, "results": [rows.charge(meter) for meter in page],
        }  # fmt: skip

    def _user(self, ask: Ask) -> Any:
        balance = self.market.state.balance
        return {"id": 1, "email": "renter@localhost", "balance": balance, "credit": balance, "sid": "1", "ssh_key": ""}

    # Webhooks.

    def _kinds(self, ask: Ask) -> Any:
        return {"success": True, "notification_types": [f"client:{kind}" for kind in hooks.KINDS]}

    def _hooks(self, ask: Ask) -> Any:
        return {"success": True, "webhooks": [_shown(hook) for hook in self.market.state.hooks.values()]}

    def _add_hook(self, ask: Ask) -> Any:
        if len(self.market.state.hooks) >= hooks.HOOKS_MAX:
            raise No(400, "limit_reached", f"at most {hooks.HOOKS_MAX} webhooks")
        hook = Hook(id=self.market.new_id(), name="", url="", event_types=[], secret=_secret())
        _change(hook, ask.json())
        self.market.state.hooks[hook.id] = hook
        return {"success": True, "webhook": {**_shown(hook), "secret": hook.secret}}

    def _hook(self, ask: Ask) -> Hook:
        found = self.market.state.hooks.get(ask.number())
        if found is None:
            raise No(404, "no_such_webhook", "error 404: no_such_webhook")
        return found

    def _change_hook(self, ask: Ask) -> Any:
        _change(self._hook(ask), ask.json())
        return {"success": True, "webhook": _shown(self._hook(ask))}

    def _drop_hook(self, ask: Ask) -> Any:
        del self.market.state.hooks[self._hook(ask).id]
        return {"success": True}

    def _rotate(self, ask: Ask) -> Any:
        self._hook(ask).secret = _secret()
        return {"success": True, "secret": self._hook(ask).secret}

    def _test_hook(self, ask: Ask) -> Any:
        now = self.market.clock()
        self.market.state.notices.append(
            Notice(
                event_id=secrets.token_hex(16), hook_id=self._hook(ask).id, notif_type=hooks.TEST,
                subject="Test", message="This is a test.", at=now, due=now, again=False,
            )
        )  # fmt: skip
        return {"success": True}


def _secret() -> str:
    return f"whsec_{secrets.token_hex(24)}"


def _shown(hook: Hook) -> dict[str, Any]:
    """Show a webhook without its secret, which only its creation returns."""
    return {
        "id": hook.id, "name": hook.name, "webhook_url": hook.url, "event_types": hook.event_types,
        "enabled": hook.enabled,
    }  # fmt: skip


def _change(hook: Hook, body: dict[str, Any]) -> None:
    """Apply the body of a webhook request. Raises `No`."""
    url, kinds = body.get("webhook_url", hook.url), body.get("event_types", hook.event_types)
    if not isinstance(url, str) or not hooks.may_be_told(url):
        raise No(400, "invalid_args", "error 400: webhook_url must be one of this machine's own addresses")
    known = {f"client:{kind}" for kind in hooks.KINDS}
    if not isinstance(kinds, list) or not kinds or not set(kinds) <= known:
        raise No(400, "invalid_args", "error 400: event_types must be of notification-types")
    hook.name, hook.url, hook.event_types = str(body.get("name", hook.name)), url, kinds
    hook.enabled = bool(body.get("enabled", hook.enabled))
