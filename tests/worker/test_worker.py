"""The worker as an untrusted host runs it, against a controller, a bucket and a gateway that misbehave."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin_worker import controller, items, retries
from goblin_worker.attempt import run_attempt
from goblin_worker.crc32c import crc32c, extend

TOKEN = "gob-attempt-secret.2.job.with.dots"
URL = "http://goblin"
BUCKET = "http://bucket"

Say = Callable[[int, dict[str, Any]], httpx.Response]


def answered(_: int, body: dict[str, Any]) -> httpx.Response:
    said = {"choices": [{"message": {"content": body["messages"][0]["content"].upper()}}]}
    return httpx.Response(200, json=said, headers={"x-goblin-request-id": "r-1"})


@dataclass
class World:
    """Everything that the worker can reach."""

    count: int = 10
    step: int = 0
    every: int = 4
    model: str | None = None
    say: Say = answered
    """What the gateway answers to the n-th try of an item."""
    refuse: dict[str, list[int]] = field(default_factory=dict)
    """Statuses that a path of the controller or the bucket answers first."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    stop_after: int | None = None
    beat_s: float = 1000.0

    tried: Counter[str] = field(default_factory=Counter)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    parts: dict[str, bytes] = field(default_factory=dict)
    saved: list[tuple[int, int, bytes]] = field(default_factory=list)
    inflight: int = 0
    inflight_max: int = 0
    tokens: set[str | None] = field(default_factory=set)

    def data(self) -> bytes:
        rows = []
        for number in range(self.count):
            body = {"messages": [{"role": "user", "content": f"say {number} ✓"}]}
            rows.append({"custom_id": f"item-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()

    def offset(self) -> int:
        return sum(len(line) for line in self.data().splitlines(keepends=True)[: self.step])

    async def handle(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        statuses = self.refuse.get(path.rpartition("/")[2]) or self.refuse.get(
            request.method + " " + str(request.url.host)
        )
        if statuses:
            return httpx.Response(statuses.pop(0), json={"error": {"message": "not now"}})
        if request.url.host == "bucket":
            return self._bucket(request)
        self.tokens.add(request.headers.get("authorization"))
        body = json.loads(request.content)
        if path.startswith("/v1/"):
            return await self._gateway(body)
        return self._controller(path, body)

    def _bucket(self, request: httpx.Request) -> httpx.Response:
        assert "authorization" not in request.headers, "the token is nobody else's business"
        if request.method == "PUT":
            assert request.headers["x-signed"] == "yes"
            self.parts[request.url.path.rpartition("/")[2]] = request.content
            return httpx.Response(200)
        start, end = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
        data = self.data()
        if start >= len(data):
            return httpx.Response(416)
        return httpx.Response(206, content=data[start : end + 1])

    async def _gateway(self, body: dict[str, Any]) -> httpx.Response:
        name = body["messages"][0]["content"]
        self.tried[name] += 1
        self.asked.append(("item", body))
        self.inflight += 1
        self.inflight_max = max(self.inflight_max, self.inflight)
        await asyncio.sleep(0)
        self.inflight -= 1
        if self.stop_after is not None and len(self.tried) >= self.stop_after:
            self.stop.set()
        return self.say(self.tried[name], body)

    def _controller(self, path: str, body: dict[str, Any]) -> httpx.Response:
        base = "/jobs/job.with.dots/"
        assert path.startswith(base)
        what = path.removeprefix(base)
        self.asked.append((what, body))
        grant = {"method": "GET", "url": f"{BUCKET}/data", "headers": {}}
        if what == "claim":
            work = {
                "job_id": "job.with.dots", "attempt": 2, "kind": "batch", "step": self.step, "total": self.count,
                "checkpoint_every": self.every, "heartbeat_s": self.beat_s, "dataset": grant,
                "dataset_offset": self.offset(), "model": self.model, "parameters": {"parallel": 3},
            }  # fmt: skip
            return httpx.Response(200, json=work)
        if what == "inputs":
            return httpx.Response(200, json=grant)
        if what == "checkpoints":
            upload = f"u{len(self.parts)}-{body['step']}"
            grant = {"method": "PUT", "url": f"{BUCKET}/{upload}", "headers": {"x-signed": "yes"}}
            return httpx.Response(200, json={"upload_id": upload, "grants": {"part.jsonl": grant}})
        if what.endswith("/commit"):
            step, part = int(what.split("/")[1]), self.parts[body["upload_id"]]
            [announced] = body["files"]
            checksum = base64.b64encode(google_crc32c.Checksum(part).digest()).decode()
            assert announced == {
                "name": "part.jsonl", "size": len(part), "crc32c": checksum, "sha256": hashlib.sha256(part).hexdigest()
            }  # fmt: skip
            self.saved.append((body["previous_step"], step, part))
            return httpx.Response(200, json={})
        return httpx.Response(200, json={"state": "running"})

    async def run(self) -> int:
        async with httpx.AsyncClient(transport=httpx.MockTransport(self.handle)) as http:
            return await run_attempt(http, url=f"{URL}/", jobs_url=f"{URL}/", token=TOKEN, stop=self.stop)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for _, _, part in self.saved for line in part.splitlines()]

    def said(self, what: str) -> list[Any]:
        return [body for name, body in self.asked if name == what]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting is decided as ever, and takes no time."""
    for module in (items, controller, retries):
        monkeypatch.setattr(module, "BACKOFF_S_MAX", 0.001)


class Slept:
    """A clock that only the pauses between tries move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = 0.0
        monkeypatch.setattr(retries, "BACKOFF_S_MAX", 15.0)
        monkeypatch.setattr(retries, "now", lambda: self.at)
        monkeypatch.setattr(retries, "sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.at += seconds
        await asyncio.sleep(0)


async def test_every_item_once_in_order_in_openais_format() -> None:
    world = World()
    assert await world.run() == 0
    assert [(start, end) for start, end, _ in world.saved] == [(0, 4), (4, 8), (8, 10)]
    lines = world.lines()
    assert [line["custom_id"] for line in lines] == [f"item-{n}" for n in range(10)]
    assert lines[3]["response"] == {
        "status_code": 200, "request_id": "r-1", "body": {"choices": [{"message": {"content": "SAY 3 ✓"}}]}
    }  # fmt: skip
    assert lines[3]["error"] is None
    assert len({line["id"] for line in lines}) == 10
    assert world.said("finish") == [{}]
    assert world.tokens == {f"Bearer {TOKEN}"}
    assert 1 < world.inflight_max <= 3


async def test_a_resumed_attempt_does_only_what_is_left() -> None:
    world = World(step=7)
    assert await world.run() == 0
    assert [(start, end) for start, end, _ in world.saved] == [(7, 10)]
    assert sorted(world.tried) == [f"say {n} ✓" for n in (7, 8, 9)]


async def test_items_that_name_no_model_get_the_jobs() -> None:
    world = World(count=1, model="tiny")
    await world.run()
    assert [body["model"] for body in world.said("item")] == ["tiny"]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 401])
async def test_what_may_pass_is_tried_again(status: int) -> None:
    def say(tries: int, body: dict[str, Any]) -> httpx.Response:
        return answered(tries, body) if tries > 3 else httpx.Response(status, headers={"retry-after": "0"})

    world = World(count=2, say=say)
    assert await world.run() == 0
    assert [line["response"]["status_code"] for line in world.lines()] == [200, 200]
    assert set(world.tried.values()) == {4}


async def test_an_items_own_fault_is_its_result_and_the_job_goes_on() -> None:
    def say(tries: int, body: dict[str, Any]) -> httpx.Response:
        if "say 1" in body["messages"][0]["content"]:
            return httpx.Response(400, json={"error": {"message": "no such model"}})
        return answered(tries, body)

    world = World(count=3, say=say)
    assert await world.run() == 0
    assert [line["response"]["status_code"] for line in world.lines()] == [200, 400, 200]
    assert world.lines()[1]["response"]["body"] == {"error": {"message": "no such model"}}


async def test_no_answer_at_all_is_an_error_in_openais_shape() -> None:
    def say(_: int, __: dict[str, Any]) -> httpx.Response:
        raise httpx.ConnectError("refused")

    world = World(count=1, say=say)
    assert await world.run() == 0
    [line] = world.lines()
    assert line["response"] is None
    assert line["error"] == {"code": "unreachable", "message": "ConnectError: refused"}
    assert world.tried["say 0 ✓"] == items.TRIES


@pytest.mark.parametrize("answer", [b"<html>", b"[1]", b"x" * (items.ANSWER_BYTES_MAX + 1)])
async def test_an_answer_that_is_no_object_becomes_one(answer: bytes) -> None:
    world = World(count=1, say=lambda *_: httpx.Response(200, content=answer))
    assert await world.run() == 0
    assert "message" in world.lines()[0]["response"]["body"]["error"]


async def test_a_key_that_is_refused_for_good_gives_the_job_back_without_results() -> None:
    world = World(say=lambda *_: httpx.Response(401, text="no such key"))
    assert await world.run() == 0
    assert world.saved == []
    assert world.said("withdraw") == [{"reason": "no such key", "step": 0}]


async def test_being_taken_away_saves_what_is_done_and_gives_the_job_back() -> None:
    world = World(count=100, every=50, stop_after=9)
    assert await world.run() == 0
    [(start, end, _)] = world.saved
    assert start == 0
    assert 1 <= end < 20
    assert [line["custom_id"] for line in world.lines()] == [f"item-{n}" for n in range(end)]
    assert world.said("withdraw") == [{"reason": "the host was taken away", "step": end}]
    assert world.said("finish") == []


@pytest.mark.parametrize("path", ["claim", "commit", "checkpoints", "finish"])
@pytest.mark.parametrize("status", [401, 403, 404, 409])
async def test_an_attempt_that_is_over_stops_at_once(path: str, status: int) -> None:
    world = World(refuse={path: [status]})
    assert await world.run() == 0
    assert world.said("withdraw") == []
    assert world.said("fail") == []


async def test_a_heartbeat_that_is_refused_stops_the_work() -> None:
    never = asyncio.Event()
    world = World(beat_s=0.001, refuse={"heartbeat": [409]})

    async def hang(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/v1/"):
            await never.wait()
        return await world.handle(request)

    async with httpx.AsyncClient(transport=httpx.MockTransport(hang)) as http:
        assert await run_attempt(http, url=URL, jobs_url=URL, token=TOKEN, stop=world.stop) == 0


@pytest.mark.parametrize("path", ["claim", "commit", "checkpoints", "finish", "PUT bucket", "GET bucket"])
async def test_who_is_away_for_a_moment_is_asked_again(path: str) -> None:
    world = World(refuse={path: [503, 503]})
    assert await world.run() == 0
    assert [line["custom_id"] for line in world.lines()] == [f"item-{n}" for n in range(10)]


async def test_an_expired_grant_is_renewed() -> None:
    world = World(refuse={"GET bucket": [403]})
    assert await world.run() == 0
    assert world.said("inputs") == [{}]
    assert len(world.lines()) == 10


async def test_a_dataset_that_cannot_be_read_gives_the_job_back() -> None:
    world = World(refuse={"GET bucket": [404] * 10})
    assert await world.run() == 0
    [said] = world.said("withdraw")
    assert "dataset at byte 0" in said["reason"]


AWAY = [408, 425, 429, 500, 501, 502, 503, 504, 507, 520, 599]


@pytest.mark.parametrize("path", ["PUT bucket", "GET bucket"])
@pytest.mark.parametrize("status", [*AWAY, None])
async def test_a_bucket_that_is_away_for_minutes_costs_no_attempt(
    monkeypatch: pytest.MonkeyPatch, path: str, status: int | None
) -> None:
    slept = Slept(monkeypatch)
    world = World()
    inner = world._bucket

    def bucket(request: httpx.Request) -> httpx.Response:
        if slept.at < 240 and f"{request.method} bucket" == path:
            if status is None:
                raise httpx.ReadError("reset by peer")
            return httpx.Response(status)
        return inner(request)

    world._bucket = bucket  # type: ignore[method-assign]
    assert await world.run() == 0
    assert len(world.lines()) == 10
    assert (world.said("withdraw"), world.said("fail"), len(world.said("finish"))) == ([], [], 1)


@pytest.mark.parametrize("path", ["PUT bucket", "GET bucket"])
@pytest.mark.parametrize("status", [*AWAY, 400, 403, 404, 412])
async def test_a_bucket_that_stays_away_or_refuses_gives_the_job_back_and_never_fails_it(
    monkeypatch: pytest.MonkeyPatch, path: str, status: int
) -> None:
    slept = Slept(monkeypatch)
    world = World(refuse={path: [status] * 10_000})
    assert await world.run() == 0
    assert world.said("fail") == []
    [said] = world.said("withdraw")
    assert str(status) in said["reason"]
    # What may pass is tried for minutes, a refusal only with a few new signed requests.
    assert (slept.at == pytest.approx(retries.BUCKET_S_MAX)) is retries.may_pass(status)
    assert 60 < slept.at <= 600 or not retries.may_pass(status)


async def test_a_bucket_that_says_when_to_ask_again_is_asked_then(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = Slept(monkeypatch)
    tries = retries.Tries()
    assert await tries.failed(httpx.Response(429, headers={"retry-after": "7"}))
    assert slept.at == 7
    assert await tries.failed(httpx.Response(503, headers={"retry-after": "86400"}))
    assert slept.at == 7 + retries.BACKOFF_S_MAX


async def test_a_line_that_no_attempt_can_read_fails_the_job() -> None:
    world = World()
    world.data = lambda: b"x" * (3 * 1024 * 1024)  # type: ignore[method-assign]
    assert await world.run() == 1
    [said] = world.said("fail")
    assert "a line of the dataset" in said["reason"]


async def test_a_controller_that_cannot_use_a_part_is_told_that_the_attempt_broke() -> None:
    world = World(refuse={"commit": [400]})
    assert await world.run() == 1
    assert len(world.said("fail")) == 1


async def test_a_controller_that_stays_away_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller.Controller.__init__, "__kwdefaults__", {"tries_s_max": 0.01})
    assert await World(refuse={"claim": [503] * 1000}).run() == 1


async def test_a_kind_that_it_cannot_run_is_said() -> None:
    world = World()
    inner = world._controller

    def training(path: str, body: dict[str, Any]) -> httpx.Response:
        answer = inner(path, body)
        if path.endswith("/claim"):
            return httpx.Response(200, json={**answer.json(), "kind": "training"})
        return answer

    world._controller = training  # type: ignore[method-assign]
    assert await world.run() == 1
    [said] = world.said("fail")
    assert "training" in said["reason"]


@given(st.binary(max_size=400), st.integers(0, 400))
def test_the_checksum_is_cloud_storages_in_one_piece_and_in_two(data: bytes, cut: int) -> None:
    expected = int.from_bytes(google_crc32c.Checksum(data).digest(), "big")
    assert crc32c(data) == crc32c(data[cut:], crc32c(data[:cut])) == expected
    assert extend(0, data) == extend(extend(0, data[:cut]), data[cut:]) == expected


async def test_a_controller_that_asks_to_stop_is_given_the_job_back_with_what_was_done() -> None:
    asked = asyncio.Event()

    def say(tries: int, body: dict[str, Any]) -> httpx.Response:
        asked.set()
        return answered(tries, body)

    world = World(count=100, every=50, say=say, beat_s=0.001)
    inner = world._controller

    def stopping(path: str, body: dict[str, Any]) -> httpx.Response:
        answer = inner(path, body)
        if path.endswith("/heartbeat") and asked.is_set():
            return httpx.Response(200, json={"state": "running", "stop": "the budget is used up", "checkpoint_s": None})
        return answer

    world._controller = stopping  # type: ignore[method-assign]
    assert await world.run() == 0
    [(start, end, _)] = world.saved
    assert (start, world.said("finish")) == (0, [])
    assert world.said("withdraw") == [{"reason": "the budget is used up", "step": end}]


async def test_a_part_that_the_controller_finds_untrue_gives_the_job_to_another_machine() -> None:
    world = World()
    inner = world._controller

    def doubting(path: str, body: dict[str, Any]) -> httpx.Response:
        if path.endswith("/commit"):
            return httpx.Response(409, json={"error": {"message": "not what was announced", "code": "untrue"}})
        return inner(path, body)

    world._controller = doubting  # type: ignore[method-assign]
    assert await world.run() == 0
    assert (len(world.said("withdraw")), world.said("fail")) == (1, [])
