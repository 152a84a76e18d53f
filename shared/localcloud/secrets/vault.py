"""Secrets and their versions: the logic of `SecretManagerService`, without a transport.

Source: https://cloud.google.com/secret-manager/docs/reference/rpc/google.cloud.secretmanager.v1, read 2026-11-25.
"""

import binascii
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Row
from typing import Any

import google_crc32c
import grpc
from google.cloud.secretmanager_v1.types import resources, service
from google.protobuf.empty_pb2 import Empty

from httpguard import whole_number
from localcloud.clock import Clock
from localcloud.secrets import filters, names
from localcloud.secrets.errors import SecretError, failed_precondition, invalid, not_found, unkept
from localcloud.store import Store

# The protobuf classes below proto-plus's wrappers: faster, and what both transports use.
Secret: Any = resources.Secret._meta.pb
SecretVersion: Any = resources.SecretVersion._meta.pb
AccessResponse: Any = service.AccessSecretVersionResponse._meta.pb
ListSecretsResponse: Any = service.ListSecretsResponse._meta.pb
ListVersionsResponse: Any = service.ListSecretVersionsResponse._meta.pb

ENABLED, DISABLED, DESTROYED = 1, 2, 3
STATE_NAMES = {ENABLED: "ENABLED", DISABLED: "DISABLED", DESTROYED: "DESTROYED"}

PAYLOAD_BYTES_MAX = 64 << 10
LABELS_MAX = 64
ANNOTATIONS_BYTES_MAX = 16 << 10
PAGE_MAX = 25_000
NUMBER_MAX = 2**63 - 1
_LABEL = re.compile(r"[\w-]{1,63}")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
_MUTABLE = frozenset({"labels", "annotations", "topics", "expire_time", "ttl", "rotation", "version_aliases", "etag"})

SCHEMA = """
CREATE TABLE IF NOT EXISTS secrets (
    name TEXT PRIMARY KEY, project TEXT NOT NULL, revision INTEGER NOT NULL, last_version INTEGER NOT NULL,
    expires_us INTEGER, message BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS versions (
    secret TEXT NOT NULL REFERENCES secrets(name) ON DELETE CASCADE, number INTEGER NOT NULL,
    state INTEGER NOT NULL, revision INTEGER NOT NULL, created_us INTEGER NOT NULL, destroyed_us INTEGER,
    client_checksum INTEGER NOT NULL, payload BLOB, PRIMARY KEY (secret, number)
) WITHOUT ROWID;
"""


