"""Listing through Google's client, against a model that looks at every name."""

import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from google.api_core import exceptions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = sorted(
    {
        *("a", "a/", "a/b", "a/b/c", "a/b/d", "a/c", "a/é", "a0", "ab", "b/", "b//x", "b/x", "c"),
        *("dir/sub/one", "dir/sub/two", "dir/three", "dir/", "é/x", "é", "日/本", "😀/x", "😀", "\ue000/y", "z"),
        *(f"many/{number}" for number in range(12)),
    },
    key=str.encode,
)


@pytest.fixture(scope="module")
def bucket(local_cloud: Any) -> Any:
    bucket = local_cloud.storage_client().create_bucket(f"bucket-{uuid.uuid4().hex}")
    for name in NAMES:
        bucket.blob(name).upload_from_string(name)
    return bucket


@dataclass
class Expected:
    items: list[str] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)


def model(prefix: str, delimiter: str, start: str, end: str, trailing: bool) -> Expected:
    expected = Expected()
    for name in NAMES:
        if not name.startswith(prefix) or name.encode() < start.encode() or (end and name.encode() >= end.encode()):
            continue
        at = name.find(delimiter, len(prefix)) if delimiter else -1
        if at < 0:
            expected.items.append(name)
            continue
        common = name[: at + len(delimiter)]
        if common not in expected.prefixes:
            expected.prefixes.append(common)
        if trailing and name == common:
            expected.items.append(name)
    return expected


pieces = st.sampled_from(["", "a", "a/", "a/b", "b/", "dir/", "dir/sub", "é", "😀", "many/", "x", "\ue000"])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prefix=pieces,
    delimiter=st.sampled_from(["", "/", "b", "//", "😀"]),
    start=st.one_of(st.just(""), pieces, st.sampled_from(NAMES)),
    end=st.one_of(st.just(""), pieces, st.sampled_from(NAMES)),
    trailing=st.booleans(),
    page_size=st.sampled_from([1, 2, 3, 7, 100]),
)
def test_pages_add_up_to_what_the_model_says(
    bucket: Any, prefix: str, delimiter: str, start: str, end: str, trailing: bool, page_size: int
) -> None:
    iterator = bucket.list_blobs(
        prefix=prefix,
        delimiter=delimiter or None,
        start_offset=start or None,
        end_offset=end or None,
        include_trailing_delimiter=trailing,
        page_size=page_size,
    )
    items: list[str] = []
    prefixes: list[str] = []
    for page in iterator.pages:
        names = [blob.name for blob in page]
        items += names
        prefixes += page.prefixes
        assert len(names) + len(page.prefixes) <= page_size + (1 if trailing else 0)
    expected = model(prefix, delimiter, start, end, trailing)
    assert items == expected.items
    assert prefixes == expected.prefixes


def test_max_results_ends_the_listing(bucket: Any) -> None:
    assert [blob.name for blob in bucket.list_blobs(max_results=3)] == NAMES[:3]


def test_versions_come_in_order_of_generation_across_pages(local_cloud: Any) -> None:
    bucket = local_cloud.storage_client().bucket(f"bucket-{uuid.uuid4().hex}")
    bucket.versioning_enabled = True
    bucket.create()
    made = []
    for number in range(9):
        blob = bucket.blob(("a/", "a/x", "b")[number % 3])
        blob.upload_from_string(str(number))
        made.append((blob.name, blob.generation))
    for size in (1, 2, 5, 100):
        listed = bucket.list_blobs(versions=True, page_size=size)
        assert [(blob.name, blob.generation) for blob in listed] == sorted(made)
    assert [blob.name for blob in bucket.list_blobs()] == ["a/", "a/x", "b"]
    for size in (1, 2, 100):
        iterator = bucket.list_blobs(versions=True, delimiter="/", include_trailing_delimiter=True, page_size=size)
        items, prefixes = [], []
        for page in iterator.pages:
            items += [blob.name for blob in page]
            prefixes += page.prefixes
        assert (items, prefixes) == (["a/"] * 3 + ["b"] * 3, ["a/"])


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("a/*", ["a/", "a/b", "a/c", "a/é"]),
        ("a/**", ["a/", "a/b", "a/b/c", "a/b/d", "a/c", "a/é"]),
        ("**/x", ["b//x", "b/x", "é/x", "😀/x"]),
        ("?", ["a", "c", "z", "é", "😀"]),
        ("{a,b}/[bx]", ["a/b", "b/x"]),
        ("many/1[!0]", ["many/11"]),
        ("many/[0-2]", ["many/0", "many/1", "many/2"]),
    ],
)
def test_globs_match_as_documented(bucket: Any, glob: str, names: list[str]) -> None:
    assert [blob.name for blob in bucket.list_blobs(match_glob=glob, page_size=4)] == names


def test_fields_that_are_asked_for_are_there(bucket: Any) -> None:
    iterator = bucket.list_blobs(prefix="dir", fields="items(name,generation),nextPageToken")
    assert {blob.name for blob in iterator} == {"dir/", "dir/sub/one", "dir/sub/two", "dir/three"}


@pytest.mark.parametrize("query", ["pageToken=nonsense", "maxResults=-1", "matchGlob=%7Ba", "pageToken=W10="])
def test_nonsense_is_refused(bucket: Any, local_cloud: Any, query: str) -> None:
    answer = httpx.get(f"{local_cloud.storage_url}/storage/v1/b/{bucket.name}/o?{query}")
    assert answer.status_code == 400


def test_a_missing_bucket_is_not_an_empty_one(local_cloud: Any) -> None:
    with pytest.raises(exceptions.NotFound):
        list(local_cloud.storage_client().list_blobs(f"none-{uuid.uuid4().hex}"))
