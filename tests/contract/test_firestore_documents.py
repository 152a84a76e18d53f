"""Documents: writes, masks, transforms, preconditions, limits."""

import datetime as dt
import math
from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import firestore
from google.cloud.firestore import DELETE_FIELD, SERVER_TIMESTAMP, ArrayRemove, ArrayUnion, Increment, Maximum, Minimum

MOMENT = dt.datetime(2026, 11, 25, 12, 0, 0, 123456, tzinfo=dt.UTC)
INT64_MAX = 2**63 - 1


@pytest.fixture
def db(firestore_cloud: Any) -> Any:
    return firestore_cloud.client()


@pytest.fixture
def doc(db: Any) -> Any:
    return db.document("jobs/j1")


def test_reads_back_every_type(db: Any, doc: Any) -> None:
    written = {
        "null": None, "yes": True, "int": -(2**63), "double": 1.5, "text": "é\x00\U0001f600", "bytes": b"\x00\xff",
        "time": MOMENT, "place": firestore.GeoPoint(1.5, -2.5), "reference": db.document("a/b/c/d"),
        "array": [1, "a", {"b": []}], "map": {"deep": {"er": 1}}, "empty": {},
    }  # fmt: skip
    doc.set(written)
    assert doc.get().to_dict() == written


def test_answers_that_a_document_is_missing(doc: Any) -> None:
    assert not doc.get().exists


def test_reads_many_documents_with_a_field_mask(db: Any, doc: Any) -> None:
    doc.set({"a": {"b": 1, "c": 2}, "d": 3})
    found = {snapshot.id: snapshot for snapshot in db.get_all([doc, db.document("jobs/none")], field_paths=["a.b"])}
    assert found["j1"].to_dict() == {"a": {"b": 1}}
    assert not found["none"].exists


def test_creates_once(doc: Any) -> None:
    doc.create({"n": 1})
    with pytest.raises(exceptions.AlreadyExists):
        doc.create({"n": 2})
    assert doc.get().to_dict() == {"n": 1}


def test_updates_only_what_exists(doc: Any) -> None:
    with pytest.raises(exceptions.NotFound):
        doc.update({"n": 1})
    assert not doc.get().exists


@pytest.mark.parametrize(
    ("change", "after"),
    [
        pytest.param({"a.b": 9}, {"a": {"b": 9, "c": 2}, "z": 1}, id="nested"),
        pytest.param({"a.x.y": 9}, {"a": {"b": 1, "c": 2, "x": {"y": 9}}, "z": 1}, id="makes the maps it needs"),
        pytest.param({"z.q": 9}, {"a": {"b": 1, "c": 2}, "z": {"q": 9}}, id="replaces what is no map"),
        pytest.param({"a": {}}, {"a": {}, "z": 1}, id="an empty map"),
        pytest.param({"a.b": DELETE_FIELD}, {"a": {"c": 2}, "z": 1}, id="deletes"),
        pytest.param({"a.no.no": DELETE_FIELD}, {"a": {"b": 1, "c": 2}, "z": 1}, id="deletes nothing"),
        pytest.param({"`we.ird`": 9}, {"a": {"b": 1, "c": 2}, "z": 1, "we.ird": 9}, id="quoted"),
        pytest.param({"a.`b c`": 9}, {"a": {"b": 1, "c": 2, "b c": 9}, "z": 1}, id="quoted inside"),
        pytest.param({"`\\`\\\\`": 9}, {"a": {"b": 1, "c": 2}, "z": 1, "`\\": 9}, id="escaped"),
    ],
)
def test_updates_fields_by_path(doc: Any, change: dict[str, Any], after: dict[str, Any]) -> None:
    doc.set({"a": {"b": 1, "c": 2}, "z": 1})
    doc.update(change)
    assert doc.get().to_dict() == after


def test_merges(doc: Any) -> None:
    doc.set({"a": {"b": 1}}, merge=True)
    doc.set({"a": {"c": 2}, "d": 3}, merge=True)
    doc.set({"d": 4, "e": 5}, merge=["d"])
    doc.set({"a": {"b": DELETE_FIELD}}, merge=True)
    assert doc.get().to_dict() == {"a": {"c": 2}, "d": 4}


def test_merging_nothing_creates_the_document(doc: Any) -> None:
    doc.set({}, merge=True)
    assert doc.get().to_dict() == {}


