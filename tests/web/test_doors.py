"""The steps into a public route, in their order, and what a refusal at each of them has not done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from goblin.core.errors import Conflict, Forbidden, RateLimited
from goblin.gateway.admission import AdmissionControl
from goblin.gateway.policy.admission import AdmissionLimits
from goblin.gateway.ports import HttpReply, KeylessCaller
from goblin.jobs import worker_api
from goblin.web import anthropic_responses, asgi, doors
from tests.fakes.inference import FakeClock

CALLER = KeylessCaller(counted_as="c", rate_per_minute=2, parallel_max=1)


class House:
    """One route behind one door, and what happened there."""

    def __init__(self, caller: KeylessCaller | Exception = CALLER, **wrapping: Any) -> None:
        self.steps: list[str] = []
        self.admission = AdmissionControl(AdmissionLimits(), FakeClock())
        self.caller = caller
        self.fails: Exception | None = None
        door = doors.Door(callers="a test", identify=self._identify, admission=lambda: self.admission)
        self.app = doors.routed([Route("/x", door(self._work, **wrapping), methods=["POST"])])

    async def _identify(self, request: Request) -> KeylessCaller:
        self.steps.append("identify")
        if isinstance(self.caller, Exception):
            raise self.caller
        return self.caller

    async def _work(self, visit: doors.Visit[KeylessCaller]) -> Response:
        self.steps.append(f"work {visit.body.decode()}")
        if self.fails is not None:
            raise self.fails
        return asgi.json_response({})

    async def ask(self, content: bytes = b"{}") -> httpx.Response:
        async def sent() -> AsyncIterator[bytes]:
            self.steps.append("body")
            yield content

        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://goblin") as client:
            return await client.post("/x", content=sent())


async def test_the_steps_come_in_their_order() -> None:
    house = House(body_bytes_max=100)
    assert (await house.ask(b"[1]")).status_code == 200
    assert house.steps == ["identify", "body", "work [1]"]


async def test_a_stranger_sends_no_body() -> None:
    house = House(Forbidden("No."), body_bytes_max=100)
    assert (await house.ask()).status_code == 403
    assert house.steps == ["identify"]


async def test_a_body_that_is_refused_takes_no_place_and_no_token_of_the_rate() -> None:
    house = House(body_bytes_max=3)
    for _ in range(5):
        assert (await house.ask(b'"four"')).status_code == 413
    assert [(await house.ask()).status_code for _ in range(3)] == [200, 200, 429]


async def test_over_its_rate_or_its_places_a_caller_causes_no_work() -> None:
    house = House(body_bytes_max=100)
    async with house.admission.place(CALLER):
        refused = await house.ask()
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert (await house.ask()).status_code == 200
    refused = await house.ask()
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert [step for step in house.steps if step.startswith("work")] == ["work {}"]


@pytest.mark.parametrize("error", [Conflict("Taken."), RuntimeError("a secret")])
async def test_a_place_is_given_back_after_an_error_which_is_told_in_the_apis_shape(error: Exception) -> None:
    house = House(KeylessCaller(counted_as="c", rate_per_minute=None, parallel_max=1))
    house.fails = error
    for _ in range(3):
        answer = await house.ask()
        assert answer.status_code == (409 if isinstance(error, Conflict) else 500)
        assert "a secret" not in answer.text
    house.fails = None
    assert (await house.ask()).status_code == 200


async def test_a_route_answers_refusals_in_its_own_apis_shape() -> None:
    def refuse(error: Exception) -> Any:
        status, content = anthropic_responses.refusal(error)
        return HttpReply(status=status, content=content)

    answer = await House(Forbidden("No."), refuse=refuse).ask()
    assert (answer.status_code, answer.json()["type"]) == (403, "error")


async def test_a_token_has_limits_of_its_own_which_a_forged_one_does_not_use_up() -> None:
    clock = FakeClock()
    admission = AdmissionControl(AdmissionLimits(), clock)
    token, forged = (worker_api.recognise(f"gob-attempt-{secret}.1.j", "j") for secret in ("true", "guess"))
    assert forged.rate_per_minute is not None
    for _ in range(forged.rate_per_minute):
        async with admission.place(forged):
            pass
    with pytest.raises(RateLimited):
        await admission.enter(forged)
    for _ in range(token.parallel_max or 0):
        await admission.enter(token)
    with pytest.raises(RateLimited):
        await admission.enter(token)


async def _bare(request: Request) -> Response:
    return Response()


@asgi.answers_errors
async def _only_errors(request: Request) -> Response:
    return Response()


@pytest.mark.parametrize("handler", [_bare, _only_errors])
def test_a_route_behind_no_door_is_refused_when_it_is_loaded(handler: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="/new is behind no door"):
        doors.routed([Route("/new", handler)])
    doors.routed([Route("/new", doors.declare("anyone", handler))])
