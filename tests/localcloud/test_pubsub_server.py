"""The server as a whole, in this loop: starting, stopping, and what it says about what it cannot do."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from localcloud.identity import Identity
from localcloud.pubsub.errors import Refused
from localcloud.pubsub.server import PubSub
from localcloud.pubsub.wire import Subscription, Topic, raw
from tests.contract.receiver import receiving

TOPIC = "projects/p/topics/topic-a"
SUB = "projects/p/subscriptions/sub-a"
IDENTITY = Identity(None)


class Client:
    """Bare RPCs by their names."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def call(self, method: str, request: Any, answer: Any = None) -> Any:
        read = answer.FromString if answer is not None else None
        rpc = self._channel.unary_unary(f"/google.{method}", lambda one: one.SerializeToString(), read)
        return await rpc(request, timeout=10)

    async def topic(self, **fields: Any) -> None:
        await self.call("pubsub.v1.Publisher/CreateTopic", Topic(name=TOPIC, **fields))

    async def subscription(self, **fields: Any) -> None:
        request = Subscription(name=SUB, topic=TOPIC, **fields)
        await self.call("pubsub.v1.Subscriber/CreateSubscription", request)

    async def pull(self) -> list[Any]:
        request = raw("PullRequest")(subscription=SUB, max_messages=10)
        answer = await self.call("pubsub.v1.Subscriber/Pull", request, raw("PullResponse"))
        return list(answer.received_messages)


@asynccontextmanager
async def served(path: Path | None = None) -> AsyncIterator[tuple[PubSub, Client]]:
    pubsub = PubSub(path, identity=IDENTITY)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(pubsub.handlers())
    port = server.add_insecure_port("127.0.0.1:0")
    await pubsub.start()
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield pubsub, Client(channel)
    finally:
        await pubsub.close()
        await server.stop(None)


@pytest.mark.parametrize(
    "method",
    ["pubsub.v1.SchemaService/CreateSchema", "pubsub.v1.Publisher/Brew", "iam.v1.IAMPolicy/GetIamPolicy"],
)
async def test_what_is_not_served_is_refused_and_logged(method: str, caplog: pytest.LogCaptureFixture) -> None:
    async with served() as (_, client):
        with caplog.at_level(logging.WARNING), pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.call(method, Topic())
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert method in str(refused.value.details())
    assert method in caplog.text


@pytest.mark.parametrize(
    "fields",
    [{"schema_settings": {"schema": "projects/p/schemas/s"}}, {"message_transforms": [{"disabled": True}]}],
)
async def test_what_a_topic_cannot_have_here_is_refused(fields: dict[str, Any]) -> None:
    async with served() as (_, client):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.topic(**fields)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_can_be_published_from_inside_the_process() -> None:
    async with served() as (pubsub, client):
        await client.topic()
        await client.subscription()
        message_id = await pubsub.publish(TOPIC, b"x", {"eventType": "OBJECT_FINALIZE"})
        (received,) = await client.pull()
        assert received.message.message_id == message_id
        assert dict(received.message.attributes) == {"eventType": "OBJECT_FINALIZE"}
        with pytest.raises(Refused):
            await pubsub.publish("projects/p/topics/nowhere", b"x", {})


async def test_whoever_waits_is_told_to_come_back_when_the_server_stops() -> None:
    async with served() as (pubsub, client):
        await client.topic()
        await client.subscription()
        waiting = asyncio.create_task(client.pull())
        async with asyncio.timeout(10):
            while not pubsub._state.backlog(SUB)._listeners:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await pubsub.close()
        for call in (waiting, client.topic()):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_pushes_go_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "pubsub.db"
    with receiving() as receiver:
        receiver.hold()
        async with served(path) as (pubsub, client):
            await client.topic()
            await client.subscription(push_config={"push_endpoint": receiver.url("/first")})
            message_id = await pubsub.publish(TOPIC, b"x", {})
            await asyncio.to_thread(receiver.wait, 1)
        receiver.release()
        async with served(path):
            requests = await asyncio.to_thread(receiver.wait, 2)
    assert [one.json["message"]["messageId"] for one in requests] == [message_id, message_id]


async def test_an_update_turns_a_pull_subscription_into_a_pushed_one() -> None:
    with receiving() as receiver:
        async with served() as (pubsub, client):
            await client.topic()
            await client.subscription()
            await pubsub.publish(TOPIC, b"x", {})
            change = raw("UpdateSubscriptionRequest")(
                subscription=Subscription(name=SUB, push_config={"push_endpoint": receiver.url()}),
                update_mask={"paths": ["push_config.push_endpoint"]},
            )
            await client.call("pubsub.v1.Subscriber/UpdateSubscription", change)
            await asyncio.to_thread(receiver.wait, 1)