@pytest.mark.parametrize(
    ("before", "transform", "after"),
    [
        (None, Increment(2), 2),
        (1, Increment(2), 3),
        (1, Increment(1.5), 2.5),
        ("text", Increment(2), 2),
        (INT64_MAX, Increment(1), INT64_MAX),
        (-INT64_MAX, Increment(-10), -INT64_MAX - 1),
        (None, Maximum(2), 2),
        (1, Maximum(2), 2),
        (3, Maximum(2), 3),
        (3, Minimum(2.5), 2.5),
        ("text", Minimum(2), 2),
        (None, ArrayUnion([1, 1.0, 2]), [1, 2]),
        ([1, "a"], ArrayUnion(["a", 2]), [1, "a", 2]),
        ([{"x": 1}], ArrayUnion([{"x": 1.0}]), [{"x": 1}]),
        (7, ArrayUnion([1]), [1]),
        ([1, 2, 1], ArrayRemove([1.0]), [2]),
        (None, ArrayRemove([1]), []),
    ],
)
def test_transforms(doc: Any, before: Any, transform: Any, after: Any) -> None:
    doc.set({"a": {} if before is None else {"b": before}})
    doc.update({"a.b": transform})
    result = doc.get().get("a.b")
    assert result == after
    assert type(result) is type(after)


def test_equal_numbers_of_two_types_keep_the_stored_one(doc: Any) -> None:
    doc.set({"n": 2})
    doc.update({"n": Maximum(2.0)})
    assert type(doc.get().get("n")) is int


def test_nan_wins_every_comparison(doc: Any) -> None:
    doc.set({"n": 2})
    doc.update({"n": Minimum(math.nan)})
    doc.update({"n": Maximum(9)})
    assert math.isnan(doc.get().get("n"))


def test_transforms_with_a_set_start_from_nothing(doc: Any) -> None:
    doc.set({"n": 5})
    doc.set({"n": Increment(1), "a": ArrayUnion([1])})
    assert doc.get().to_dict() == {"n": 1, "a": [1]}


def test_stamps_the_time_of_the_commit(db: Any, doc: Any) -> None:
    batch = db.batch()
    batch.set(doc, {"t": SERVER_TIMESTAMP, "m": {"t": SERVER_TIMESTAMP}})
    batch.set(db.document("jobs/j2"), {"t": SERVER_TIMESTAMP})
    batch.commit()
    first, second = doc.get(), db.document("jobs/j2").get()
    assert first.get("t") == first.get("m.t") == second.get("t")
    assert first.get("t").microsecond % 1000 == 0
    assert first.get("t") <= first.update_time == second.update_time == batch.commit_time


def test_a_write_that_changes_nothing_keeps_the_version(doc: Any) -> None:
    doc.set({"n": 1})
    before = doc.get()
    doc.set({"n": 1})
    assert doc.get().update_time == before.update_time
    doc.set({"n": 2})
    after = doc.get()
    assert after.update_time > before.update_time
    assert after.create_time == before.create_time


def test_versions_guard_writes(db: Any, doc: Any) -> None:
    doc.set({"n": 1})
    stale = db.write_option(last_update_time=doc.get().update_time)
    doc.set({"n": 2})
    with pytest.raises(exceptions.FailedPrecondition):
        doc.update({"n": 3}, option=stale)
    with pytest.raises(exceptions.FailedPrecondition):
        doc.delete(option=stale)
    fresh = db.write_option(last_update_time=doc.get().update_time)
    doc.update({"n": 3}, option=fresh)
    assert doc.get().get("n") == 3
    with pytest.raises(exceptions.FailedPrecondition):
        db.document("jobs/none").update({"n": 1}, option=fresh)


def test_existence_guards_deletes(db: Any, doc: Any) -> None:
    doc.delete()
    with pytest.raises(exceptions.NotFound):
        doc.delete(option=db.write_option(exists=True))
    doc.set({})
    doc.delete(option=db.write_option(exists=True))
    assert not doc.get().exists


def test_a_batch_is_all_or_nothing(db: Any, doc: Any) -> None:
    doc.set({})
    batch = db.batch()
    batch.set(db.document("jobs/j2"), {"n": 1})
    batch.create(doc, {})
    with pytest.raises(exceptions.AlreadyExists):
        batch.commit()
    assert not db.document("jobs/j2").get().exists


def test_writes_of_a_batch_see_one_another(db: Any, doc: Any) -> None:
    batch = db.batch()
    batch.create(doc, {"n": 1})
    batch.update(doc, {"n": Increment(4)})
    batch.delete(doc)
    batch.create(doc, {"m": Increment(1)})
    results = batch.commit()
    assert doc.get().to_dict() == {"m": 1}
    assert [len(result.transform_results) for result in results] == [0, 1, 0, 1]


def test_a_batch_may_be_large(db: Any) -> None:
    batch = db.batch()
    for number in range(700):
        batch.set(db.document(f"jobs/{number:03}"), {"n": number})
    assert len(batch.commit()) == 700


def test_truncates_times_to_microseconds(db: Any, doc: Any) -> None:
    # The client has no finer times, so the message is written by hand.
    value = {"timestamp_value": {"seconds": 1_800_000_000, "nanos": 123_456_789}}
    write = {"update": {"name": doc._document_path, "fields": {"t": value}}}
    request = {"database": db._database_string, "writes": [write]}
    db._firestore_api.commit(request=request, metadata=db._rpc_metadata)
    assert doc.get().get("t").microsecond == 123_456


