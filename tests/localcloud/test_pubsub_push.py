"""What an endpoint is sent, and what its answers do, under a clock of our own."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.auth import jwt

from localcloud.identity import Identity
from localcloud.pubsub.errors import Refused
from localcloud.pubsub.push import IN_FLIGHT_MAX, Pusher
from localcloud.pubsub.wire import Subscription, duration, raw
from tests.localcloud.pubsub_desk import SUB, TOPIC, Desk, data, retry

URL = "http://127.0.0.1:9/fn/on_thing/"
IDENTITY = Identity(None)


class Endpoint:
    """Records requests; answers the next scripted status, and 204 after the last one."""

    def __init__(self, *statuses: int) -> None:
        self.requests: list[httpx.Request] = []
        self.statuses = list(statuses)
        self.open = asyncio.Event()
        self.open.set()
        self.at_work = 0
        self.answered = 0
        self._changed = asyncio.Condition()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await self._note(request)
        try:
            await self.open.wait()
        finally:
            async with self._changed:
                self.at_work -= 1
                self._changed.notify_all()
        status = self.statuses.pop(0) if self.statuses else 204
        self.answered += 1
        return httpx.Response(status)

    async def _note(self, request: httpx.Request) -> None:
        async with self._changed:
            self.requests.append(request)
            self.at_work += 1
            self._changed.notify_all()

    async def wait(self, count: int) -> list[httpx.Request]:
        await self.wait_until(lambda: len(self.requests) >= count)
        return self.requests

    async def wait_until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(true)

    def bodies(self) -> list[Any]:
        return [httpx.Response(200, content=one.content).json() for one in self.requests]

    def data(self) -> list[bytes]:
        return [base64.b64decode(body["message"]["data"]) for body in self.bodies()]


@asynccontextmanager
async def pushing(
    desk: Desk, endpoint: Endpoint, subscription: str = SUB, identity: Identity = IDENTITY
) -> AsyncIterator[None]:
    pusher = Pusher(
        desk.state.backlog(subscription),
        connect=lambda: httpx.AsyncClient(transport=httpx.MockTransport(endpoint)),
        identity=identity,
        now_us=desk.state.now_us,
    )
    task = asyncio.create_task(pusher.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def idle(true: Callable[[], bool]) -> None:
    """Let tasks run until something holds; nothing here waits for the outside, so that is soon."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def opened(push_config: dict[str, Any] | None = None, **fields: Any) -> Desk:
    desk = Desk()
    await desk.topic()
    await desk.subscription(push_config={"push_endpoint": URL, **(push_config or {})}, **fields)
    return desk


async def test_the_body_is_production_s() -> None:
    desk, endpoint = await opened(), Endpoint()
    (message_id,) = await desk.publish(b"hello", kind="greeting")
    async with pushing(desk, endpoint):
        (request,) = await endpoint.wait(1)
    published_at = "2026-11-25T12:00:00.000Z"
    assert endpoint.bodies() == [
        {
            "message": {
                "attributes": {"kind": "greeting"},
                "data": "aGVsbG8=",
                "messageId": message_id,
                "message_id": message_id,
                "publishTime": published_at,
                "publish_time": published_at,
            },
            "subscription": SUB,
        }
    ]
    assert (request.method, str(request.url)) == ("POST", URL)
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == "CloudPubSub-Google"
    assert "authorization" not in request.headers


async def test_attributes_alone_have_no_data() -> None:
    desk, endpoint = await opened(), Endpoint()
    await desk.publish(b"", kind="greeting")
    async with pushing(desk, endpoint):
        await endpoint.wait(1)
    assert "data" not in endpoint.bodies()[0]["message"]


async def test_an_ordering_key_is_sent_and_keeps_its_order_over_failures() -> None:
    desk, endpoint = await opened(enable_message_ordering=True), Endpoint(500, 500)
    await desk.publish(b"1", b"2", b"3", key="k")
    async with pushing(desk, endpoint):
        for attempts in (1, 2):
            await idle(lambda attempts=attempts: endpoint.answered == attempts and not endpoint.at_work)
            await idle(lambda: desk.state.backlog(SUB)._queue._leased == 0)
            desk.wait(60)
        await endpoint.wait(5)
    assert endpoint.data() == [b"1", b"1", b"1", b"2", b"3"]
    assert {body["message"]["orderingKey"] for body in endpoint.bodies()} == {"k"}


