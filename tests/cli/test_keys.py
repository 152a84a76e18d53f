"""`goblin keys`, against a Firestore of the test's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from goblin.cli.main import main
from goblin.wiring import process
from tests.clouds import RunningCloud, environment

Goblin = Callable[..., Result]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCloud]:
    with RunningCloud(tmp_path_factory.mktemp("cloud"), services=("firestore",)) as cloud:
        yield cloud


@pytest.fixture
def goblin(cloud: RunningCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Goblin]:
    said = {**environment(cloud.addresses), "GOOGLE_CLOUD_PROJECT": cloud.project(), "GOBLIN_BUCKET": "b"}
    monkeypatch.delenv("GCS_PROJECT_ID", raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    process.settings.cache_clear()
    yield lambda *words: CliRunner().invoke(main, ["keys", *words])
    process.settings.cache_clear()


def told(goblin: Goblin, *words: str) -> Any:
    ended = goblin(*words, "--json")
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


def test_a_key_is_made_listed_and_revoked(goblin: Goblin) -> None:
    assert told(goblin, "list") == {"keys": []}
    made = told(goblin, "create", "app", "--model", "org/*", "--rate", "60", "--expires", "30d", "--tenant", "acme")
    assert made["key"].startswith("gob-")
    (listed,) = told(goblin, "list")["keys"]
    assert (listed["name"], listed["state"], listed["models"], listed["tenant"]) == ("app", "good", ["org/*"], "acme")
    assert listed["scopes"] == ["inference"]
    assert told(goblin, "revoke", "app")["name"] == "app"
    assert [key["state"] for key in told(goblin, "list")["keys"]] == ["revoked"]


def test_the_key_itself_is_nowhere(goblin: Goblin, cloud: RunningCloud) -> None:
    made = goblin("create", "app")
    secret = made.stdout.strip()
    assert secret not in made.stderr
    digest = hashlib.sha256(secret.encode()).hexdigest()
    listed = goblin("list").output
    assert digest[:12] in listed
    assert digest not in listed
    assert secret not in listed


def test_keys_of_one_name_are_told_apart_by_their_digests(goblin: Goblin) -> None:
    secrets = [told(goblin, "create", "twin", "--scope", "jobs", "--scope", "operate")["key"] for _ in range(2)]
    refused = goblin("revoke", "twin")
    assert refused.exit_code == 1
    assert "2 keys are called 'twin'" in refused.stderr
    digest = hashlib.sha256(secrets[0].encode()).hexdigest()
    told(goblin, "revoke", digest[:8])
    told(goblin, "revoke", "twin")  # Now there is one left.
    assert {key["state"] for key in told(goblin, "list")["keys"]} == {"revoked"}


@pytest.mark.parametrize(
    "words",
    [("revoke", "nobody"), ("revoke", ""), ("create", "x", "--expires", "soon"), ("create", "x", "--scope", "fly")],
)
def test_what_makes_no_sense_is_refused(goblin: Goblin, words: tuple[str, ...]) -> None:
    assert goblin(*words).exit_code != 0
    assert told(goblin, "list") == {"keys": []}


def test_a_name_cannot_write_a_row_of_its_own(goblin: Goblin) -> None:
    told(goblin, "create", "a\nffffffffffff  good     forged\x1b[31m", "--tenant", "t\r\nx", "--model", "m\n*")
    listed = goblin("list")
    assert listed.exit_code == 0
    assert len(listed.stdout.splitlines()) == 1
    assert "\x1b" not in listed.stdout
