"""What Secret Manager keeps on disk, and what time does to it."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.cloud.secretmanager_v1.types import service

from localcloud.secrets.errors import SecretError
from localcloud.secrets.vault import Vault

PAYLOAD = b"correct-horse-battery-staple"


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def create(vault: Vault, **fields: Any) -> Any:
    secret = {"replication": {"automatic": {}}, **fields}
    request = service.CreateSecretRequest(parent="projects/p-one", secret_id="token", secret=secret)
    return vault.create_secret(request._pb)


def add(vault: Vault, data: bytes = PAYLOAD) -> Any:
    request = service.AddSecretVersionRequest(parent="projects/p-one/secrets/token", payload={"data": data})
    return vault.add_secret_version(request._pb)


def access(vault: Vault, which: str = "latest") -> bytes:
    name = f"projects/p-one/secrets/token/versions/{which}"
    return bytes(vault.access_secret_version(service.AccessSecretVersionRequest(name=name)._pb).payload.data)


def test_every_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "secrets.db", clock=Clock())
    create(vault)
    add(vault)
    files = list(tmp_path.iterdir())
    assert len(files) >= 2  # The log is there too, and holds the payload.
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_secrets_are_there_after_the_process_died(tmp_path: Path) -> None:
    first = Vault(tmp_path / "secrets.db", clock=Clock())
    create(first, labels={"a": "b"})
    add(first)
    second = Vault(tmp_path / "secrets.db", clock=Clock())  # The first was never closed.
    assert access(second) == PAYLOAD
    assert add(second, b"next").name.endswith("/versions/2")


def test_a_destroyed_payload_is_on_no_page_of_the_disk(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "secrets.db", clock=Clock())
    create(vault)
    name = add(vault).name
    assert any(PAYLOAD in file.read_bytes() for file in tmp_path.iterdir())
    vault.destroy_secret_version(service.DestroySecretVersionRequest(name=name)._pb)
    assert not any(PAYLOAD in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("expiry", [{"ttl": timedelta(hours=1)}, {"expire_time": datetime(2026, 1, 1, 1, tzinfo=UTC)}])
def test_a_secret_is_gone_when_its_time_is_over(expiry: dict[str, Any]) -> None:
    clock = Clock()
    vault = Vault(None, clock=clock)
    assert create(vault, **expiry).expire_time.ToDatetime(UTC) == datetime(2026, 1, 1, 1, tzinfo=UTC)
    add(vault)
    clock.now += timedelta(minutes=59)
    assert access(vault) == PAYLOAD
    clock.now += timedelta(minutes=1)
    with pytest.raises(SecretError, match="not found"):
        access(vault)
    create(vault)  # The name is free again.
    with pytest.raises(SecretError, match="not found"):
        access(vault)


def test_no_refusal_repeats_a_payload() -> None:
    vault = Vault(None, clock=Clock())
    create(vault)
    request = service.AddSecretVersionRequest(
        parent="projects/p-one/secrets/token", payload={"data": PAYLOAD, "data_crc32c": 1}
    )
    with pytest.raises(SecretError) as caught:
        vault.add_secret_version(request._pb)
    assert "horse" not in str(caught.value)
