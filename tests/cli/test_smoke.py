"""`goblin smoke`, against a server that answers as the gateway, the jobs function and a private function do."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from goblin.cli import jobs as jobs_cli
from goblin.cli import smoke
from goblin.cli.main import main
from goblin.wiring import process
from tests.clouds import RunningCloud, environment
from tests.fakes.serving import closed_port, serve

KEY = "gob-right"
Goblin = Callable[..., Any]


@dataclass
class FakeGoblin:
    """Answers like the three functions that the smoke test calls."""

    models: list[str] = field(default_factory=lambda: ["broken", "right"])
    states: list[str] = field(default_factory=lambda: ["queued", "running", "succeeded"])
    push: Response = field(default_factory=lambda: PlainTextResponse("Forbidden", status_code=403))
    providers: Response = field(default_factory=lambda: JSONResponse({"openai": {"frozen": ""}}))
    believes: str = ""
    """A part of a key; who sends such a key is let in."""
    keys: list[str] = field(default_factory=list)
    jobs: dict[str, Any] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    pushed: list[dict[str, Any]] = field(default_factory=list)

    def refused(self, request: Request) -> Response | None:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if key == KEY or key.startswith("gob-") or (self.believes and self.believes in key):
            self.keys.append(key)
            return None
        return JSONResponse({"error": {"message": "The key is not valid."}}, status_code=401)

    async def list_models(self, request: Request) -> Response:
        return self.refused(request) or JSONResponse({"data": [{"id": name} for name in self.models]})

    async def list_providers(self, request: Request) -> Response:
        return self.refused(request) or self.providers

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        if body["model"] == "broken":
            return JSONResponse({"error": {"message": "No endpoint can answer."}}, status_code=503)
        answer = {"choices": [{"message": {"role": "assistant", "content": "Hello."}}]}
        return self.refused(request) or JSONResponse(answer, headers={"x-goblin-provider": "gcp_ollama"})

    async def submit(self, request: Request) -> Response:
        if refusal := self.refused(request):
            return refusal
        spec = await request.json()
        if "job_id" not in spec:
            return JSONResponse({"error": {"message": "No job id."}}, status_code=400)
        self.jobs[spec["job_id"]] = spec
        return JSONResponse(self.job(spec["job_id"]), status_code=202)

    async def show(self, request: Request) -> Response:
        return self.refused(request) or JSONResponse(self.job(request.path_params["job_id"]))

    def job(self, job_id: str) -> dict[str, Any]:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return {"job_id": job_id, "state": state, "reason": "no provider can", "step": 5}

    async def cancel(self, request: Request) -> Response:
        self.cancelled.append(request.path_params["job_id"])
        return JSONResponse({})

    async def private(self, request: Request) -> Response:
        self.pushed.append({"headers": dict(request.headers), "body": await request.json()})
        return self.push

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self.list_models),
                Route("/providers", self.list_providers),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/jobs", self.submit, methods=["POST"]),
                Route("/jobs/{job_id}", self.show),
                Route("/jobs/{job_id}/cancel", self.cancel, methods=["POST"]),
                Route("/private", self.private, methods=["POST"]),
            ]
        )


@pytest.fixture
def fake() -> FakeGoblin:
    return FakeGoblin()


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}

    def create(uri: str, file: Path) -> None:
        found[uri] = [json.loads(line) for line in file.read_text().splitlines()]

    monkeypatch.setattr(jobs_cli, "create", create)
    monkeypatch.setattr(smoke, "LOOK_S", 0.01)
    return found


@pytest.fixture
def goblin(fake: FakeGoblin, uploads: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    with serve(fake.app()) as url:
        said = {
            "GOBLIN_URL": url, "GOBLIN_JOBS_URL": url, "GOBLIN_BUCKET": "bkt", "GOBLIN_API_KEY": KEY,
            "GOBLIN_PUSH_URL": f"{url}/private", "GCS_PROJECT_ID": "my-project",
        }  # fmt: skip
        for name, value in said.items():
            monkeypatch.setenv(name, value)
        yield lambda *words: CliRunner().invoke(main, ["smoke", *words])


def outcomes(ended: Result) -> dict[str, tuple[bool, str]]:
    return {one["check"]: (one["ok"], one["detail"]) for one in json.loads(ended.stdout)}


def test_everything_is_right(goblin: Callable[..., Result], fake: FakeGoblin, uploads: dict[str, list[Any]]) -> None:
    ended = goblin()
    assert ended.exit_code == 0, ended.output
    lines = ended.stdout.splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == ["ok"] * 4
    assert "right answered in" in lines[0]
    assert "served by gcp_ollama" in lines[0]
    ((uri, items),) = uploads.items()
    (spec,) = fake.jobs.values()
    assert spec["dataset_uri"] == uri
    assert (spec["kind"], spec["budget_usd"]) == ("batch", smoke.BUDGET_USD)
    assert [item["body"]["model"] for item in items] == ["right"] * smoke.ITEMS
    assert fake.cancelled == []


def test_a_batch_that_need_only_be_accepted_is_cancelled(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    fake.states = ["queued"]
    ended = goblin("--batch", "accepted")
    assert ended.exit_code == 0, ended.output
    assert fake.cancelled == list(fake.jobs)


def test_without_a_batch_nothing_is_uploaded(goblin: Callable[..., Result], fake: FakeGoblin, uploads: Any) -> None:
    assert set(outcomes(goblin("--batch", "no", "--json"))) == {"chat", "forged push", "forged key"}
    assert (uploads, fake.jobs) == ({}, {})


@pytest.mark.parametrize("state", ["refused", "failed", "cancelled"])
def test_a_batch_that_ends_badly_fails(goblin: Callable[..., Result], fake: FakeGoblin, state: str) -> None:
    fake.states = ["queued", state] if state == "cancelled" else [state]
    ended = goblin("--json")
    assert ended.exit_code == 1
    ok, detail = outcomes(ended)["batch job"]
    assert (ok, f"is {state}: no provider can" in detail) == (False, True)


def test_a_batch_that_does_not_end_is_cancelled(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    fake.states = ["queued"]
    ended = goblin("--wait", "1", "--json")
    assert ended.exit_code == 1
    assert "is still queued after 1 s: no provider can" in outcomes(ended)["batch job"][1]
    assert fake.cancelled == list(fake.jobs)


def test_without_a_model_the_chat_and_the_batch_fail(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    fake.models = ["broken"]
    found = outcomes(goblin("--json"))
    assert found["chat"] == (False, "broken: /v1/chat/completions answered 503: No endpoint can answer.")
    assert not found["batch job"][0]
    assert found["forged push"][0]
    fake.models = []
    assert "No model is served." in outcomes(goblin("--json"))["chat"][1]


@pytest.mark.parametrize(
    ("models", "providers", "words", "skipped"),
    [
        ([], JSONResponse({}), (), True),
        ([], JSONResponse({"openai": {}}), (), False),
        ([], JSONResponse({}, headers={"x-goblin-configuration": "no such key"}), (), False),
        ([], JSONResponse({"error": {"message": "no"}}, status_code=403), (), False),
        (["broken"], JSONResponse({}), (), False),
        ([], JSONResponse({}), ("--model", "broken"), False),
    ],
)
def test_only_where_nothing_is_configured_the_chat_and_the_batch_are_skipped(
    goblin: Callable[..., Result],
    fake: FakeGoblin,
    models: list[str],
    providers: Response,
    words: tuple[str, ...],
    skipped: bool,
) -> None:
    fake.models, fake.providers = models, providers
    ended = goblin("--json", *words)
    assert ended.exit_code == (not skipped)
    found = outcomes(ended)
    assert (found["chat"][0], found["batch job"][0]) == (skipped, skipped)
    assert found["forged key"][0]
    if skipped:
        assert found["chat"] == found["batch job"] == (True, smoke.UNCONFIGURED)
        assert [line[:7] for line in goblin().stdout.splitlines()] == ["skipped", "skipped", "ok     ", "ok     "]


def test_a_forged_push_is_what_cloud_run_hands_on(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    goblin("--batch", "no")
    (pushed,) = fake.pushed
    _, payload, signature = pushed["headers"]["authorization"].removeprefix("Bearer ").split(".")
    assert signature == "SIGNATURE_REMOVED_BY_GOOGLE"
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["aud"].endswith("/private")
    assert claims["email"] == "goblin-invoker@my-project.iam.gserviceaccount.com"
    # Were it believed, it would change nothing.
    assert base64.b64decode(pushed["body"]["message"]["data"]) == b"{}"


@pytest.mark.parametrize(
    ("answer", "ok"),
    [
        (PlainTextResponse("Unauthorized", status_code=401), True),
        (PlainTextResponse("<html>404</html>", status_code=404), True),
        (JSONResponse({"error": {}}, status_code=404), False),
        (JSONResponse({"error": {"message": "unknown event"}}, status_code=400), False),
        (Response(status_code=204), False),
    ],
)
def test_a_forged_push_must_be_refused(
    goblin: Callable[..., Result], fake: FakeGoblin, answer: Response, ok: bool
) -> None:
    fake.push = answer
    ended = goblin("--batch", "no", "--json")
    assert outcomes(ended)["forged push"][0] == ok
    assert ended.exit_code == (not ok)


def test_a_public_function_that_believes_a_forged_token_fails(
    goblin: Callable[..., Result], fake: FakeGoblin
) -> None:  # fmt: skip
    fake.believes = "SIGNATURE_REMOVED_BY_GOOGLE"
    assert not outcomes(goblin("--batch", "no", "--json"))["forged key"][0]


def test_what_does_not_answer_is_one_line_each(
    goblin: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    for name in ("GOBLIN_URL", "GOBLIN_JOBS_URL", "GOBLIN_PUSH_URL"):
        monkeypatch.setenv(name, closed_port())
    ended = goblin()
    assert ended.exit_code == 1
    assert len(ended.stdout.splitlines()) == 4
    assert ended.stdout.count("FAILED") == 4


def test_without_a_key_one_is_made_and_revoked(
    goblin: Callable[..., Result], fake: FakeGoblin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with RunningCloud(tmp_path, services=("firestore",)) as cloud:
        said = {**environment(cloud.addresses), "GOOGLE_CLOUD_PROJECT": cloud.project()}
        monkeypatch.delenv("GOBLIN_API_KEY")
        monkeypatch.delenv("GCS_PROJECT_ID")
        for name, value in said.items():
            monkeypatch.setenv(name, value)
        process.settings.cache_clear()
        try:
            ended = goblin("--batch", "no")
            listed = json.loads(CliRunner().invoke(main, ["keys", "list", "--json"]).stdout)["keys"]
        finally:
            process.settings.cache_clear()
    assert ended.exit_code == 0, ended.output
    (used,) = set(fake.keys)
    assert used != KEY
    assert used not in ended.output
    assert [(key["name"], key["state"], sorted(key["scopes"])) for key in listed] == [
        ("smoke", "revoked", ["inference", "jobs", "operate"])
    ]
