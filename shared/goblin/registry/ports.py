"""Ports of the registry and of the rollout; the docstrings are the contract."""

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

    Every method raises `StoreUnavailable` when the bucket does not answer, and `Broken` when an object cannot be read
    as what its name says.
    """

    async def upload(
        self, name: ModelName, version: str, artifact: str, file: Path, *, progress: Callable[[int], None]
    ) -> ModelArtifact:
        """Upload a file as an artifact and verify the uploaded object; the same file again changes nothing.

        Args:
            name: The model.
            version: The version.
            artifact: The file name in the bucket.
            file: The file to upload. It is read twice: for its digest, and for the upload.
            progress: Called with the bytes done so far, of twice the file's size.

        Raises:
            Conflict: Another file exists under this name.
        """

    async def publish(self, version: Version) -> bool:
        """Write a version's manifest; return False if one exists already."""

    async def version(self, name: ModelName, version: str) -> Version | None:
        """Return one version; None if its manifest was never written."""

    async def versions(self) -> Sequence[Version]:
        """Return every version of every model, in no order."""

    async def pointer(self, name: ModelName) -> Pointer | None:
        """Return the production pointer, strongly consistent; None if nothing is in production."""

    async def pointers(self) -> Sequence[Pointer]:
        """Return every model's pointer. One that cannot be read is logged and left out, not to block the others."""

    async def move(self, promotion: Promotion, *, generation: int) -> None:
        """Write the pointer if its generation is still `generation`; 0 means that there is no pointer.

        Raises:
            Conflict: The generation differs. Also raised if this write succeeded and its answer was lost.
        """

    async def history(self, name: ModelName, seq: int) -> Promotion | None:
        """Return one promotion of the history; None if it was not written."""

    async def append_history(self, promotion: Promotion) -> None:
        """Write one promotion to the history; an existing entry is not an error."""


class ModelServer(Protocol):
    """A model server: serves one model, and can switch to another without dropping a request."""

    async def loaded(self) -> LoadedModel:
        """Return the model that it serves now. Raises `Transient`."""

    async def load(self, url: str, *, sha256: str, alias: str) -> str | None:
        """Load a model beside the present one, then switch to it; return once requests get the new one.

        Args:
            url: URL of the GGUF file, readable without a key.
            sha256: Digest that the server checks before it loads the file.
            alias: Model id in requests.

        Returns:
            None if the model is served; otherwise why the server refuses it. A retry would be refused too.

        Raises:
            Transient: It may work later; the old model is still served.
        """


class ServingStore(Protocol):
    """Store of what each model server serves and refused. Methods raise `StoreUnavailable`."""

    async def get(self, endpoint: str) -> ServingState:
        """Return the state of one endpoint; without a document, an empty state."""

    async def all(self) -> Sequence[ServingState]:
        """Return every stored state, by endpoint name."""

    async def put(self, serving: ServingState) -> None:
        """Replace the state of one endpoint."""