class Vault:
    """The RPCs: each takes a protobuf request and returns a protobuf response, or raises `SecretError`."""

    def __init__(self, path: Path | None, *, clock: Clock) -> None:
        """Open the state."""
        self._store = Store(path, SCHEMA)
        # Overwrite a destroyed payload on disk, instead of only unlinking it.
        self._store.execute("PRAGMA secure_delete=ON")
        self._clock = clock

    def create_secret(self, request: Any) -> Any:
        """Add a secret without versions."""
        name = names.child(request.parent, request.secret_id)
        secret = Secret()
        secret.CopyFrom(request.secret)
        if not secret.HasField("replication"):
            raise invalid("A secret needs a replication policy.")
        secret.name = name
        secret.create_time.FromDatetime(self._clock())
        if secret.version_aliases:
            raise invalid("A new secret has no versions to give aliases to.")
        self._set_expiry(secret)
        _check(secret)
        with self._store.transaction():
            if self._row(name) is not None:
                raise SecretError(grpc.StatusCode.ALREADY_EXISTS, f"Secret [{name}] already exists.")
            self._store.execute(
                "INSERT INTO secrets VALUES (?, ?, 1, 0, ?, ?)",
                (name, request.parent, _expires_us(secret), secret.SerializeToString()),
            )
        return self._secret(name)

    def get_secret(self, request: Any) -> Any:
        """Return one secret's metadata."""
        return self._secret(names.secret(request.name))

    def list_secrets(self, request: Any) -> Any:
        """Return a project's secrets by name."""
        project, after = names.project(request.parent), request.page_token
        size = _page_size(request.page_size)
        wanted = filters.secrets(request.filter)
        rows = self._store.execute(
            "SELECT * FROM secrets WHERE project = ? AND (expires_us IS NULL OR expires_us > ?) ORDER BY name",
            (project, self._now_us()),
        )
        found = [secret for secret in map(_secret, rows) if wanted(secret)]
        page = [secret for secret in found if secret.name > after][: size + 1]
        response = ListSecretsResponse(secrets=page[:size], total_size=len(found))
        if len(page) > size:
            response.next_page_token = page[size - 1].name
        return response

    def update_secret(self, request: Any) -> Any:
        """Change the fields that the mask names."""
        name = names.secret(request.secret.name)
        paths = list(request.update_mask.paths)
        if not paths or not set(paths) <= _MUTABLE:
            raise invalid(f"update_mask must name some of {', '.join(sorted(_MUTABLE))}.")
        with self._store.transaction():
            secret = self._secret(name)
            _check_etag(request.secret.etag, secret.etag)
            for path in paths:
                _copy_field(request.secret, secret, path)
            self._set_expiry(secret)
            _check(secret)
            for alias, number in secret.version_aliases.items():
                if self._version_row(name, number) is None:
                    raise failed_precondition(f"The alias {alias} names version {number}, which does not exist.")
            self._store.execute(
                "UPDATE secrets SET revision = revision + 1, expires_us = ?, message = ? WHERE name = ?",
                (_expires_us(secret), secret.SerializeToString(), name),
            )
        return self._secret(name)

    def delete_secret(self, request: Any) -> Any:
        """Delete a secret with all its versions."""
        name = names.secret(request.name)
        with self._store.transaction():
            _check_etag(request.etag, self._secret(name).etag)
            self._store.execute("DELETE FROM secrets WHERE name = ?", (name,))
        self._forget_log()
        return Empty()

    def add_secret_version(self, request: Any) -> Any:
        """Add an enabled version with the next number; numbers are never used twice."""
        name = names.secret(request.parent)
        payload = request.payload
        if not payload.data:
            raise invalid("Secret payload cannot be empty.")
        if len(payload.data) > PAYLOAD_BYTES_MAX:
            raise invalid(f"The payload exceeds the maximum size of {PAYLOAD_BYTES_MAX} bytes.")
        has_checksum = payload.HasField("data_crc32c")
        if has_checksum and payload.data_crc32c != google_crc32c.value(payload.data):
            raise invalid("The payload does not match the given data_crc32c.")
        with self._store.transaction():
            self._secret(name)
            number = self._store.execute(
                "UPDATE secrets SET last_version = last_version + 1 WHERE name = ? RETURNING last_version", (name,)
            ).fetchone()["last_version"]
            self._store.execute(
                "INSERT INTO versions VALUES (?, ?, ?, 1, ?, NULL, ?, ?)",
                (name, number, ENABLED, self._now_us(), has_checksum, payload.data),
            )
        return self._message(name, number)

    def get_secret_version(self, request: Any) -> Any:
        """Return one version's metadata."""
        name, number = self._find(request.name)
        return self._message(name, number)

    def list_secret_versions(self, request: Any) -> Any:
        """Return a secret's versions, newest first."""
        name = names.secret(request.parent)
        self._secret(name)
        size = _page_size(request.page_size)
        state = filters.state(request.filter)
        if request.page_token and not re.fullmatch(r"[0-9]{1,18}", request.page_token):
            raise invalid("The page_token is invalid.")
        rows: Sequence[Row] = self._store.execute(
            "SELECT * FROM versions WHERE secret = ? ORDER BY number DESC", (name,)
        ).fetchall()
        found = [row for row in rows if state is None or STATE_NAMES[row["state"]] == state]
        before = int(request.page_token or 0)
        page = [row for row in found if not before or row["number"] < before][: size + 1]
        response = ListVersionsResponse(versions=map(_version, page[:size]), total_size=len(found))
        if len(page) > size:
            response.next_page_token = str(page[size - 1]["number"])
        return response

    def access_secret_version(self, request: Any) -> Any:
        """Return the payload of an enabled version, named by its number."""
        name, number = self._find(request.name)
        row = self._version_row(name, number)
        if row is None:
            raise not_found(request.name)
        if row["state"] != ENABLED:
            raise failed_precondition(
                f"Secret Version [{name}/versions/{number}] is in {STATE_NAMES[row['state']]} state."
            )
        response = AccessResponse(name=f"{name}/versions/{number}")
        response.payload.data = row["payload"]
        response.payload.data_crc32c = google_crc32c.value(row["payload"])
        return response

    def enable_secret_version(self, request: Any) -> Any:
        """Enable a version again."""
        return self._set_state(request, ENABLED)

    def disable_secret_version(self, request: Any) -> Any:
        """Disable a version until it is enabled again."""
        return self._set_state(request, DISABLED)

    def destroy_secret_version(self, request: Any) -> Any:
        """Overwrite the payload of a version for good."""
        message = self._set_state(request, DESTROYED)
        self._forget_log()
        return message

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def _set_state(self, request: Any, state: int) -> Any:
        name, number = self._find(request.name)
        with self._store.transaction():
            version = self._message(name, number)
            _check_etag(request.etag, version.etag)
            if version.state == DESTROYED and state != DESTROYED:
                raise failed_precondition(f"Secret Version [{version.name}] is in DESTROYED state.")
            if version.state != state:
                self._store.execute(
                    "UPDATE versions SET state = ?, revision = revision + 1 WHERE secret = ? AND number = ?",
                    (state, name, number),
                )
                if state == DESTROYED:
                    self._store.execute(
                        "UPDATE versions SET payload = NULL, destroyed_us = ? WHERE secret = ? AND number = ?",
                        (self._now_us(), name, number),
                    )
        return self._message(name, number)

    def _find(self, version_name: str) -> tuple[str, int]:
        """Return the secret's name and the version's number, resolving `latest` and aliases."""
        name, which = names.version(version_name)
        secret = self._secret(name)
        if (number := whole_number(which, NUMBER_MAX)) is not None:
            return name, number
        if which == "latest":
            # The newest in any state: when the latest version is disabled, answer an error, not the one before it.
            number = self._store.execute(
                "SELECT max(number) AS newest FROM versions WHERE secret = ?", (name,)
            ).fetchone()["newest"]
            if number is None:
                raise not_found(version_name)
            return name, number
        if which not in secret.version_aliases:
            raise not_found(version_name)
        return name, secret.version_aliases[which]

    def _secret(self, name: str) -> Any:
        row = self._row(name)
        if row is None:
            raise not_found(name)
        return _secret(row)

    def _row(self, name: str) -> Row | None:
        """Return a secret's row, or None when there is none. An expired secret is deleted."""
        found: Row | None = self._store.execute("SELECT * FROM secrets WHERE name = ?", (name,)).fetchone()
        if found is not None and found["expires_us"] is not None and found["expires_us"] <= self._now_us():
            self._store.execute("DELETE FROM secrets WHERE name = ?", (name,))
            return None
        return found

    def _message(self, name: str, number: int) -> Any:
        row = self._version_row(name, number)
        if row is None:
            raise not_found(f"{name}/versions/{number}")
        return _version(row)

    def _version_row(self, name: str, number: int) -> Row | None:
        found: Row | None = self._store.execute(
            "SELECT * FROM versions WHERE secret = ? AND number = ?", (name, min(number, 2**62))
        ).fetchone()
        return found

    def _set_expiry(self, secret: Any) -> None:
        """Turn a time to live into an instant, as production returns it."""
        if secret.WhichOneof("expiration") == "ttl":
            at = self._clock() + secret.ttl.ToTimedelta()
            secret.expire_time.FromDatetime(at)
        expires_us = _expires_us(secret)
        if expires_us is not None and expires_us <= self._now_us():
            raise invalid("A secret must expire in the future.")

    def _now_us(self) -> int:
        return int(self._clock().timestamp() * 1_000_000)

    def _forget_log(self) -> None:
        """Truncate SQLite's log, which may still hold a deleted payload."""
        self._store.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _check(secret: Any) -> None:
    """Refuse what exceeds production's limits."""
    if secret.HasField("version_destroy_ttl"):
        raise unkept("version_destroy_ttl")
    if len(secret.labels) > LABELS_MAX:
        raise invalid(f"A secret has at most {LABELS_MAX} labels.")
    for key, value in secret.labels.items():
        if not _LABEL.fullmatch(key) or (value and not _LABEL.fullmatch(value)) or key != key.lower():
            raise invalid(f"Labels are 1 to 63 small letters, digits, hyphens and underscores: {key!r}.")
    if sum(len(key.encode()) + len(value.encode()) for key, value in secret.annotations.items()) > (
        ANNOTATIONS_BYTES_MAX
    ):
        raise invalid(f"Annotations have at most {ANNOTATIONS_BYTES_MAX} bytes.")
    for alias in secret.version_aliases:
        if not _ALIAS.fullmatch(alias) or alias == "latest":
            raise invalid(f"An alias begins with a letter and is not `latest`: {alias!r}.")


