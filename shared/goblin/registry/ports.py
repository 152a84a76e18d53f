"""What the registry and the model servers need from outside; the docstrings are the contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from goblin.registry.domain.versions import (
    LoadedModel,
    ModelArtifact,
    ModelName,
    Pointer,
    Promotion,
    ServingState,
    Version,
)


class ModelRegistry(Protocol):
    """Artifacts, manifests, pointers and their history, in the bucket.

    Every method raises `StoreUnavailable` when the bucket does not answer, and `Broken` when an object is not what
    its name promises.
    """

    async def upload(
        self, name: ModelName, version: str, artifact: str, file: Path, *, progress: Callable[[int], None]
    ) -> ModelArtifact:
        """Create an artifact from a file and check what arrived; the same file again changes nothing.

        Args:
            name: Whose it is.
            version: Which version.
            artifact: Its file name in the bucket.
            file: Read twice: once for its digest, once to be sent.
            progress: Called with the bytes done so far, of twice the file's size.

        Raises:
            Conflict: Another file lies there.
        """

    async def publish(self, version: Version) -> bool:
        """Write a version's manifest; False when one is there already."""

    async def version(self, name: ModelName, version: str) -> Version | None:
        """One version; None when its manifest was never written."""

    async def versions(self) -> Sequence[Version]:
        """Every version of every model, in no order."""

    async def pointer(self, name: ModelName) -> Pointer | None:
        """What is in production, strongly consistent."""

    async def pointers(self) -> Sequence[Pointer]:
        """Every model's pointer; one that cannot be read is logged and left out, or it would hold up the others."""

    async def move(self, promotion: Promotion, *, generation: int) -> None:
        """Write the pointer if its generation still is `generation`, 0 for none.

        Raises:
            Conflict: It is not; also when this very write arrived and its answer was lost.
        """

    async def history(self, name: ModelName, seq: int) -> Promotion | None:
        """One past or present move; None when it was not written."""

    async def append_history(self, promotion: Promotion) -> None:
        """Write one move; there already is no error."""


class ModelServer(Protocol):
    """A process that serves one model and can be given another without dropping a request."""

    async def loaded(self) -> LoadedModel:
        """What it serves now. Raises `Transient`."""

    async def load(self, url: str, *, sha256: str, alias: str) -> str | None:
        """Give it a model to load beside the present one and to serve instead; returns when it does.

        Args:
            url: Readable without a key.
            sha256: The server checks it before it loads anything.
            alias: What requests call the model.

        Returns:
            None when it serves it; otherwise why it refuses, which trying again does not change.

        Raises:
            Transient: It may work later; the old model goes on.
        """


class ServingStore(Protocol):
    """What is known of each model server. Raises `StoreUnavailable`."""

    async def get(self, endpoint: str) -> ServingState:
        """An endpoint nobody wrote about has served nothing."""

    async def all(self) -> Sequence[ServingState]:
        """All that were written about, by name."""

    async def put(self, serving: ServingState) -> None:
        """Replace one endpoint's."""
