"""Every doorway is declared, exactly the private ones check who calls, and every public route is behind a door."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from goblin.cli.loading import load
from goblin.gateway.keys import digest_of
from goblin.jobs import worker_api
from goblin.web import doors

FUNCTIONS = Path(__file__).parents[2] / "functions"
DECLARED = json.loads((FUNCTIONS.parent / "shared/goblin/cloud.json").read_text())
DOORS = sorted(file.stem for file in FUNCTIONS.glob("[a-z]*.py"))
PRIVATE = {
    details["function"]
    for trigger in ("topics", "schedules")
    for details in DECLARED[trigger].values()
    if "function" in details
}
INFERENCE = "an API key with scope `inference`, or an attempt token"
CALLER, VIEWER = "an API key with scope `inference`", "an API key with scope `jobs` or `operate`"
OPERATOR, HOST = "an API key with scope `operate`", "the host of the job's current attempt"
ROUTES = {
    "POST /v1/chat/completions": INFERENCE,
    "POST /v1/completions": INFERENCE,
    "POST /v1/embeddings": INFERENCE,
    "POST /v1/rerank": INFERENCE,
    "POST /v1/images/generations": INFERENCE,
    "POST /v1/audio/transcriptions": INFERENCE,
    "POST /v1/audio/translations": INFERENCE,
    "POST /v1/responses": INFERENCE,
    "GET /v1/responses": "anyone",
    "POST /v1/messages": INFERENCE,
    "POST /v1/messages/count_tokens": CALLER,
    "GET /v1/models": CALLER,
    "GET /v1/models/{model_id:path}": CALLER,
    "POST /api/chat": INFERENCE,
    "POST /api/generate": INFERENCE,
    "POST /api/embed": INFERENCE,
    "POST /api/embeddings": INFERENCE,
    "GET /api/tags": CALLER,
    "GET /api/ps": CALLER,
    "POST /api/show": CALLER,
    "GET /api/version": "anyone",
    "GET /requests/{request_id}": CALLER,
    "GET /health": "anyone",
    "GET /providers": OPERATOR,
    "GET /metrics": OPERATOR,
    "POST /jobs": "an API key with scope `jobs`",
    "GET /jobs": VIEWER,
    "GET /jobs/{job_id}": VIEWER,
    "POST /jobs/{job_id}/cancel": VIEWER,
    "GET /jobs/{job_id}/logs": VIEWER,
    "POST /jobs/{job_id}/claim": HOST,
    "POST /jobs/{job_id}/inputs": HOST,
    "POST /jobs/{job_id}/heartbeat": HOST,
    "POST /jobs/{job_id}/checkpoints": HOST,
    "POST /jobs/{job_id}/checkpoints/{step}/commit": HOST,
    "POST /jobs/{job_id}/logs": HOST,
    "POST /jobs/{job_id}/finish": HOST,
    "POST /jobs/{job_id}/withdraw": HOST,
    "POST /jobs/{job_id}/fail": HOST,
    "GET /budgets": OPERATOR,
    "POST /webhooks/vastai": "Vast.ai, by its signature",
}
"""Every route of every public function, and who may call it. A new one is added here on purpose."""
SINGLE = {"console"}
"""Public functions with one page and no routes; IAP stands before it."""
OPEN = {name for name, callers in ROUTES.items() if callers == "anyone"}
UNKEYED = OPEN | {"POST /webhooks/vastai"}
HOSTS = {name for name, callers in ROUTES.items() if callers == HOST}


def routes_of(function: str) -> dict[str, Route]:
    """The routes of a function that was loaded, by method and path."""
    applications = [one for one in vars(sys.modules[f"functions.{function}"]).values() if isinstance(one, Starlette)]
    routes = [route for application in applications for route in application.routes if isinstance(route, Route)]
    assert sum(len(application.routes) for application in applications) == len(routes), "every route is one"
    return {f"{method} {route.path}": route for route in routes for method in (route.methods or set()) - {"HEAD"}}


def test_every_doorway_is_declared_once() -> None:
    assert sorted([*DECLARED["http"], *PRIVATE]) == DOORS


@pytest.mark.parametrize("door", DOORS)
def test_exactly_the_private_doorways_check_their_caller(door: str) -> None:
    """`GOBLIN_VERIFY_CALLER=iam` accepts tokens without a signature; to a public function anybody could send one."""
    source = (FUNCTIONS / f"{door}.py").read_text()
    assert ("verify_caller(" in source) is (door in PRIVATE)


def test_a_public_function_is_behind_keys_or_iap() -> None:
    assert {name: said["access"] for name, said in DECLARED["http"].items()} == {
        "gateway": "keys", "jobs": "keys", "console": "iap",
    }  # fmt: skip


def test_every_route_of_every_public_function_is_behind_its_door() -> None:
    found: dict[str, str] = {}
    for name in DECLARED["http"]:
        load(FUNCTIONS / f"{name}.py")
        routes = routes_of(name)
        assert bool(routes) is (name not in SINGLE)
        found |= {said: doors.callers_of(route) for said, route in routes.items()}
    assert found == ROUTES


@dataclass
class Street:
    """Both public functions, served, and keys of every sort."""

    urls: dict[str, str]
    keys: dict[str, str]

    def ask(self, route: str, bearer: str | None, **more: str) -> httpx.Response:
        method, path = route.split()
        path = re.sub(r"\{(\w+)(:\w+)?\}", lambda found: {"job_id": "j", "step": "3"}.get(found[1], "x"), path)
        function = "jobs" if path.startswith(tuple(DECLARED["http"]["jobs"]["paths"])) else "gateway"
        headers = more if bearer is None else {"authorization": f"Bearer {self.keys.get(bearer, bearer)}", **more}
        body = b"{}" if method == "POST" else None
        return httpx.request(method, self.urls[function] + path, content=body, headers=headers, timeout=20)


@pytest.fixture
def street(
    serve_function: Callable[[str], str], firestore: Any, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> Street:
    monkeypatch.setenv("GOBLIN_BUCKET", "nothing-is-read-here")
    monkeypatch.setenv("GOBLIN_URL", "http://goblin")
    sorts: dict[str, dict[str, Any]] = {
        "inference": {"scopes": ["inference"]},
        "jobs": {"scopes": ["jobs"]},
        "operate": {"scopes": ["operate"]},
        "nothing": {"scopes": []},
        "no places": {"parallel_max": 0},
        "no models": {"models": []},
        "revoked": {"disabled": True},
        "expired": {"expires_at": datetime.now(UTC) - timedelta(seconds=1)},
    }
    keys = {}
    for name, fields in sorts.items():
        keys[name] = f"sk-{name.replace(' ', '-')}"
        said = {"name": name, "disabled": False, "created_at": datetime.now(UTC), **fields}
        firestore.collection("keys").document(digest_of(keys[name])).set(said)
    return Street({name: serve_function(name) for name in ("gateway", "jobs")}, keys)


def test_nobody_passes_a_door_without_a_key_or_with_a_bad_one(street: Street) -> None:
    for route in sorted(set(ROUTES) - UNKEYED):
        for bearer in (None, "sk-never-made", "revoked", "expired", "x" * 600):
            status = street.ask(route, bearer).status_code
            assert status == 401 or (route in HOSTS and status == 403 and bearer is not None), (route, bearer, status)


def test_a_key_without_the_scope_passes_no_door(street: Street) -> None:
    for route, callers in ROUTES.items():
        if route in UNKEYED | HOSTS:
            continue
        for scope in ("inference", "jobs", "operate", "nothing"):
            status = street.ask(route, scope).status_code
            assert (status == 403) is (f"`{scope}`" not in callers), (route, scope, status)


def test_a_key_over_its_limits_is_refused_at_every_door_before_anything_else(street: Street) -> None:
    """Its limit comes before the body is parsed, a model, a job or a receipt is looked for."""
    for route in sorted(set(ROUTES) - UNKEYED - HOSTS):
        # An unknown strategy and a stored answer would be found later.
        answer = street.ask(route, "no places", **{"idempotency-key": "k", "x-goblin-strategy": "none"})
        assert answer.status_code == 429, (route, answer.text)
        assert "retry-after" in answer.headers


def test_hosts_have_their_own_doors_and_no_others(street: Street) -> None:
    token = worker_api.new_token("j", 1, "secret")
    for route in sorted(set(ROUTES) - UNKEYED):
        if route not in HOSTS:
            assert street.ask(route, token).status_code == 401, f"{route}: this token opens nothing yet"
            continue
        for key in ("inference", "jobs", "operate"):
            answer = street.ask(route, key)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), route
        for other in (token, worker_api.new_token("k", 1, "secret"), "gob-attempt-", "gob-attempt-x.1.j.j"):
            answer = street.ask(route, other)
            assert (answer.status_code, answer.json()["error"]["code"]) in (
                (403, "attempt_over"), (400, None),
            ), (route, other, answer.text)  # fmt: skip
            assert "no job" not in answer.text, "whether there is such a job is not told"


def test_a_key_for_no_models_asks_and_sees_none(street: Street) -> None:
    assert street.ask("GET /v1/models", "no models").json()["data"] == []
    assert street.ask("GET /v1/models/{model_id:path}", "no models").status_code == 403
    url = street.urls["gateway"]
    said: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    bodies = {
        "/v1/chat/completions": said,
        "/v1/completions": {"model": "tiny", "prompt": "Hi"},
        "/v1/embeddings": {"model": "tiny", "input": "Hi"},
        "/v1/messages": said,
        "/v1/rerank": {"model": "tiny", "query": "Hi", "documents": ["Hi"]},
        "/v1/images/generations": {"model": "tiny", "prompt": "Hi"},
        "/v1/messages/count_tokens": said,
        "/api/chat": said,
        "/api/generate": {"model": "tiny", "prompt": "Hi"},
        "/api/embed": {"model": "tiny", "input": "Hi"},
        "/api/embeddings": {"model": "tiny", "prompt": "Hi"},
        "/api/show": {"model": "tiny"},
    }
    for path, body in bodies.items():
        for extra in ({}, {"idempotency-key": "k"}):
            headers = {"authorization": f"Bearer {street.keys['no models']}", **extra}
            answer = httpx.post(url + path, json=body, headers=headers, timeout=20)
            assert answer.status_code == 403, (path, answer.text)
            assert "may not use the model" in answer.text
