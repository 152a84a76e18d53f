"""Preconditions through Google's client: what checkpoints and promotions rest on."""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from google.api_core import exceptions
from google.cloud.storage.exceptions import InvalidResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def bucket(local_cloud: Any) -> Any:
    return local_cloud.storage_client().create_bucket(f"bucket-{uuid.uuid4().hex}")


def make(bucket: Any, data: bytes = b"1") -> Any:
    blob = bucket.blob(f"o-{uuid.uuid4().hex}")
    blob.upload_from_string(data, if_generation_match=0)
    return blob


def test_only_the_first_creates(bucket: Any) -> None:
    blob = make(bucket)
    with pytest.raises(exceptions.PreconditionFailed) as caught:
        bucket.blob(blob.name).upload_from_string(b"2", if_generation_match=0)
    assert caught.value.code == 412
    assert blob.download_as_bytes() == b"1"


def test_of_many_writers_who_saw_the_same_generation_one_wins(bucket: Any, local_cloud: Any) -> None:
    blob = make(bucket)
    client = local_cloud.storage_client()

    def write(number: int) -> bool:
        try:
            client.bucket(bucket.name).blob(blob.name).upload_from_string(
                str(number), if_generation_match=blob.generation
            )
        except exceptions.PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(24))) == 1


def test_a_resumable_upload_checks_when_it_finishes(bucket: Any) -> None:
    blob = make(bucket)
    file = bucket.blob(blob.name).open("wb", if_generation_match=blob.generation, chunk_size=256 << 10)
    file.write(b"x" * (600 << 10))
    bucket.blob(blob.name).upload_from_string(b"meanwhile")
    with pytest.raises(InvalidResponse, match="412"):
        file.close()
    assert bucket.blob(blob.name).download_as_bytes() == b"meanwhile"


def test_a_resumable_upload_is_refused_at_its_beginning_too(bucket: Any) -> None:
    blob = make(bucket)
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.blob(blob.name).create_resumable_upload_session(if_generation_match=0)


def test_reading_not_modified_and_changed(bucket: Any) -> None:
    blob = make(bucket)
    with pytest.raises(exceptions.NotModified):
        blob.reload(if_generation_not_match=blob.generation)
    with pytest.raises(exceptions.NotModified):
        bucket.blob(blob.name).download_as_bytes(if_metageneration_not_match=1)
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.blob(blob.name).download_as_bytes(if_generation_match=blob.generation + 1)
    assert bucket.blob(blob.name).download_as_bytes(if_generation_match=blob.generation) == b"1"


def test_etags_hold_in_headers(bucket: Any, local_cloud: Any) -> None:
    blob = make(bucket)
    for url in (blob.self_link, blob.media_link, f"{local_cloud.storage_url}/{bucket.name}/{blob.name}"):
        etag = httpx.get(url).headers["etag"]
        assert httpx.get(url, headers={"if-none-match": etag}).status_code == 304
        assert httpx.get(url, headers={"if-match": etag}).status_code == 200
        assert httpx.get(url, headers={"if-match": '"other"'}).status_code == 412
        assert httpx.get(url, headers={"if-none-match": '"other"'}).status_code == 200
    blob.reload(if_etag_match=blob.etag)
    with pytest.raises(exceptions.NotModified):
        blob.reload(if_etag_not_match=blob.etag)


