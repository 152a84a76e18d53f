"""The registry, model servers and their store in memory. They pass the same contract tests as the adapters."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import google_crc32c
import msgspec

from goblin.core.errors import Conflict, NotFound, StoreUnavailable
from goblin.core.ports import SignedRequest
from goblin.registry.domain.versions import (
    LoadedModel,
    ModelArtifact,
    ModelName,
    Pointer,
    Promotion,
    ServingState,
    Version,
)

DEFAULT = LoadedModel(alias="goblin-tiny", sha256=None)


class Crashed(BaseException):
    """A simulated crash of the process at this point. No code catches it."""


@dataclass
class FakeRegistry:
    bucket: str = "b"
    artifacts: dict[str, tuple[ModelArtifact, bytes]] = field(default_factory=dict)
    manifests: dict[tuple[ModelName, str], Version] = field(default_factory=dict)
    moves: dict[ModelName, Pointer] = field(default_factory=dict)
    past: dict[tuple[ModelName, int], Promotion] = field(default_factory=dict)
    generation: int = 0
    lose_answer: bool = False
    """The next move arrives and its answer does not."""
    lists: int = 0
    """How often all pointers were asked for."""

    async def upload(
        self, name: ModelName, version: str, artifact: str, file: Path, *, progress: Callable[[int], None]
    ) -> ModelArtifact:
        data = file.read_bytes()  # noqa: ASYNC240 - small, in memory
        uri = f"gs://{self.bucket}/{name.folder}/{version}/{artifact}"
        progress(2 * len(data))
        crc32c = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
        if uri not in self.artifacts:
            self.generation += 1
            made = ModelArtifact(
                uri=uri, generation=self.generation, size=len(data), crc32c=crc32c,
                sha256=hashlib.sha256(data).hexdigest(),
            )  # fmt: skip
            self.artifacts[uri] = made, data
        there, held = self.artifacts[uri]
        if held != data:
            raise Conflict(f"{uri} is there already, and is another file.")
        return there

    async def publish(self, version: Version) -> bool:
        key = version.name, version.version
        if key in self.manifests:
            return False
        self.manifests[key] = version
        return True

    async def version(self, name: ModelName, version: str) -> Version | None:
        return self.manifests.get((name, version))

    async def versions(self) -> Sequence[Version]:
        return list(self.manifests.values())

    async def pointer(self, name: ModelName) -> Pointer | None:
        return self.moves.get(name)

    async def pointers(self) -> Sequence[Pointer]:
        self.lists += 1
        return list(self.moves.values())

    async def move(self, promotion: Promotion, *, generation: int) -> None:
        there = self.moves.get(promotion.name)
        if generation != (there.generation if there else 0):
            raise Conflict("moved by somebody else")
        self.generation += 1
        self.moves[promotion.name] = Pointer(promotion=promotion, generation=self.generation)
        if self.lose_answer:
            self.lose_answer = False
            raise StoreUnavailable("the connection broke")

    async def history(self, name: ModelName, seq: int) -> Promotion | None:
        return self.past.get((name, seq))

    async def append_history(self, promotion: Promotion) -> None:
        self.past.setdefault((promotion.name, promotion.seq), promotion)


@dataclass
class FakeBus:
    published: list[tuple[str, msgspec.Struct]] = field(default_factory=list)
    down: bool = False

    async def publish(self, topic: str, event: msgspec.Struct) -> None:
        if self.down:
            raise StoreUnavailable("Pub/Sub is down")
        self.published.append((topic, event))


@dataclass
class FakeObjects:
    """The part of the port `ObjectStore` that serving needs."""

    registry: FakeRegistry

    async def sign_get(self, uri: str, *, generation: int) -> SignedRequest:
        return SignedRequest(method="GET", url=f"https://signed/{uri}#{generation}", headers={})


@dataclass
class FakeModelServer:
    """A model server that checks digests as the real one does, against the bytes in the fake bucket."""

    registry: FakeRegistry
    serves: LoadedModel = DEFAULT
    loads: list[str] = field(default_factory=list)
    down: StoreUnavailable | None = None
    before_swap: Callable[[], None] | None = None
    """Called while a model is being loaded."""

    async def loaded(self) -> LoadedModel:
        if self.down is not None:
            raise self.down
        return self.serves

    async def load(self, url: str, *, sha256: str, alias: str) -> str | None:
        uri, _, _ = url.removeprefix("https://signed/").partition("#")
        self.loads.append(uri)
        if self.before_swap is not None:
            self.before_swap()
        if uri not in self.registry.artifacts:
            raise NotFound(uri)
        if hashlib.sha256(self.registry.artifacts[uri][1]).hexdigest() != sha256:
            return "the digest is not what was said"
        self.serves = LoadedModel(alias=alias, sha256=sha256)
        return None

    def restart(self) -> None:
        self.serves = DEFAULT


@dataclass
class FakeServingStore:
    known: dict[str, ServingState] = field(default_factory=dict)

    async def get(self, endpoint: str) -> ServingState:
        return self.known.get(endpoint, ServingState(endpoint=endpoint))

    async def all(self) -> Sequence[ServingState]:
        return [self.known[name] for name in sorted(self.known)]

    async def put(self, serving: ServingState) -> None:
        self.known[serving.endpoint] = serving


@dataclass
class FixedClock:
    at: datetime

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.at.timestamp()
