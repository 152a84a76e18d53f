"""Models in the bucket: names, versions, and the pointer that says which version is in production.

models/{org}/{model}/{version}/{artifact}              create-only
models/{org}/{model}/{version}/MANIFEST.json           create-only, written last: the version exists once this does
models/{org}/{model}/_aliases/production.json          the pointer, moved by compare-and-set
models/{org}/{model}/_aliases/production/{seq}.json    what the pointer said, create-only
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from goblin.core.errors import InvalidRequest

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._]|-(?!-)){0,62}")
"""No `--`, because registries without slashes get `{org}--{model}`. No leading underscore, which is reserved for us."""
# Source: semver.org 2.0.0. Build metadata is refused: it does not order versions, so two versions would be equal.
_SEMVER = re.compile(
    r"v?(?P<core>(?:0|[1-9]\d{0,8})\.(?:0|[1-9]\d{0,8})\.(?:0|[1-9]\d{0,8}))"
    r"(?P<pre>-(?:0|[1-9]\d{0,8}|\d*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9]\d{0,8}|\d*[A-Za-z-][0-9A-Za-z-]*))*)?"
)
VERSION_LENGTH_MAX = 64
ARTIFACT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}\.gguf")
MANIFEST = "MANIFEST.json"


@dataclass(frozen=True, order=True, slots=True)
class ModelName:
    """Name of a model, `{org}/{model}`, which is also its id in requests."""

    org: str
    model: str

    def __str__(self) -> str:
        return f"{self.org}/{self.model}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `ORG/MODEL`. Raises `InvalidRequest`."""
        org, slash, model = text.partition("/")
        if not slash or not NAME.fullmatch(org) or not NAME.fullmatch(model):
            raise InvalidRequest(
                f"`{text[:200]}` is not ORG/MODEL: each part has up to 63 letters, digits, `.`, `_` and single `-`, "
                "and begins with a letter or digit.",
                param="model",
            )
        return cls(org, model)

    @property
    def folder(self) -> str:
        """Folder of its objects in the bucket."""
        return f"models/{self.org}/{self.model}"

    @property
    def pointer_path(self) -> str:
        return f"{self.folder}/_aliases/production.json"

    def history_path(self, seq: int) -> str:
        return f"{self.folder}/_aliases/production/{seq:08d}.json"

    def manifest_path(self, version: str) -> str:
        return f"{self.folder}/{version}/{MANIFEST}"


def parse_version(text: str) -> str:
    """Normalise a semantic version to its form without `v`. Raises `InvalidRequest`."""
    found = _SEMVER.fullmatch(text)
    if found is None or len(text) > VERSION_LENGTH_MAX:
        raise InvalidRequest(
            f"`{text[:VERSION_LENGTH_MAX]}` is not a semantic version such as 1.2.0 or 1.2.0-rc.1 "
            "(without build metadata).",
            param="version",
        )
    return found["core"] + (found["pre"] or "")


def version_order(version: str) -> tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]]:
    """Return a sort key with semver's precedence: a release comes after its own pre-releases."""
    core, _, pre = version.partition("-")
    parts = tuple((not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in pre.split(".")) if pre else ()
    return tuple(map(int, core.split("."))), not pre, parts


def parse_artifact(text: str) -> str:
    """Check an artifact's file name. Raises `InvalidRequest`."""
    if not ARTIFACT.fullmatch(text):
        raise InvalidRequest(
            f"`{text[:128]}` cannot be an artifact's name. Use letters, digits, `.`, `_`, `-`, and the ending `.gguf`.",
            param="artifact",
        )
    return text


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelArtifact:
    """One file of a version, as stored in the bucket."""

    uri: str
    """`gs://{bucket}/models/{org}/{model}/{version}/{artifact}`."""
    generation: int
    """Cloud Storage generation: another object under the same name is another artifact."""
    size: int
    crc32c: str
    """Base64 of the big-endian checksum, as Cloud Storage writes it."""
    sha256: str
    """Digest of the file that was uploaded; a model server checks it before it loads the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A version as in its manifest; it exists once its manifest does."""

    name: ModelName
    version: str
    artifact: ModelArtifact
    registered_at: datetime
    registered_by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """One move of the production pointer; the newest says what is in production."""

    name: ModelName
    version: str
    artifact: ModelArtifact
    seq: int
    """Number of this model's move, from 1, without gaps."""
    event_id: str
    """Chosen by the caller. A writer whose answer was lost recognises its own write by it."""
    promoted_at: datetime
    promoted_by: str
    reason: str = ""
    previous: str | None = None
    """The version that a rollback goes to."""
    previous_seq: int | None = None
    """Number of the move that put `previous` into production. A rollback copies that move's `previous`, so that a
    second rollback goes back further."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pointer:
    """The pointer as read: its content, and the generation that a move must name."""

    promotion: Promotion
    generation: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """What a model server says it serves."""

    alias: str
    sha256: str | None
    """None if the model was not loaded by digest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingState:
    """State of one model server, stored in Firestore: what it last loaded, and what it last refused."""

    endpoint: str
    served: Promotion | None = None
    """The last promotion that it loaded. It loads this one again after a restart, even if it refused a later one."""
    refused: Promotion | None = None
    """The last promotion that it refused; None once it has loaded a newer one."""
    refusal: str = ""
    updated_at: datetime | None = None