async def test_attempts_are_told_with_a_dead_letter_policy_which_buries_at_last() -> None:
    desk, endpoint = Desk(), Endpoint(*[500] * 5)
    await desk.topic()
    grave = await desk.topic("projects/p/topics/topic-dead")
    await desk.subscription("projects/p/subscriptions/sub-dead", topic=grave)
    await desk.subscription(
        push_config={"push_endpoint": URL},
        dead_letter_policy={"dead_letter_topic": grave, "max_delivery_attempts": 5},
    )
    await desk.publish(b"x")
    async with pushing(desk, endpoint):
        for attempts in range(1, 6):
            await endpoint.wait(attempts)
            await idle(lambda: desk.state.backlog(SUB)._queue._leased == 0)
            desk.wait(60)
    assert [body["deliveryAttempt"] for body in endpoint.bodies()] == [1, 2, 3, 4, 5]
    assert data(await desk.pull("projects/p/subscriptions/sub-dead")) == [b"x"]


@pytest.mark.parametrize("status", [102, 200, 201, 202, 204])
async def test_these_answers_acknowledge(status: int) -> None:
    desk, endpoint = await opened(), Endpoint(status)
    await desk.publish(b"x")
    async with pushing(desk, endpoint):
        await idle(lambda: desk.stored("deliveries") == 0)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("status", [203, 206, 299, 301, 307, 400, 404, 409, 429, 500, 503])
async def test_all_other_answers_try_again(status: int) -> None:
    desk, endpoint = await opened(), Endpoint(status)
    await desk.publish(b"x")
    async with pushing(desk, endpoint):
        await endpoint.wait(1)
        await idle(lambda: desk.state.backlog(SUB)._queue._leased == 0)
        assert desk.stored("deliveries") == 1
        desk.wait(0.1)
        await endpoint.wait(2)
        await idle(lambda: desk.stored("deliveries") == 0)


@pytest.mark.parametrize(
    ("fields", "pauses_s"),
    [
        ({"retry_policy": retry(2, 10)}, [2, 4, 8, 10, 10]),
        ({}, [0.1, 0.2, 0.4, 0.8, 1.6]),
    ],
)
async def test_failures_are_spaced(fields: dict[str, Any], pauses_s: list[float]) -> None:
    desk, endpoint = await opened(**fields), Endpoint(*[503] * 5)
    await desk.publish(b"x")
    async with pushing(desk, endpoint):
        for attempts, pause_s in enumerate(pauses_s, start=1):
            await endpoint.wait(attempts)
            await idle(lambda: desk.state.backlog(SUB)._queue._leased == 0)
            desk.wait(pause_s - 0.001)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(endpoint.requests) == attempts
            desk.wait(0.001)
        await endpoint.wait(6)


async def test_an_endpoint_that_is_down_is_tried_again() -> None:
    desk = await opened()
    answers: list[Any] = [httpx.ConnectError("refused"), httpx.Response(204)]

    async def endpoint(_: httpx.Request) -> httpx.Response:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    await desk.publish(b"x")
    async with pushing(desk, endpoint):  # type: ignore[arg-type]
        await idle(lambda: len(answers) == 1)
        await idle(lambda: desk.state.backlog(SUB)._queue._leased == 0)
        desk.wait(0.1)
        await idle(lambda: desk.stored("deliveries") == 0)


async def test_the_ack_deadline_is_the_timeout_of_the_request() -> None:
    desk, endpoint = await opened(), Endpoint()
    desk.state.backlog(SUB).resource.ack_deadline_seconds = 1  # The least that a timer can be told here.
    endpoint.open.clear()
    await desk.publish(b"x")
    async with pushing(desk, endpoint):
        await endpoint.wait(1)
        await endpoint.wait_until(lambda: not endpoint.at_work)
        assert desk.stored("deliveries") == 1
        desk.wait(1)
        endpoint.open.set()
        await endpoint.wait(2)


async def test_fifty_requests_are_in_flight_and_a_hung_endpoint_starves_nobody_else() -> None:
    desk, hung, healthy = await opened(), Endpoint(), Endpoint()
    hung.open.clear()
    other = await desk.subscription(
        "projects/p/subscriptions/sub-b", push_config={"push_endpoint": "http://localhost:9/b"}
    )
    await desk.publish(*(b"%d" % n for n in range(200)))
    async with pushing(desk, hung), pushing(desk, healthy, other):
        await healthy.wait(200)
        await hung.wait(IN_FLIGHT_MAX)
        assert (len(hung.requests), hung.at_work) == (IN_FLIGHT_MAX, IN_FLIGHT_MAX)
        hung.open.set()
        await hung.wait(200)
    assert IN_FLIGHT_MAX == 50


async def test_a_token_names_its_audience_and_is_signed_by_us() -> None:
    desk, endpoint = await opened({"oidc_token": {"service_account_email": "pusher@local"}}), Endpoint()
    identity = Identity(None, clock=desk.clock)
    await desk.publish(b"1", b"2")
    async with pushing(desk, endpoint, identity=identity):
        await idle(lambda: desk.stored("deliveries") == 0)
        desk.wait(1801)
        await desk.publish(b"3")
        await endpoint.wait(3)
    tokens = [one.headers["authorization"].removeprefix("Bearer ") for one in endpoint.requests]
    assert tokens[0] == tokens[1] != tokens[2]
    claims = jwt.decode(tokens[0], certs=identity.certificates(), verify=False)
    assert (claims["aud"], claims["email"], claims["email_verified"]) == (URL, "pusher@local", True)