def test_copying_checks_both_ends(bucket: Any) -> None:
    source, target = make(bucket, b"source"), make(bucket, b"target")
    copy = bucket.blob(target.name)
    with pytest.raises(exceptions.PreconditionFailed):
        copy.rewrite(source, if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        copy.rewrite(source, if_source_metageneration_match=9)
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.copy_blob(source, bucket, target.name, if_source_generation_match=1)
    copy.rewrite(source, if_generation_match=target.generation, if_source_generation_match=source.generation)
    assert copy.download_as_bytes() == b"source"


def test_composing_checks_the_target_and_each_source(bucket: Any) -> None:
    one, two = make(bucket, b"1"), make(bucket, b"2")
    target = bucket.blob(f"c-{uuid.uuid4().hex}")
    with pytest.raises(exceptions.PreconditionFailed):
        target.compose([one, two], if_source_generation_match=[one.generation, 1])
    assert not target.exists()
    target.compose([one, two], if_generation_match=0, if_source_generation_match=[one.generation, two.generation])
    with pytest.raises(exceptions.PreconditionFailed):
        target.compose([one], if_generation_match=0)
    assert bucket.blob(target.name).download_as_bytes() == b"12"


@dataclass(frozen=True)
class Match:
    """One precondition, chosen relative to what is there: `offset` 0 is what is there now."""

    name: str
    offset: int | None
    """None stands for the number 0."""

    def arguments(self, generation: int, metageneration: int) -> dict[str, int]:
        now = metageneration if "metageneration" in self.name else generation
        return {self.name: 0 if self.offset is None else max(0, now + self.offset)}

    def holds(self, generation: int, metageneration: int) -> bool:
        wanted = self.arguments(generation, metageneration)[self.name]
        now = metageneration if "metageneration" in self.name else generation
        if "metageneration" in self.name and not generation:
            now = -1  # Nothing there has no metageneration, so it equals none.
        return (now != wanted) if "not" in self.name else (now == wanted)


matches = st.builds(
    Match,
    st.sampled_from(
        [
            "if_generation_match",
            "if_generation_not_match",
            "if_metageneration_match",
            "if_metageneration_not_match",
        ]
    ),
    st.sampled_from([None, 0, 1, -1]),
)
Action = Callable[..., Any]
actions = st.sampled_from(["upload", "patch", "delete", "reload", "download", "compose", "rewrite"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(there=st.booleans(), patched=st.booleans(), action=actions, chosen=st.lists(matches, max_size=2))
def test_an_action_happens_if_and_only_if_all_its_preconditions_hold(
    bucket: Any, there: bool, patched: bool, action: str, chosen: list[Match]
) -> None:
    blob = bucket.blob(f"h-{uuid.uuid4().hex}")
    generation = metageneration = 0
    if there:
        blob.upload_from_string(b"old")
        if patched:
            blob.metadata = {"a": "b"}
            blob.patch()
        generation, metageneration = blob.generation, blob.metageneration
    arguments: dict[str, int] = {}
    for match in chosen:
        arguments.update(match.arguments(generation, metageneration))
    effective = [m for m in chosen if m.arguments(generation, metageneration)[m.name] == arguments[m.name]]
    holds = all(match.holds(generation, metageneration) for match in effective)
    writes = action in {"upload", "compose", "rewrite"}
    outcome = attempt(bucket, bucket.blob(blob.name), action, arguments)
    if not there and not writes:
        assert outcome == "NotFound"
    elif holds:
        assert outcome == "done"
    else:
        assert outcome in (
            {"PreconditionFailed", "NotModified"} if action in {"reload", "download"} else {"PreconditionFailed"}
        )
    now = bucket.get_blob(blob.name)
    if outcome != "done" or action in {"reload", "download"}:
        assert (now.generation, now.metageneration) == (generation, metageneration) if there else now is None
    elif action == "delete":
        assert now is None
    elif action == "patch":
        assert (now.generation, now.metageneration) == (generation, metageneration + 1)
    else:
        assert now.generation > generation
        assert now.metageneration == 1


def attempt(bucket: Any, blob: Any, action: str, arguments: dict[str, int]) -> str:
    source = bucket.blob("source")
    if action in {"compose", "rewrite"} and not source.exists():
        source.upload_from_string(b"source")
    if action == "patch":
        blob.metadata = {"changed": "yes"}
    calls: dict[str, Action] = {
        "upload": lambda: blob.upload_from_string(b"new", **arguments),
        "patch": lambda: blob.patch(**arguments),
        "delete": lambda: blob.delete(**arguments),
        "reload": lambda: blob.reload(**arguments),
        "download": lambda: blob.download_as_bytes(**arguments),
        "compose": lambda: bucket.client._post_resource(
            f"{blob.path}/compose",
            {"sourceObjects": [{"name": "source"}], "destination": {}},
            query_params={camel(name): value for name, value in arguments.items()},
        ),
        "rewrite": lambda: blob.rewrite(source, **arguments),
    }
    try:
        calls[action]()
    except exceptions.GoogleAPICallError as error:
        return type(error).__name__
    return "done"


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
