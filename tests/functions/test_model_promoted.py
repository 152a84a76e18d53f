"""The topic `model-promoted` and its minute tick, with a bucket, signed URLs and a model server on real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from goblin.core.events import ModelPromoted
from goblin.gcp.model_registry import GcsRegistry
from goblin.registry import promotion
from goblin.registry.domain.versions import ModelName
from goblin.registry.policy.promotion import PromotionRequest
from tests.clouds import RunningCloud
from tests.fakes.gguf import gguf
from tests.fakes.model_server import FakeModelServer
from tests.fakes.registry import FakeBus, FixedClock
from tests.fakes.serving import serve
from tests.functions.pushes import Invoker

NAME = ModelName("acme", "tiny")
_buckets = itertools.count()


class World:
    """A bucket with models, the function that follows them, and a model server."""

    def __init__(self, cloud: RunningCloud, bucket: Any, folder: Path) -> None:
        self.server = FakeModelServer()
        self.bucket = bucket
        self.bus = FakeBus()
        self.folder = folder
        self.registry = GcsRegistry(bucket.client, bucket.name)

    def promote(self, version: str) -> Any:
        """Register and promote as `goblin models` does; the event, which is pushed by hand."""
        deps = promotion.PromotionDeps(registry=self.registry, bus=self.bus, clock=FixedClock(datetime.now(UTC)))
        file = self.folder / "m.gguf"
        file.write_bytes(gguf(version.encode() * 100))

        async def work() -> None:
            await promotion.register(NAME, version, file, actor="ann", progress=lambda _: None, deps=deps)
            asked = PromotionRequest(event_id=version, actor="ann", reason="", at=datetime.now(UTC))
            await promotion.promote(NAME, version, expected=None, request=asked, deps=deps)

        asyncio.run(work())
        return self.bus.published[-1][1]

    def digest(self, version: str) -> str:
        return hashlib.sha256(gguf(version.encode() * 100)).hexdigest()


@pytest.fixture
def invoker(environ: dict[str, str], cloud: RunningCloud, monkeypatch: pytest.MonkeyPatch) -> Invoker:
    return Invoker(cloud, monkeypatch)


@pytest.fixture
def world(
    environ: dict[str, str], cloud: RunningCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    bucket = cloud.storage_client(environ["GOOGLE_CLOUD_PROJECT"]).create_bucket(f"promoted-{next(_buckets)}")
    made = World(cloud, bucket, tmp_path)
    assert cloud.cloud is not None
    signer = tmp_path / "signer.json"
    signer.write_text(json.dumps(cloud.cloud.identity.service_account))
    with serve(made.server.app) as url:
        monkeypatch.setenv("GOBLIN_BUCKET", bucket.name)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(signer))
        monkeypatch.setenv("LLAMACPP_URL", url)
        yield made


@pytest.fixture
def url(invoker: Invoker, world: World, serve_function: Callable[[str], str]) -> str:
    return serve_function("model_promoted")


@pytest.fixture
def tick(invoker: Invoker, world: World, serve_function: Callable[[str], str]) -> str:
    return serve_function("serve_promoted")


def known(firestore: Any) -> dict[str, Any]:
    return firestore.collection("serving").document("gcp_llamacpp").get().to_dict() or {}


def test_the_model_server_reads_the_model_by_a_signed_url_and_the_router_learns_of_it(
    url: str, invoker: Invoker, world: World, firestore: Any
) -> None:
    event = world.promote("1.0.0")
    assert [invoker.push(url, event) for _ in range(2)] == [204, 204]
    assert (world.server.alias, world.server.sha256) == ("acme/tiny", world.digest("1.0.0"))
    (load,) = world.server.loads  # Twice the event, once the load.
    assert httpx.URL(load["url"]).params["X-Goog-Expires"] == "3600"
    assert known(firestore)["served"]["version"] == "1.0.0"
    health = firestore.collection("health").document("gcp_llamacpp").get().to_dict()
    assert health["models"] == ["acme/tiny", "goblin-tiny"]


def test_old_news_that_arrives_late_changes_nothing(url: str, invoker: Invoker, world: World) -> None:
    old, new = world.promote("1.0.0"), world.promote("1.1.0")
    assert [invoker.push(url, event) for event in (new, old)] == [204, 204]
    assert world.server.sha256 == world.digest("1.1.0")
    assert len(world.server.loads) == 1


def test_an_artifact_whose_record_lies_is_refused_once_and_the_old_model_goes_on(
    url: str, tick: str, invoker: Invoker, world: World, firestore: Any
) -> None:
    assert invoker.push(url, world.promote("1.0.0")) == 204
    event = world.promote("1.1.0")
    # Somebody with the right to write forges what the pointer says of the file.
    pointer = asyncio.run(world.registry.pointer(NAME))
    assert pointer is not None
    forged = replace(pointer.promotion, artifact=replace(pointer.promotion.artifact, sha256="f" * 64))
    asyncio.run(world.registry.move(forged, generation=pointer.generation))
    assert invoker.push(url, event) == 400  # The event and the pointer contradict each other.
    assert world.server.sha256 == world.digest("1.0.0")
    assert [invoker.call(tick) for _ in range(2)] == [204, 204]
    assert world.server.sha256 == world.digest("1.0.0")
    assert len(world.server.loads) == 2
    assert known(firestore)["refused"]["version"] == "1.1.0"
    assert "SHA-256" in known(firestore)["refusal"]


def test_the_tick_gives_a_restarted_server_its_model_again(url: str, tick: str, invoker: Invoker, world: World) -> None:
    assert invoker.push(url, world.promote("1.0.0")) == 204
    world.server.alias, world.server.sha256 = "goblin-tiny", None
    assert invoker.call(tick) == 204
    assert world.server.sha256 == world.digest("1.0.0")


def test_a_busy_server_is_asked_again(url: str, invoker: Invoker, world: World) -> None:
    event = world.promote("1.0.0")
    world.server.busy = True
    assert invoker.push(url, event) == 503
    world.server.busy = False
    assert invoker.push(url, event) == 204
    assert world.server.sha256 == world.digest("1.0.0")


def test_the_tick_publishes_what_a_dead_promoter_did_not(
    tick: str, invoker: Invoker, world: World, environ: dict[str, str]
) -> None:
    from google.cloud import pubsub_v1

    project = environ["GOOGLE_CLOUD_PROJECT"]
    with pubsub_v1.SubscriberClient() as subscriber:
        publisher = pubsub_v1.PublisherClient()
        topic = publisher.topic_path(project, "model-promoted")
        publisher.create_topic(name=topic)
        listening = subscriber.subscription_path(project, "listening")
        subscriber.create_subscription(name=listening, topic=topic)
        world.promote("1.0.0")
        # As if it had died after the pointer: history does not have the move.
        world.bucket.blob(NAME.history_path(1)).delete()
        assert [invoker.call(tick) for _ in range(2)] == [204, 204]
        (received,) = subscriber.pull(subscription=listening, max_messages=9, timeout=10).received_messages
        publisher.transport.close()
    assert json.loads(received.message.data)["seq"] == 1
    assert world.bucket.blob(NAME.history_path(1)).exists()


def forge(**changes: Any) -> ModelPromoted:
    fields: dict[str, Any] = {
        "org": "acme", "model": "tiny", "version": "1.0.0", "artifact_uri": "gs://abc/models/m", "sha256": "0" * 64,
        "seq": 1, **changes,
    }  # fmt: skip
    return ModelPromoted(**fields)


@pytest.mark.parametrize("payload", [b"", b"{}", forge(), forge(seq=7), forge(org="..", model="..")])
def test_what_was_never_promoted_goes_to_the_dead_letters(
    url: str, invoker: Invoker, world: World, payload: Any
) -> None:
    assert invoker.push(url, payload) == 400
    assert world.server.loads == []


def test_strangers_are_not_heard(url: str, tick: str, invoker: Invoker, world: World) -> None:
    event = world.promote("1.0.0")
    assert invoker.push(url, event, email="stranger@example.com") == 403
    assert invoker.call(tick, email="stranger@example.com") == 403
    assert httpx.post(tick, timeout=20).status_code == 401
    assert world.server.loads == []