def _nested(levels: int) -> Any:
    return {"a": _nested(levels - 1)} if levels else 1


@pytest.mark.parametrize(
    ("document_id", "fields"),
    [
        pytest.param("a" * 1501, {}, id="id of 1,501 bytes"),
        pytest.param("é" * 751, {}, id="id of 1,502 bytes in UTF-8"),
        pytest.param("__a__", {}, id="reserved id"),
        pytest.param(".", {}, id="dot"),
        pytest.param("..", {}, id="two dots"),
        pytest.param("x", {"__a__": 1}, id="reserved field"),
        pytest.param("x", {"a": {"__b__": 1}}, id="reserved field inside"),
        pytest.param("x", {"a" * 1501: 1}, id="field name of 1,501 bytes"),
        pytest.param("x", {"a": [[1]]}, id="array in array"),
        pytest.param("x", _nested(22), id="21 levels below the first"),
        pytest.param("x", {"a": "x" * 1_048_488}, id="field of 1,048,488 bytes"),
        pytest.param("x", {"a": "x" * 600_000, "b": "x" * 600_000}, id="document over 1 MiB"),
        pytest.param("x", {"a": firestore.GeoPoint(91, 0)}, id="latitude of 91"),
    ],
)
def test_refuses_what_production_would_not_store(db: Any, document_id: str, fields: dict[str, Any]) -> None:
    reference = db.collection("limits").document(document_id)
    with pytest.raises(exceptions.InvalidArgument):
        reference.set(fields)


@pytest.mark.parametrize(
    ("document_id", "fields"),
    [
        pytest.param("a" * 1500, {}, id="id of 1,500 bytes"),
        pytest.param("__a", {}, id="nearly reserved id"),
        pytest.param("x", {"a" * 1500: 1}, id="field name of 1,500 bytes"),
        pytest.param("x", {"a": [{"b": [1]}]}, id="array in map in array"),
        pytest.param("x", _nested(21), id="20 levels below the first"),
        pytest.param("x", {"a": b"x" * 1_048_487}, id="field of 1,048,487 bytes"),
    ],
)
def test_stores_what_is_just_within_the_limits(db: Any, document_id: str, fields: dict[str, Any]) -> None:
    reference = db.collection("limits").document(document_id)
    reference.set(fields)
    assert reference.get().to_dict() == fields


@pytest.mark.parametrize(("size", "fits"), [(1_048_576 - 80, True), (1_048_576, False)])
def test_a_document_holds_a_mebibyte(db: Any, size: int, fits: bool) -> None:
    # Name, field names and 32 bytes count as well.
    fields = {"a": "x" * (size // 2), "b": "x" * (size // 2)}
    if fits:
        db.document("limits/x").set(fields)
        return
    with pytest.raises(exceptions.InvalidArgument):
        db.document("limits/x").set(fields)


def test_transforms_a_document_500_times(db: Any) -> None:
    db.document("limits/x").set({f"f{number}": Increment(1) for number in range(500)})


@pytest.mark.differs(google="sets no limit to transforms; production takes 500 of a document in a commit")
def test_refuses_501_transforms_of_a_document(db: Any) -> None:
    with pytest.raises(exceptions.InvalidArgument):
        db.document("limits/x").set({f"f{number}": Increment(1) for number in range(501)})


@pytest.mark.not_on(google="takes at most 4 MiB, and the client tries again for a minute")
def test_takes_requests_of_nine_mebibytes(db: Any) -> None:
    batch = db.batch()
    for number in range(9):
        batch.set(db.document(f"limits/{number}"), {"a": b"x" * 1_000_000})
    batch.commit()


@pytest.mark.not_on(google="takes at most 4 MiB, and the client tries again for a minute")
def test_refuses_requests_over_ten_mebibytes(db: Any) -> None:
    batch = db.batch()
    for number in range(11):
        batch.set(db.document(f"limits/{number}"), {"a": b"x" * 1_000_000})
    with pytest.raises(exceptions.InvalidArgument):
        batch.commit()


def test_bulk_writer_tells_each_failure(db: Any) -> None:
    failed: list[str] = []
    writer = db.bulk_writer()
    writer.on_write_error(lambda error, _writer: failed.append(error.operation.reference.id) or False)
    db.document("bulk/07").set({})
    for number in range(30):
        writer.create(db.document(f"bulk/{number:02}"), {"n": number})
    writer.close()
    assert failed == ["07"]
    assert len(db.collection("bulk").get()) == 30


def test_databases_and_projects_are_apart(firestore_cloud: Any) -> None:
    project = firestore_cloud.project()
    clients = [
        firestore_cloud.client(project=project),
        firestore_cloud.client(project=project, database="second"),
        firestore_cloud.client(),
    ]
    for number, client in enumerate(clients):
        client.document("a/b").set({"n": number})
    assert [client.document("a/b").get().get("n") for client in clients] == [0, 1, 2]
    assert [len(client.collection("a").get()) for client in clients] == [1, 1, 1]