def _check_etag(wanted: str, current: str) -> None:
    if wanted and wanted != current:
        raise failed_precondition("The etag does not match the current one.")


def _copy_field(source: Any, target: Any, path: str) -> None:
    if path == "etag":
        return  # The expected etag, already checked.
    target.ClearField(path)
    partial = type(source)()
    partial.CopyFrom(source)
    for field, _ in source.ListFields():
        if field.name != path:
            partial.ClearField(field.name)
    target.MergeFrom(partial)


def _secret(row: Row) -> Any:
    secret = Secret.FromString(row["message"])
    secret.etag = _etag(row["name"], row["revision"])
    return secret


def _version(row: Row) -> Any:
    name = f"{row['secret']}/versions/{row['number']}"
    version = SecretVersion(
        name=name,
        state=row["state"],
        etag=_etag(name, row["revision"]),
        client_specified_payload_checksum=bool(row["client_checksum"]),
    )
    version.create_time.FromDatetime(_instant(row["created_us"]))
    version.replication_status.automatic.SetInParent()
    if row["destroyed_us"] is not None:
        version.destroy_time.FromDatetime(_instant(row["destroyed_us"]))
    return version


def _etag(name: str, revision: int) -> str:
    """Return a quoted etag, as production's are; it changes with every change."""
    return f'"{binascii.crc32(name.encode()):08x}{revision:06x}"'


def _expires_us(secret: Any) -> int | None:
    if secret.WhichOneof("expiration") != "expire_time":
        return None
    return int(secret.expire_time.ToMicroseconds())


def _instant(instant_us: int) -> datetime:
    return datetime.fromtimestamp(instant_us / 1_000_000, UTC)


def _page_size(asked: int) -> int:
    if asked < 0:
        raise invalid("page_size must not be negative.")
    return min(asked or PAGE_MAX, PAGE_MAX)
