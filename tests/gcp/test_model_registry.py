"""The contract of `ModelRegistry`, kept by the adapter on a real (local) Cloud Storage and by the fake."""

import asyncio
import base64
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from goblin.core.errors import Broken, Conflict
from goblin.gcp.model_registry import GcsRegistry
from goblin.registry.domain.versions import ModelArtifact, ModelName, Promotion, Version
from tests.clouds import RunningCloud
from tests.fakes.registry import FakeRegistry

NAME = ModelName("acme", "tiny")
AT = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCloud]:
    with RunningCloud(tmp_path_factory.mktemp("cloud"), services=("storage",)) as running:
        yield running


@pytest.fixture
def bucket(cloud: RunningCloud, request: pytest.FixtureRequest) -> Any:
    client = cloud.storage_client()
    name = "b-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    return client.create_bucket(name)


@pytest.fixture(params=["gcs", "fake"])
def registry(request: pytest.FixtureRequest) -> GcsRegistry | FakeRegistry:
    if request.param == "fake":
        return FakeRegistry()
    made = request.getfixturevalue("bucket")
    return GcsRegistry(made.client, made.name)


def root(registry: Any) -> str:
    return registry._root if isinstance(registry, GcsRegistry) else f"gs://{registry.bucket}/"


def artifact(registry: Any, version: str = "1.0.0") -> ModelArtifact:
    uri = f"{root(registry)}{NAME.folder}/{version}/m.gguf"
    return ModelArtifact(uri=uri, generation=7, size=3, crc32c="AAAAAA==", sha256="0" * 64)


def move(registry: Any, seq: int = 1, **changes: Any) -> Promotion:
    fields: dict[str, Any] = {
        "name": NAME, "version": "1.0.0", "artifact": artifact(registry), "seq": seq, "event_id": f"e{seq}",
        "promoted_at": AT, "promoted_by": "ann", **changes,
    }  # fmt: skip
    return Promotion(**fields)


def quiet(_done: int) -> None:
    pass


async def test_uploads_a_file_once_and_checks_what_arrived(registry: Any, tmp_path: Path) -> None:
    data = b"GGUF" + bytes(range(256)) * 2000
    file = tmp_path / "m.gguf"
    file.write_bytes(data)
    told: list[int] = []
    first = await registry.upload(NAME, "1.0.0", "m.gguf", file, progress=told.append)
    again = await registry.upload(NAME, "1.0.0", "m.gguf", file, progress=quiet)
    assert first == again
    assert first.uri == f"{root(registry)}models/acme/tiny/1.0.0/m.gguf"
    assert first.size == len(data)
    assert first.sha256 == hashlib.sha256(data).hexdigest()
    assert first.crc32c == base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
    assert told == sorted(told)
    assert told[-1] == 2 * len(data)


async def test_refuses_another_file_under_the_same_name(registry: Any, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUFone")
    await registry.upload(NAME, "1.0.0", "m.gguf", file, progress=quiet)
    file.write_bytes(b"GGUFtwo")
    with pytest.raises(Conflict):
        await registry.upload(NAME, "1.0.0", "m.gguf", file, progress=quiet)


async def test_publishes_a_version_once(registry: Any) -> None:
    version = Version(name=NAME, version="1.0.0", artifact=artifact(registry), registered_at=AT, registered_by="ann")
    assert await registry.version(NAME, "1.0.0") is None
    assert await registry.publish(version)
    assert not await registry.publish(replace(version, registered_by="bob"))
    assert await registry.version(NAME, "1.0.0") == version
    assert list(await registry.versions()) == [version]


async def test_moves_the_pointer_only_from_the_generation_that_was_read(registry: Any) -> None:
    assert await registry.pointer(NAME) is None
    await registry.move(move(registry), generation=0)
    with pytest.raises(Conflict):
        await registry.move(move(registry, event_id="late"), generation=0)
    held = await registry.pointer(NAME)
    assert held.promotion == move(registry)
    await registry.move(move(registry, seq=2), generation=held.generation)
    with pytest.raises(Conflict):
        await registry.move(move(registry, seq=2, event_id="late"), generation=held.generation)
    (pointer,) = await registry.pointers()
    assert pointer.promotion == move(registry, seq=2)


async def test_lets_exactly_one_of_many_racing_moves_win(registry: Any) -> None:
    racing = [registry.move(move(registry, event_id=f"e{n}"), generation=0) for n in range(8)]
    ended = await asyncio.gather(*racing, return_exceptions=True)
    assert sum(outcome is None for outcome in ended) == 1
    assert all(outcome is None or isinstance(outcome, Conflict) for outcome in ended)


async def test_keeps_the_first_history_entry(registry: Any) -> None:
    assert await registry.history(NAME, 1) is None
    await registry.append_history(move(registry))
    await registry.append_history(move(registry, reason="other"))
    assert await registry.history(NAME, 1) == move(registry)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b'{"org":"acme"}', b"\xff\xfe",
        b'{"org":"evil","model":"m","version":"1.0.0"}', b"[" * 30_000, b'{"org":' + b"[" * 957 + b"]" * 957 + b"}",
        b'{"org":"acme","model":"caf\xe9"}', b'{"org":"acme","model":"\\ud800"}', b'{"seq":' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
async def test_a_pointer_that_cannot_be_read_is_broken_and_holds_up_no_other(bucket: Any, text: bytes) -> None:
    registry = GcsRegistry(bucket.client, bucket.name)
    bucket.blob("models/bad/one/_aliases/production.json").upload_from_string(text)
    await registry.move(move(registry), generation=0)
    with pytest.raises(Broken):
        await registry.pointer(ModelName("bad", "one"))
    assert [p.promotion.name for p in await registry.pointers()] == [NAME]


async def test_a_pointer_may_not_lead_out_of_its_own_folder(bucket: Any) -> None:
    registry = GcsRegistry(bucket.client, bucket.name)
    away = replace(artifact(registry), uri="gs://elsewhere/models/acme/tiny/1.0.0/m.gguf")
    await registry.move(move(registry, artifact=away), generation=0)
    with pytest.raises(Broken, match="elsewhere"):
        await registry.pointer(NAME)
    # Another model's document under this model's name.
    copied = move(registry, name=ModelName("acme", "big"))
    away_path = ModelName("acme", "big").pointer_path
    await registry.move(copied, generation=0)
    with pytest.raises(Broken):
        await registry.pointer(ModelName("acme", "big"))
    assert bucket.blob(away_path).exists()
