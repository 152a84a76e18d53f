"""Dead letters that a person can work with, at the command line and over HTTP, against a real Pub/Sub on loopback."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from google.api_core.exceptions import AlreadyExists

from goblin.cli.main import main
from goblin.core import dead_letters, events
from goblin.core.dead_letters import NO_REASON
from goblin.core.errors import StoreUnavailable
from goblin.gcp.dead_letters import PubSubDeadLetters
from tests.functions.conftest import OTHER_KEY
from tests.functions.test_jobs import Doorways, doors, running  # noqa: F401  `doors` is a fixture.
from tests.functions.test_refused_events import Graves

GOOD = b'{"job_id": "j", "kind": "training"}'
BAD = b'{"job_id": "no id", "kind": "batch"}'
SOURCE = events.SOURCE


class Yard(Graves):
    """Dead letters as Pub/Sub and our functions leave them, and what is replayed."""

    def __init__(self, project: str) -> None:
        super().__init__(project)
        from google.cloud import pubsub_v1

        self.publisher = pubsub_v1.PublisherClient()
        for topic in events.TOPICS:
            path = self.publisher.topic_path(project, topic)
            with contextlib.suppress(AlreadyExists):
                self.publisher.create_topic(name=path)
            self.subscriber.create_subscription(
                name=self.subscriber.subscription_path(project, f"{topic}-seen"), topic=path
            )

    def put(self, topic: str, data: bytes, count: int = 5, **attributes: str) -> str:
        """As Pub/Sub moves one; the id of the dead letter."""
        marks = {
            f"{SOURCE}DeliveryCount": str(count), f"{SOURCE}Subscription": f"{topic}-push",
            f"{SOURCE}TopicPublishTime": "2026-11-01T00:00:00.123Z",
        }  # fmt: skip
        path = self.publisher.topic_path(self._project, f"{topic}-dead")
        return str(self.publisher.publish(path, data, **{**marks, **attributes}).result(10))

    def seen(self, topic: str) -> list[Any]:
        path = self.subscriber.subscription_path(self._project, f"{topic}-seen")
        got = self.subscriber.pull(subscription=path, max_messages=9, timeout=10).received_messages
        self.subscriber.acknowledge(subscription=path, ack_ids=[one.ack_id for one in got])
        return [one.message for one in got]


@pytest.fixture
def yard(doors: Doorways, api_keys: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:  # noqa: F811
    monkeypatch.setattr("goblin.gcp.dead_letters.WAIT_S", 0.2)
    found = Yard(doors.project)
    yield found
    found.subscriber.close()
    found.publisher.transport.close()


def goblin(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["dead-letters", *words], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return str(done.output)


def rows(*words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(goblin("list", *words, "--json"))
    return found


def test_each_says_why_since_when_and_how_often(yard: Yard) -> None:
    silent = yard.put("checkpoint-saved", b"{}")
    told = yard.put("job-requested", GOOD, **{events.REASON: "Firestore\x1b[31m did not answer."}, team="a")
    found = {row["message_id"]: row for row in rows()}
    assert found.keys() == {silent, told}
    assert found[silent]["reason"] == NO_REASON
    assert found[told]["reason"] == "Firestore [31m did not answer."
    assert (found[told]["first_at"], found[told]["delivery_count"]) == ("2026-11-01T00:00:00.123Z", "5")
    assert found[told]["attributes"] == {"team": "a"}
    assert found[told]["unreadable"] is None
    assert "Malformed" in found[silent]["unreadable"]
    text = goblin("list")
    assert "5 deliveries" in text
    assert "first 2026-11-01T00:00:00.123Z" in text
    assert text.endswith("2 dead letters\n")


def test_many_are_counted_and_the_first_are_shown(yard: Yard) -> None:
    put = [yard.put("job-requested", GOOD) for _ in range(130)]
    assert goblin("list").endswith("the first 100 of 130 dead letters\n")
    assert [row["message_id"] for row in rows()] == sorted(put, key=int), "looking takes none away"


def test_more_than_can_be_read_are_not_passed_off_as_all(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(7):
        yard.put("job-requested", GOOD)
    monkeypatch.setattr(dead_letters, "PULLED_MAX", 4)
    assert goblin("list", "--limit", "3").endswith("the first 3 of more than 5 dead letters\n")


def test_what_is_known_of_a_letter_survives_its_replays(yard: Yard) -> None:
    first = yard.put("job-requested", GOOD, **{events.REASON: "Firestore did not answer."}, team="a")
    assert goblin("replay", "--message", first) == "1 replayed\n"
    assert rows() == []
    [message] = yard.seen("job-requested")
    assert (message.data, message.attributes["team"]) == (GOOD, "a")
    assert not [name for name in message.attributes if name.startswith(SOURCE)]
    # It fails five times more, and its function says nothing.
    again = yard.put("job-requested", GOOD, **dict(message.attributes))
    [row] = rows()
    assert row["message_id"] == again
    assert (row["first_at"], row["delivery_count"], row["replays"]) == ("2026-11-01T00:00:00.123Z", "10", 1)
    assert row["reason"] == "Firestore did not answer."
    assert row["attributes"] == {"team": "a"}


def test_what_cannot_be_parsed_is_replayed_only_by_force(yard: Yard) -> None:
    bad, good = yard.put("job-requested", BAD), yard.put("job-requested", GOOD)
    assert [row["message_id"] for row in json.loads(goblin("replay", "--json").splitlines()[0])] == [good]
    assert [row["message_id"] for row in rows()] == [bad]
    assert "cannot be parsed" in goblin("replay", "--message", bad, code=1)
    assert "a replay needs --force" in goblin("list")
    assert goblin("replay", "--message", bad, "--force") == "1 replayed\n"
    assert rows() == []
    assert {message.data for message in yard.seen("job-requested")} == {GOOD, BAD}


@pytest.mark.parametrize(
    ("topic", "data", "attributes", "readable"),
    [
        ("budget-exceeded", b'{"account": "total"}', {}, False),
        ("budget-exceeded", b'{"account": "total"}', {"budgetId": "b"}, False),
        (
            "budget-exceeded",
            b'{"budgetDisplayName": "b", "costAmount": 1, "costIntervalStart": "2026-11-01T08:00:00Z",'
            b' "budgetAmount": 10, "currencyCode": "USD"}',
            {"budgetId": "b"},
            True,
        ),
        ("job-requested", b"\xff\xfe", {}, False),
        ("job-requested", b"[" * 5000, {}, False),
        ("model-promoted", b"", {}, False),
    ],
)
def test_what_cannot_be_parsed_is_known_by_its_topic(
    yard: Yard, topic: str, data: bytes, attributes: dict[str, str], readable: bool
) -> None:
    yard.put(topic, data or b" ", **attributes)
    [row] = rows(topic)
    assert (row["unreadable"] is None) is readable


def test_one_is_dropped_by_its_id_and_no_other(yard: Yard) -> None:
    one, other = yard.put("job-requested", GOOD), yard.put("model-promoted", BAD)
    assert goblin("drop", other) == f"{other} of model-promoted is deleted\n"
    assert [row["message_id"] for row in rows()] == [one]
    assert "There is no dead letter" in goblin("drop", other, code=1)
    assert "There is no dead letter" in goblin("drop", one, "--topic", "model-promoted", code=1)
    assert "There is no dead letter" in goblin("replay", "--message", other, code=1)


def test_marks_that_a_publisher_forged_are_only_text(yard: Yard) -> None:
    marks = {events.DELIVERIES: "-1", events.REPLAYS: "9" * 100, events.FIRST_AT: "\x1b[2Jsoon", events.REASON: "\n\n"}
    yard.put("job-requested", GOOD, **marks)
    [row] = rows()
    assert (row["delivery_count"], row["replays"], row["first_at"]) == ("5", 0, " [2Jsoon")
    goblin("list")


def test_a_message_with_any_attributes_is_replayed_with_them(yard: Yard) -> None:
    names = {"topic": "a", "data": "b", "ordering_key": "c", "timeout": "d", "self": "e"}
    many = {f"a{number}": "v" for number in range(90)}
    from google.pubsub_v1 import PublisherClient

    request = {
        "topic": yard.publisher.topic_path(yard._project, "job-requested-dead"),
        "messages": [{"data": GOOD, "attributes": names | many, "ordering_key": "k"}],
    }
    PublisherClient.publish(yard.publisher, request=request)
    assert goblin("replay") == "1 replayed\n"
    [message] = yard.seen("job-requested")
    assert (names | many).items() <= dict(message.attributes).items()
    assert message.ordering_key == "k"


def test_the_same_over_http_for_operators(doors: Doorways, yard: Yard) -> None:  # noqa: F811
    bad, good = yard.put("job-requested", BAD), yard.put("job-requested", GOOD)
    gone = yard.put("checkpoint-saved", BAD)
    listed = doors.ask("GET", "/dead-letters?limit=2").json()
    assert [len(listed["data"]), listed["total"], listed["whole"]] == [2, 3, True]
    assert [row["message_id"] for row in doors.ask("GET", "/dead-letters?topic=checkpoint-saved").json()["data"]] == [
        gone
    ]
    assert doors.ask("GET", "/dead-letters?topic=nothing").status_code == 404
    assert doors.ask("GET", "/dead-letters?limit=0").status_code == 400
    refused = doors.ask("POST", f"/dead-letters/job-requested/{bad}/replay")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unreadable_event")
    assert doors.ask("POST", f"/dead-letters/checkpoint-saved/{good}/replay").status_code == 404
    assert doors.ask("POST", f"/dead-letters/job-requested/{good}/replay").json()["message_id"] == good
    assert doors.ask("POST", f"/dead-letters/job-requested/{bad}/replay?force=true").json()["message_id"] == bad
    assert doors.ask("POST", f"/dead-letters/checkpoint-saved/{gone}/drop").json()["message_id"] == gone
    assert doors.ask("POST", f"/dead-letters/checkpoint-saved/{gone}/drop").status_code == 404
    assert doors.ask("GET", "/dead-letters").json()["data"] == []


class Slow:
    """A subscriber whose every answer comes late."""

    def __init__(self, inner: Any, delay_s: float) -> None:
        self._inner = inner
        self._delay_s = delay_s
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def pull(self, *, request: dict[str, Any], timeout: float, retry: None) -> Any:
        from google.api_core.exceptions import DeadlineExceeded

        with self._lock:
            time.sleep(min(self._delay_s, timeout))
        if self._delay_s >= timeout:
            raise DeadlineExceeded("Deadline Exceeded")
        return self._inner.pull(request=request, timeout=timeout - self._delay_s, retry=retry)


@pytest.fixture
def boxed(yard: Yard) -> Callable[..., PubSubDeadLetters]:
    return lambda delay_s, call_s: PubSubDeadLetters(
        Slow(yard.subscriber, delay_s),  # type: ignore[arg-type]
        lambda: yard.publisher, project=yard._project, call_s=call_s,
    )  # fmt: skip


async def test_a_slow_answer_is_not_an_empty_one(
    yard: Yard, boxed: Callable[..., PubSubDeadLetters], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goblin.gcp.dead_letters.WAIT_S", 0.1)
    put = yard.put("job-requested", GOOD)
    found, whole = await boxed(0.3, 5.0).pull("job-requested", 10)
    assert ([letter.message_id for letter in found], whole) == ([put], True)
    with pytest.raises(StoreUnavailable, match="not known"):
        await boxed(0.3, 0.2).pull("model-promoted", 10)
    assert await boxed(0.0, 5.0).pull("model-promoted", 10) == ([], True)


def test_who_does_not_operate_sees_none(doors: Doorways, yard: Yard, firestore: Any) -> None:  # noqa: F811
    put = yard.put("job-requested", GOOD)
    from goblin.gateway.keys import digest_of

    firestore.collection("keys").document(digest_of(OTHER_KEY)).update({"scopes": ["jobs", "inference"]})
    for method, path in (
        ("GET", "/dead-letters"),
        ("POST", f"/dead-letters/job-requested/{put}/drop"),
        ("POST", f"/dead-letters/job-requested/{put}/replay"),
    ):
        assert doors.ask(method, path, key=OTHER_KEY).status_code == 403
        assert doors.ask(method, path, key="").status_code == 401
    assert len(rows()) == 1