async def test_the_audience_may_be_chosen() -> None:
    token = {"service_account_email": "pusher@local", "audience": "my-service"}
    desk, endpoint = await opened({"oidc_token": token}), Endpoint()
    await desk.publish(b"1")
    async with pushing(desk, endpoint):
        (request,) = await endpoint.wait(1)
    token_text = request.headers["authorization"].removeprefix("Bearer ")
    assert jwt.decode(token_text, verify=False)["aud"] == "my-service"


async def test_without_wrapper_the_data_is_the_body_and_metadata_travels_in_headers() -> None:
    desk, endpoint = await opened({"no_wrapper": {"write_metadata": True}}), Endpoint()
    hostile = {"host": "evil", "Content-Length": "1", "bad name": "x", "split": "a\r\nInjected: yes"}
    messages = [{"data": b"raw", "attributes": {"kind": "greeting", **hostile}}]
    answer = await desk.publisher.publish(raw("PublishRequest")(topic=TOPIC, messages=messages))
    async with pushing(desk, endpoint):
        (request,) = await endpoint.wait(1)
    assert request.content == b"raw"
    assert request.headers["kind"] == "greeting"
    assert request.headers["x-goog-pubsub-message-id"] == answer.message_ids[0]
    assert request.headers["x-goog-pubsub-subscription-name"] == SUB
    assert request.headers["x-goog-pubsub-publish-time"] == "2026-11-25T12:00:00.000Z"
    assert request.headers["host"] == "127.0.0.1:9"
    assert request.headers["content-length"] == "3"
    assert not {"split", "injected", "bad name"} & set(request.headers)


async def test_without_write_metadata_only_the_data_is_sent() -> None:
    desk, endpoint = await opened({"no_wrapper": {"write_metadata": False}}), Endpoint()
    await desk.publish(b"raw", kind="greeting")
    async with pushing(desk, endpoint):
        (request,) = await endpoint.wait(1)
    assert request.content == b"raw"
    assert not [name for name in request.headers if name == "kind" or name.startswith("x-goog")]


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "https://10.0.0.1/",
        "http://0.0.0.0:80/",
        "http://169.254.169.254/computeMetadata/v1/",
        "http://127.0.0.1.example.com/",
        "http://localhost@example.com/",
        "http://[::ffff:8.8.8.8]/",
        "file:///etc/passwd",
        "http://127.0.0.1:99999/",
        "http://",
        "nonsense",
        "http://[",
    ],
)
async def test_only_this_machine_is_pushed_to(url: str) -> None:
    desk = Desk()
    await desk.topic()
    with pytest.raises(Refused) as refused:
        await desk.subscriber.create_subscription(
            Subscription(name=SUB, topic=TOPIC, push_config={"push_endpoint": url})
        )
    assert refused.value.code.name == "INVALID_ARGUMENT"


@pytest.mark.parametrize("url", ["http://localhost:1/x", "https://127.0.0.1/", "http://[::1]:8080/?a=b"])
async def test_loopback_is_taken(url: str) -> None:
    desk = Desk()
    await desk.topic()
    await desk.subscription(push_config={"push_endpoint": url})


async def test_modify_push_config_switches_between_push_and_pull() -> None:
    desk, endpoint = await opened(), Endpoint()
    async with pushing(desk, endpoint):
        with pytest.raises(Refused, match="pushed"):
            await desk.pull()
        request = raw("ModifyPushConfigRequest")(subscription=SUB)
        await desk.subscriber.modify_push_config(request)
        await desk.publish(b"pulled")
        assert data(await desk.pull()) == [b"pulled"]
        request.push_config.push_endpoint = URL
        await desk.subscriber.modify_push_config(request)
        desk.wait(10)  # The lease of the pull ends,
        desk.wait(0.1)  # and the pause before the first push.
        await endpoint.wait(1)
    assert endpoint.data() == [b"pulled"]


async def test_retention_still_holds_for_an_endpoint_that_never_answers(tmp_path: Path) -> None:
    desk, endpoint = await opened(message_retention_duration=duration(600)), Endpoint(*[500] * 99)
    await desk.publish(b"x")
    async with pushing(desk, endpoint):
        await endpoint.wait(1)
        await idle(lambda: desk.state.backlog(SUB)._queue._leased == 0)
        desk.wait(601)
        desk.state.sweep()
        await idle(lambda: not endpoint.at_work)
    assert (desk.stored("deliveries"), desk.stored("messages")) == (0, 0)
