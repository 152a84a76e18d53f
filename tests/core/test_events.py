"""The one parser, over every shape that Google delivers a message in; shapes as functions-framework 3.10 was tried."""

import base64
import contextlib
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core import events
from goblin.core.errors import MalformedEvent

DATA = b'{"job_id": "j1", "kind": "batch"}'
PUSH: dict[str, Any] = {
    "message": {
        "data": base64.b64encode(DATA).decode(),
        "attributes": {"team": "a"},
        "messageId": "17",
        "message_id": "17",
        "publishTime": "2026-11-23T10:00:00.5Z",
        "publish_time": "2026-11-23T10:00:00.5Z",
    },
    "subscription": "projects/p/subscriptions/job-requested-push",
}
JSON = {"content-type": "application/json"}
CE = {
    "ce-id": "17",
    "ce-source": "//pubsub.googleapis.com/projects/p/topics/job-requested",
    "ce-specversion": "1.0",
    "ce-type": "google.cloud.pubsub.topic.v1.messagePublished",
    "ce-time": "2026-11-23T10:00:00.5Z",
}


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


SHAPES = {
    "raw push": (JSON, body(PUSH)),
    "raw push with a charset": ({"Content-Type": "application/json; charset=utf-8"}, body(PUSH)),
    "binary CloudEvent around a push": ({**JSON, **CE}, body(PUSH)),
    "headers in any case": ({k.upper(): v for k, v in {**JSON, **CE}.items()}, body(PUSH)),
    "structured CloudEvent around a push": (
        {"content-type": "application/cloudevents+json; charset=utf-8"},
        body({"id": "17", "source": "s", "type": "t", "specversion": "1.0", "data": PUSH}),
    ),
    "structured CloudEvent of bytes": (
        {"content-type": "application/cloudevents+json"},
        body({"id": "17", "source": "s", "type": "t", "specversion": "1.0", "data_base64": PUSH["message"]["data"]}),
    ),
    "binary CloudEvent of bytes": ({**CE, "content-type": "application/octet-stream"}, DATA),
    "unwrapped push with metadata": (
        {
            "content-type": "application/octet-stream",
            "x-goog-pubsub-message-id": "17",
            "x-goog-pubsub-publish-time": "2026-11-23T10:00:00.5Z",
            "x-goog-pubsub-subscription-name": PUSH["subscription"],
            "team": "a",
        },
        DATA,
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_carries_the_same_event(shape: str) -> None:
    headers, content = SHAPES[shape]
    event = events.parse_event(headers, content)
    assert event.event_id == "17"
    assert event.data == DATA
    assert events.decode(events.JobRequested, event.data).job_id == "j1"
    if "structured" not in shape:
        assert event.published_at == datetime(2026, 11, 23, 10, 0, 0, 500000, tzinfo=UTC)
    if "push" in shape:
        assert event.attributes["team"] == "a"


def test_attributes_alone_are_an_event() -> None:
    message = {k: v for k, v in PUSH["message"].items() if k != "data"}
    event = events.parse_event(JSON, body({**PUSH, "message": message}))
    assert (event.data, event.attributes) == (b"", {"team": "a"})


def test_a_push_says_its_attempt_and_its_ordering_key() -> None:
    said = {**PUSH, "message": {**PUSH["message"], "orderingKey": "k"}, "deliveryAttempt": 3}
    event = events.parse_event(JSON, body(said))
    assert (event.delivery_attempt, event.ordering_key, event.source) == (3, "k", PUSH["subscription"])


def test_eventarcs_binding_mode_carries_the_event_in_attributes() -> None:
    attributes = {"ce-id": "9", "ce-type": "t", "ce-source": "s", "team": "a"}
    event = events.parse_event(JSON, body({**PUSH, "message": {**PUSH["message"], "attributes": attributes}}))
    assert (event.event_id, event.type, event.source, event.attributes) == ("9", "t", "s", {"team": "a"})


def test_an_unwrapped_push_keeps_transport_headers_out_of_the_attributes() -> None:
    headers = {
        "x-goog-pubsub-message-id": "1",
        "authorization": "Bearer secret",
        "host": "h",
        "user-agent": "u",
        "a": "b",
    }
    assert events.parse_event(headers, b"x").attributes == {"a": "b"}


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        (JSON, b"not json"),
        (JSON, b"[]"),
        (JSON, body({"hello": "world"})),
        (JSON, body({**PUSH, "message": {**PUSH["message"], "messageId": ""}})),
        (JSON, body({**PUSH, "message": {**PUSH["message"], "data": "not base64!"}})),
        ({"content-type": "text/plain"}, b"hello"),
        ({"content-type": "application/cloudevents+json"}, b"{}"),
        ({"content-type": "application/cloudevents+json"}, b"not json"),
        ({**CE, "ce-time": "yesterday"}, b"x"),
        (JSON, b" " * (events.PUSH_BYTES_MAX + 1)),
    ],
)
def test_what_is_no_event_is_refused_in_words(headers: dict[str, str], content: bytes) -> None:
    with pytest.raises(MalformedEvent) as refusal:
        events.parse_event(headers, content)
    assert len(refusal.value.message) > 10


@given(
    headers=st.dictionaries(
        st.sampled_from([*CE, "content-type", "x-goog-pubsub-message-id", "x"]), st.text(max_size=40)
    ),
    content=st.one_of(
        st.binary(max_size=200), st.builds(body, st.recursive(st.none() | st.text() | st.integers(), st.lists))
    ),
)
def test_nothing_but_an_event_or_a_refusal_comes_out(headers: dict[str, str], content: bytes) -> None:
    with contextlib.suppress(MalformedEvent):
        assert isinstance(events.parse_event(headers, content), events.Event)


@pytest.mark.parametrize(
    ("schema", "data", "named"),
    [
        (events.JobRequested, b"{}", "job_id"),
        (events.JobRequested, b'{"job_id": "../x", "kind": "batch"}', "job_id"),
        (events.JobRequested, b'{"job_id": "a", "kind": "batch", "dataset_uri": "http://x/y"}', "dataset_uri"),
        (events.JobRequested, b'{"job_id": "a", "kind": "batch", "checkpoint_every": 0}', "checkpoint_every"),
        (
            events.ModelPromoted,
            b'{"org":"o","model":"m","version":"1","artifact_uri":"gs://bkt/a","sha256":"x","seq":1}',
            "sha256",
        ),
        (
            events.BudgetExceeded,
            b'{"account":"total","window":"2026-11","spent_usd_micros":-1,"limit_usd_micros":1}',
            "spent",
        ),
        (events.CheckpointSaved, b"torn", "CheckpointSaved"),
    ],
)
def test_a_payload_that_does_not_fit_names_the_field(schema: type[msgspec.Struct], data: bytes, named: str) -> None:
    with pytest.raises(MalformedEvent, match=named):
        events.decode(schema, data)


def test_a_newer_publishers_extra_fields_pass() -> None:
    job = events.decode(events.JobRequested, b'{"job_id": "a", "kind": "batch", "colour": "green"}')
    assert events.decode(events.JobRequested, events.encode(job)) == job
