"""Events, bodies and stored documents that cannot be read: one delivery and a reason, 400 and a field, never a 500."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from goblin.cli import paths
from goblin.cli.main import main
from goblin.core import dead_letters, events
from goblin.core.errors import StoreUnavailable
from tests.fakes.batch_host import dataset
from tests.functions.conftest import API_KEY
from tests.functions.test_jobs import Doorways, doors, running  # noqa: F401  `doors` is a fixture.

DEEP = b"[" * 957 + b"]" * 957
SPEC = b'{"job_id": "j", "kind": "batch", %s}'
SAVED = b'{"job_id": "j", "attempt": 1, "step": 1, "manifest_uri": "gs://bkt/m", %s}'
PROMOTED = b'{"org": "o", "model": "m", "version": "1", "artifact_uri": "gs://bkt/m", "sha256": "%s", %%s}' % (
    b"0" * 64
)
EXCEEDED = b'{"account": "total", "window": "2026-11", "spent_usd_micros": 1, "limit_usd_micros": 1, %s}'
BODIES = {"job_requested": SPEC, "checkpoint_saved": SAVED, "model_promoted": PROMOTED, "budget_exceeded": EXCEEDED}
FIELDS = {
    "deep": (b'"unknown": ' + DEEP, "nested more than 32 levels deep - at `$.unknown`"),
    "Latin-1": (b'"unknown": "caf\xe9"', "which is not UTF-8"),
    "surrogate": (b'"unknown": "\\ud800"', "Malformed"),
    "torn": (b'"unknown": ', "Malformed"),
}
OWN_FIELDS = {
    "job_requested": {
        "deep parameters": (b'"parameters": {"a": ' + DEEP + b"}", "levels deep - at `$.parameters`"),
        "a list of parameters": (b'"parameters": []', "`$.parameters`"),
        "64 bits": (b'"checkpoint_every": 9223372036854775808', "64 bits - at `$.checkpoint_every`"),
        "the year 0": (b'"deadline": "0001-01-01T00:00:00+00:01", "est_hours": 1', "UTC - at `$.deadline`"),
        "the year 10000": (b'"deadline": "9999-12-31T23:59:59-00:01", "est_hours": 1', "UTC - at `$.deadline`"),
        "too large": (b'"parameters": {"a": "' + b"x" * 70_000 + b'"}', "at most 65536 bytes"),
    },
    "checkpoint_saved": {
        "64 bits": (b'"manifest_generation": 99999999999999999999', "64 bits - at `$.manifest_generation`"),
        "unknown job": (b'"unknown": 1', "There is no job"),
    },
    "model_promoted": {"64 bits": (b'"seq": 9223372036854775808', "64 bits - at `$.seq`")},
    "budget_exceeded": {"64 bits": (b'"reserved_usd_micros": 99999999999999999999', "64 bits - at `$.reserved")},
}


class Graves:
    """The dead letter topics of a project, as `goblin up` and Terraform create them."""

    def __init__(self, project: str) -> None:
        from google.cloud import pubsub_v1

        self._project = project
        self.subscriber = pubsub_v1.SubscriberClient()
        publisher = pubsub_v1.PublisherClient()
        for topic in events.TOPICS:
            dead = publisher.create_topic(name=publisher.topic_path(project, f"{topic}-dead")).name
            self.subscriber.create_subscription(
                name=self.subscriber.subscription_path(project, f"{topic}-dead"), topic=dead
            )
        publisher.transport.close()

    def take(self, door: str) -> list[Any]:
        path = self.subscriber.subscription_path(self._project, f"{door.replace('_', '-')}-dead")
        got = self.subscriber.pull(subscription=path, max_messages=9, timeout=10).received_messages
        self.subscriber.acknowledge(subscription=path, ack_ids=[one.ack_id for one in got])
        return [one.message for one in got]


@pytest.fixture
def graves(doors: Doorways) -> Iterator[Graves]:  # noqa: F811
    found = Graves(doors.project)
    yield found
    found.subscriber.close()


@pytest.mark.parametrize("door", BODIES)
def test_a_refused_event_costs_one_delivery_and_carries_its_reason(
    doors: Doorways,  # noqa: F811
    graves: Graves,
    door: str,
) -> None:
    for field, words in {**FIELDS, **OWN_FIELDS[door]}.values():
        data = BODIES[door] % field
        answer = doors.push(door, data, attributes={"team": "a", "goblin-reason": "invented"})
        assert answer.status_code == 204, answer.text
        [letter] = graves.take(door)
        assert letter.data == data
        marks = dict(letter.attributes)
        assert words in marks.pop("goblin-reason")
        assert marks == {
            "team": "a", "CloudPubSubDeadLetterSourceDeliveryCount": "1",
            "CloudPubSubDeadLetterSourceSubscription": "s",
            "CloudPubSubDeadLetterSourceSubscriptionProject": doors.project,
            "CloudPubSubDeadLetterSourceTopicPublishTime": "2026-11-25T12:00:00+00:00",
        }  # fmt: skip


def test_an_event_that_fails_at_its_last_delivery_is_buried_with_the_reason(
    doors: Doorways,  # noqa: F811
    graves: Graves,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from goblin.jobs import lifecycle

    for error, words in (
        (StoreUnavailable("Firestore did not answer in time."), "Firestore did not answer in time."),
        (ZeroDivisionError("odd\x1b[31m"), "ZeroDivisionError: odd [31m"),
    ):

        async def fail(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(lifecycle, "request", fail)
        for attempt in range(1, dead_letters.DELIVERIES_MAX):
            assert doors.push("job_requested", SPEC % b'"a": 1', attempt=attempt).status_code >= 500
        marks = {"goblin-first-at": "2026-11-01T00:00:00Z", "goblin-deliveries": "5", "goblin-replays": "1"}
        last = doors.push("job_requested", SPEC % b'"a": 1', attempt=dead_letters.DELIVERIES_MAX, attributes=marks)
        assert last.status_code == 204
        [letter] = graves.take("job_requested")
        assert letter.attributes["goblin-reason"] == words
        assert letter.attributes["CloudPubSubDeadLetterSourceDeliveryCount"] == "5"
        assert marks.items() <= dict(letter.attributes).items(), "what is known of it is kept"


def test_the_last_delivery_is_the_one_that_pub_sub_is_told() -> None:
    assert json.loads(paths.declaration().read_text())["push"]["delivery_attempts_max"] == dead_letters.DELIVERIES_MAX


def test_an_event_of_cloud_billing_with_impossible_amounts_is_buried(doors: Doorways, graves: Graves) -> None:  # noqa: F811
    notice = {
        "budgetDisplayName": "b", "costAmount": "NaN", "costIntervalStart": "2026-11-01T08:00:00Z",
        "budgetAmount": 10, "currencyCode": "USD", "alertThresholdExceeded": 1.0,
    }  # fmt: skip
    for cost in ("NaN", "Infinity", "1e999999"):
        data = json.dumps({**notice, "costAmount": cost}).encode()
        assert doors.push("budget_exceeded", data, attributes={"budgetId": "b-1"}).status_code == 204
        [letter] = graves.take("budget_exceeded")
        assert letter.data == data


def test_the_reason_is_listed_and_a_replay_leaves_it_behind(doors: Doorways, graves: Graves) -> None:  # noqa: F811
    doors.push("job_requested", b'{"job_id": "no id", "kind": "batch"}', attributes={"team": "a"})
    listed = CliRunner().invoke(main, ["dead-letters", "list", "job-requested"], catch_exceptions=False)
    assert "Malformed JobRequested event: Expected `str` matching regex" in listed.output
    [row] = json.loads(
        CliRunner().invoke(main, ["dead-letters", "list", "job-requested", "--json"], catch_exceptions=False).output
    )
    assert (row["delivery_count"], row["attributes"]) == ("1", {"team": "a"})
    assert row["reason"].endswith("- at `$.job_id`.")
    assert len(graves.take("job_requested")) == 1


def test_the_largest_reason_and_a_hundred_attributes_fit(doors: Doorways, graves: Graves) -> None:  # noqa: F811
    attributes = {f"a{number:03d}": "é" * 512 for number in range(100)}
    data = SPEC % b'"dataset_uri": "gs://bkt/d", "unknown": "caf\xe9"'
    assert doors.push("job_requested", data, attributes=attributes).status_code == 204
    [letter] = graves.take("job_requested")
    assert len(letter.attributes) == 100
    assert "which is not UTF-8" in letter.attributes["goblin-reason"]


def test_without_a_grave_the_event_comes_again(doors: Doorways) -> None:  # noqa: F811
    answer = doors.push("job_requested", b"{}")
    assert answer.status_code == 400
    assert "job_id" in answer.json()["error"]["message"]


@pytest.mark.parametrize("door", BODIES)
def test_a_body_that_is_no_push_is_400(doors: Doorways, door: str) -> None:  # noqa: F811
    headers = {"authorization": f"Bearer {doors.token()}", "content-type": "application/json"}
    for body in (b"", b"[]", b"{", b"\xff", DEEP, b'{"message": {"data": "\xe9"}}'):
        assert httpx.post(f"{doors.url(door)}/", content=body, headers=headers, timeout=30).status_code == 400, body


# The same over HTTP: 400 with the field.


def test_a_specification_that_cannot_be_kept_is_400_with_its_field(doors: Doorways) -> None:  # noqa: F811
    headers = {"authorization": f"Bearer {API_KEY}"}
    for param, field in (
        ("parameters", b'"parameters": {"a": ' + DEEP + b"}"),
        ("parameters", b'"parameters": {"a": 1e999}'),
        ("parameters", b'"parameters": null'),
        ("checkpoint_every", b'"checkpoint_every": 9223372036854775808'),
        ("deadline", b'"deadline": "0001-01-01T00:00:00+00:01", "est_hours": 1'),
        ("deadline", b'"deadline": "9999-12-31T23:59:59-00:01", "est_hours": 1'),
        ("deadline", b'"deadline": "10000-01-01T00:00:00Z"'),
        ("budget_usd", b'"budget_usd": "1e999999"'),
        ("unknown", b'"unknown": ' + DEEP),
        (None, b'"model": "caf\xe9"'),
        (None, b'"model": "\\ud800"'),
    ):
        answer = httpx.post(f"{doors.url('jobs')}/jobs", content=SPEC % field, headers=headers, timeout=30)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param), error


NUMBERS = [
    b"9223372036854775808",
    b"9" * 30,
    b"9" * 5000,
    b"-1",
    b"1e999",
    b'"1"',
    b"[" * 2000 + b"]" * 2000,
    b'"\xe9"',
]
ROUTES = {
    "heartbeat": b'{"step": %s}',
    "heartbeat of a training": b'{"step": 1, "gpu_errors": %s, "total": %s}',
    "checkpoints": b'{"step": %s, "files": []}',
    "checkpoints/1/commit": b'{"previous_step": %s, "upload_id": "12345678", "files": [{"size": %s}]}',
    "logs": b'{"number": %s, "size": 1, "crc32c": "AAAAAA=="}',
    "finish": b'{"step": %s}',
    "withdraw": b'{"reason": "x", "step": %s}',
    "fail": b'{"reason": "x", "step": %s}',
}


def test_no_worker_route_answers_500_whatever_a_host_sends(doors: Doorways) -> None:  # noqa: F811
    token = running(doors)
    assert doors.ask("POST", "/jobs/j/claim", {}, key=token).status_code == 200
    headers = {"authorization": f"Bearer {token}"}
    seen = set()
    with httpx.Client(base_url=doors.url("jobs"), headers=headers, timeout=30) as client:
        for (route, body), number in itertools.product(ROUTES.items(), NUMBERS):
            content = body.replace(b"%s", number)
            answer = client.post(f"/jobs/j/{route.split(' ')[0]}", content=content)
            assert 400 <= answer.status_code < 500, (route, number[:20], answer.text)
            seen.add(answer.status_code)
        for step in ("²", "9" * 20, "9" * 5000, "-1", "x"):
            answer = client.post(f"/jobs/j/checkpoints/{step}/commit", content=b"{}")
            assert 400 <= answer.status_code < 500, (step, answer.text)
        for limit in ("²", "9" * 5000):
            assert doors.ask("GET", f"/jobs?limit={limit}").status_code == 400
    assert seen <= {400, 409}
    assert doors.ask("GET", "/jobs/j").json()["state"] == "running"


# Documents that an older version, or a person, wrote.


def store(doors: Doorways, job_id: str, changes: dict[str, Any]) -> None:  # noqa: F811
    """Write a copy of job `j` past every check; `spec.kind` changes a field within."""

    async def put() -> None:
        from google.cloud.firestore import AsyncClient

        jobs = AsyncClient(project=doors.project).collection("jobs")
        fields = (await jobs.document("j").get()).to_dict() or {}
        fields |= {"job_id": job_id, "spec": {**fields["spec"], "job_id": job_id}}
        await jobs.document(job_id).set(fields)
        await jobs.document(job_id).update(changes)

    asyncio.run(put())


def tick(doors: Doorways) -> Any:  # noqa: F811
    answer = httpx.post(f"{doors.url('reconcile')}/", headers={"authorization": f"Bearer {doors.token()}"}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_stored_job_with_deep_parameters_is_a_job_like_any_other(doors: Doorways) -> None:  # noqa: F811
    doors.upload("j", 5)
    assert doors.ask("POST", "/jobs", doors.spec("j")).status_code == 202
    text = f'{{"a": {DEEP.decode()}}}'
    store(doors, "deep", {"spec.parameters": text})
    assert tick(doors)["errors"] == []
    listed = {one["job_id"]: one for one in doors.ask("GET", "/jobs").json()["data"]}
    assert listed.keys() == {"j", "deep"}
    assert listed["deep"]["parameters"] == text, "as text, or its reader would be the next to fail"
    assert doors.ask("POST", "/jobs/deep/cancel").json()["state"] == "cancelled"
    assert doors.ask("POST", "/jobs/j/cancel").json()["state"] == "cancelled"


def test_a_document_that_cannot_be_read_is_left_out_and_the_others_go_on(doors: Doorways) -> None:  # noqa: F811
    doors.upload("j", 5)
    assert doors.ask("POST", "/jobs", doors.spec("j")).status_code == 202
    odd: list[dict[str, Any]] = [
        {"state": "dreaming"},
        {"attempt": "two"},
        {"requested_at": "yesterday"},
        {"spec.parameters": 7},
        {"spec.parameters": "[]"},
        {"spec.kind": 7},
        {"spec": "none"},
        {"lease": {"label": 3}},
        {"reasons": {"a": 1}},
        {"job_id": "another"},
    ]
    for number, changes in enumerate(odd):
        store(doors, f"odd-{number}", changes)
    assert tick(doors)["errors"] == []
    assert [one["job_id"] for one in doors.ask("GET", "/jobs").json()["data"]] == ["j"]
    for number, changes in enumerate(odd):
        for method, path in (("GET", f"/jobs/odd-{number}"), ("POST", f"/jobs/odd-{number}/cancel")):
            error = doors.ask(method, path).json()["error"]
            assert error["code"] == "unreadable_job", changes
            assert f"Mend or delete the document jobs/odd-{number}." in error["message"]
    assert doors.ask("POST", "/jobs/j/cancel").json()["state"] == "cancelled"


def test_a_latin_1_dataset_refuses_its_job_and_no_other(doors: Doorways) -> None:  # noqa: F811
    blob = doors.cloud.storage_client(doors.project).bucket(doors.bucket).blob("datasets/bad.jsonl")
    blob.upload_from_string(dataset(2).replace(b"say 1", b"caf\xe9"))
    doors.upload("good", 3)
    for name in ("bad", "good"):
        assert doors.push("job_requested", json.dumps(doors.spec(name)).encode()).status_code == 204
    assert tick(doors)["errors"] == []
    bad, good = doors.ask("GET", "/jobs/bad").json(), doors.ask("GET", "/jobs/good").json()
    assert (bad["state"], good["state"]) == ("refused", "queued")
    assert "line 2: byte" in bad["reason"]
