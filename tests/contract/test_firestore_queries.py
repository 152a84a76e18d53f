"""Queries: operators, order, cursors, projection, groups, aggregation, and the composite indexes they need."""

import datetime as dt
import math
from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import firestore
from google.cloud.firestore import And, FieldFilter, Or
from google.cloud.firestore_v1.vector import Vector

DESCENDING = firestore.Query.DESCENDING

# In the order that Firestore sorts them, equal ones by document name.
MIXED = [
    None, False, True, math.nan, -math.inf, -1.5, -0.0, 0, 1, 1.0, 1.5, 2**53, 2.0**53, 2**53 + 1, 2**63 - 1,
    2.0**63, math.inf, dt.datetime(1960, 1, 1, tzinfo=dt.UTC), dt.datetime(2020, 1, 1, tzinfo=dt.UTC), "", "a",
    "a\x00b", "ab", "é", "\uffff", "\U0001f600", b"", b"\x00", b"a", firestore.GeoPoint(-1, 2),
    firestore.GeoPoint(1, 2), [], [1], [1, 2], ["a"], Vector([3.0]), Vector([1.0, 2.0]), {}, {"a": 1},
    {"a": 1, "b": 2}, {"a": 2}, {"b": 1},
]  # fmt: skip


@pytest.fixture
def db(firestore_cloud: Any) -> Any:
    return firestore_cloud.client()


@pytest.fixture
def mixed(db: Any) -> Any:
    batch = db.batch()
    for number, value in enumerate(MIXED):
        batch.set(db.document(f"mixed/{number:02}"), {"v": value})
    batch.set(db.document("mixed/none"), {"w": 1})
    batch.commit()
    return db.collection("mixed")


@pytest.fixture
def cities(db: Any) -> Any:
    """Ten cities; declared indexes serve what is asked of them."""
    batch = db.batch()
    for number in range(10):
        city = {
            "state": "CA" if number % 2 else "NY",
            "people": number % 5,
            "rank": number // 3,
            "tags": ["even" if number % 2 == 0 else "odd", number],
            "at": {"km": number},
        }
        if number == 7:
            del city["rank"]
        batch.set(db.document(f"cities/{number}"), city)
    batch.commit()
    return db.collection("cities")


def ids(query: Any) -> list[str]:
    return [snapshot.id for snapshot in query.stream()]


def where(query: Any, *conditions: Any) -> Any:
    for path, operator, value in conditions:
        query = query.where(filter=FieldFilter(path, operator, value))
    return query


def names_of(*values: Any) -> list[str]:
    """The documents of `mixed` that hold these values of these types."""
    typed = [(type(value), value) for value in MIXED]
    return [f"{typed.index((type(value), value)):02}" for value in values]


# Order and comparison.


def test_sorts_values_of_all_types(mixed: Any) -> None:
    assert ids(mixed.order_by("v")) == [f"{number:02}" for number in range(len(MIXED))]


def test_sorts_all_types_descending(mixed: Any) -> None:
    ascending = ids(mixed.order_by("v"))
    assert ids(mixed.order_by("v", direction=DESCENDING)) == ascending[::-1]


def test_sorts_references_by_their_segments(db: Any) -> None:
    for number, path in enumerate(["x/a", "x/a/y/b", "x/b", "x-y/a"]):
        db.document(f"references/{number}").set({"v": db.document(path)})
    # A raw comparison of strings would put "x-y" before "x/".
    assert ids(db.collection("references").order_by("v")) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("operator", "value", "found"),
    [
        ("<", 0, [-math.inf, -1.5]),
        ("<=", -1.5, [-math.inf, -1.5]),
        (">", 1.5, [2**53, 2.0**53, 2**53 + 1, 2**63 - 1, 2.0**63, math.inf]),
        (">=", 2**63 - 1, [2**63 - 1, 2.0**63, math.inf]),
        (">=", "é", ["é", "\uffff", "\U0001f600"]),
        ("<", True, [False]),
        (">", b"", [b"\x00", b"a"]),
        ("<", [1, 2], [[], [1]]),
        (">", {"a": 1}, [{"a": 1, "b": 2}, {"a": 2}, {"b": 1}]),
        ("==", "", [""]),
        ("==", [1], [[1]]),
        ("==", {"a": 1}, [{"a": 1}]),
        ("==", None, [None]),
    ],
)
def test_compares_within_a_type(mixed: Any, operator: str, value: Any, found: list[Any]) -> None:
    assert ids(where(mixed, ("v", operator, value))) == names_of(*found)


def test_equal_numbers_are_equal_whatever_their_type(mixed: Any) -> None:
    assert ids(where(mixed, ("v", "==", 1.0))) == names_of(1, 1.0)
    assert ids(where(mixed, ("v", "==", -0.0))) == names_of(-0.0, 0)


def test_nan_has_its_own_operators(mixed: Any) -> None:
    (nan,) = names_of(math.nan)
    assert ids(where(mixed, ("v", "==", math.nan))) == [nan]
    assert nan not in ids(where(mixed, ("v", "!=", math.nan)))
    assert nan not in ids(where(mixed, ("v", "<", 5)))


def test_inequality_leaves_out_null_and_missing(mixed: Any) -> None:
    found = ids(where(mixed, ("v", "!=", 1)))
    assert len(found) == len(MIXED) - 3
    assert {"00", "none"}.isdisjoint(found)
    assert len(ids(where(mixed, ("v", "!=", None)))) == len(MIXED) - 1


def test_lists_of_alternatives(mixed: Any) -> None:
    assert ids(where(mixed, ("v", "in", ["a", 1]))) == names_of(1, 1.0, "a")
    assert ids(where(mixed, ("v", "in", [None, math.nan]))) == []
    assert len(ids(where(mixed, ("v", "not-in", [1, "a"])))) == len(MIXED) - 4
    assert ids(where(mixed, ("v", "not-in", [1, None]))) == []


def test_arrays_contain(mixed: Any) -> None:
    assert ids(where(mixed, ("v", "array_contains", 1.0))) == names_of([1], [1, 2])
    assert ids(where(mixed, ("v", "array_contains_any", [2, "a"]))) == names_of([1, 2], ["a"])


def test_null_is_no_alternative(db: Any) -> None:
    db.document("nulls/1").set({"v": [None]})
    assert ids(where(db.collection("nulls"), ("v", "array_contains_any", [None, 1]))) == []


@pytest.mark.parametrize(
    "condition",
    [
        pytest.param(("v", "in", list(range(31))), id="31 alternatives"),
        pytest.param(("v", "in", []), id="no alternatives"),
        pytest.param(("v", "array_contains_any", list(range(31))), id="any of 31"),
        pytest.param(("v", "not-in", list(range(11))), id="none of 11"),
    ],
)
def test_refuses_lists_that_are_too_long_or_empty(mixed: Any, condition: Any) -> None:
    with pytest.raises(exceptions.InvalidArgument):
        ids(where(mixed, condition))


@pytest.mark.parametrize(
    "conditions",
    [
        pytest.param([("v", "in", [1, 2, 3, 4, 5, 6]), ("w", "in", [1, 2, 3, 4, 5, 6])], id="36 disjunctions"),
        pytest.param([("v", "!=", 1), ("w", "!=", 1)], id="two inequalities"),
        pytest.param([("v", "not-in", [1]), ("w", "in", [1])], id="not-in and in"),
        pytest.param([("v", "array_contains", 1), ("v", "array_contains", 2)], id="two array-contains"),
        pytest.param([("v", "array_contains", 1), ("v", "array_contains_any", [2])], id="array-contains and any"),
    ],
)
def test_refuses_what_cannot_be_combined(mixed: Any, conditions: Any) -> None:
    with pytest.raises(exceptions.InvalidArgument):
        ids(where(mixed, *conditions))


# Combining.


def test_alternatives_are_found_once(cities: Any) -> None:
    either = Or([FieldFilter("state", "==", "CA"), FieldFilter("people", "==", 1)])
    assert ids(cities.where(filter=either)) == ["1", "3", "5", "6", "7", "9"]


def test_alternatives_inside_a_conjunction(cities: Any) -> None:
    both = And([Or([FieldFilter("people", "==", 1), FieldFilter("people", "==", 2)]), FieldFilter("state", "==", "CA")])
    assert ids(cities.where(filter=both)) == ["1", "7"]


def test_equality_and_range(cities: Any) -> None:
    assert ids(where(cities, ("state", "==", "CA"), ("people", ">", 1))) == ["7", "3", "9"]


def test_ranges_of_two_fields_sort_by_both(cities: Any) -> None:
    assert ids(where(cities, ("people", ">", 1), ("rank", ">=", 1))) == ["3", "8", "4", "9"]


def test_array_contains_and_range(cities: Any) -> None:
    assert ids(where(cities, ("tags", "array_contains", "odd"), ("people", "<", 3))) == ["5", "1", "7"]


def test_nested_fields(cities: Any) -> None:
    assert ids(where(cities, ("at.km", ">", 7))) == ["8", "9"]


def test_documents_without_the_sorted_field_are_left_out(cities: Any) -> None:
    assert "7" not in ids(cities.order_by("rank"))
    assert ids(cities.order_by("nothing")) == []


def test_sorts_by_several_fields(cities: Any) -> None:
    query = cities.order_by("people").order_by("rank", direction=DESCENDING)
    assert ids(query) == ["5", "0", "6", "1", "2", "8", "3", "9", "4"]


# Windows.


def test_limit_and_offset(cities: Any) -> None:
    assert ids(cities.limit(3)) == ["0", "1", "2"]
    assert ids(cities.offset(8)) == ["8", "9"]
    assert ids(cities.offset(99)) == []
    assert ids(cities.order_by("people").offset(2).limit(3)) == ["1", "6", "2"]


def test_limit_to_last(cities: Any) -> None:
    assert [snapshot.id for snapshot in cities.order_by("people").limit_to_last(3).get()] == ["8", "4", "9"]


def test_cursors_by_value(cities: Any) -> None:
    by_people = cities.order_by("people")
    assert ids(by_people.start_at({"people": 3})) == ["3", "8", "4", "9"]
    assert ids(by_people.start_after({"people": 3})) == ["4", "9"]
    assert ids(by_people.end_before({"people": 1})) == ["0", "5"]
    assert ids(by_people.end_at({"people": 1})) == ["0", "5", "1", "6"]
    descending = cities.order_by("people", direction=DESCENDING)
    assert ids(descending.start_after({"people": 3}).limit(2)) == ["7", "2"]


def test_cursors_by_document_page_through_everything(cities: Any) -> None:
    query = cities.order_by("people").limit(3)
    found: list[str] = []
    page = query.get()
    while page:
        found += [snapshot.id for snapshot in page]
        page = query.start_after(page[-1]).get()
    assert found == ids(cities.order_by("people"))


def test_cursors_may_give_the_first_fields_only(cities: Any) -> None:
    query = cities.order_by("people").order_by("rank")
    assert ids(query.start_at({"people": 4}).end_at({"people": 4})) == ["4", "9"]
    assert ids(query.start_at({"people": 4, "rank": 2})) == ["9"]


# By name.


def test_names_can_be_compared(cities: Any) -> None:
    assert ids(where(cities, ("__name__", ">", cities.document("7")))) == ["8", "9"]
    assert ids(where(cities, ("__name__", "in", [cities.document("5"), cities.document("1")]))) == ["1", "5"]
    assert ids(where(cities, ("__name__", "==", cities.document("5")))) == ["5"]


def test_names_descend_only_behind_an_equality(cities: Any) -> None:
    descending = cities.order_by("__name__", direction=DESCENDING)
    assert ids(where(descending, ("people", "==", 1))) == ["6", "1"]
    with pytest.raises(exceptions.FailedPrecondition):
        ids(descending)
    with pytest.raises(exceptions.FailedPrecondition):
        ids(where(descending, ("__name__", ">", cities.document("3"))))


def test_nothing_sorts_after_the_name(cities: Any) -> None:
    with pytest.raises(exceptions.InvalidArgument):
        ids(cities.order_by("__name__").order_by("people"))
    with pytest.raises(exceptions.InvalidArgument):
        ids(where(cities, ("people", ">", 1)).order_by("__name__"))


def test_one_name_and_a_range_of_something_else_exclude_each_other(cities: Any) -> None:
    with pytest.raises(exceptions.InvalidArgument):
        ids(where(cities, ("__name__", "==", cities.document("3")), ("people", ">", 1)))


# Projection.


def test_selects_fields(db: Any) -> None:
    db.document("parts/1").set({"a": 1, "b": {"c": 1, "d": 2}, "x.y": 3})

    def selected(*paths: str) -> Any:
        (snapshot,) = db.collection("parts").select(paths).get()
        return snapshot.to_dict()

    assert selected("a") == {"a": 1}
    assert selected("b.c") == {"b": {"c": 1}}
    assert selected("`x.y`", "none") == {"x.y": 3}
    assert selected("__name__") == {}
    assert selected() == {}


# Groups.


@pytest.fixture
def rooms(db: Any) -> Any:
    for path, size in [("h/1/rooms/a", 1), ("h/2/rooms/b", 2), ("rooms/c", 3), ("h/1/other/d", 4)]:
        db.document(path).set({"size": size})
    return db.collection_group("rooms")


def test_a_group_is_every_collection_of_one_id(rooms: Any) -> None:
    assert ids(rooms) == ["a", "b", "c"]


def test_a_group_is_filtered_and_sorted(rooms: Any) -> None:
    assert ids(where(rooms, ("size", ">", 1))) == ["b", "c"]
    assert ids(rooms.order_by("size", direction=DESCENDING)) == ["c", "b", "a"]


def test_a_collection_does_not_hold_deeper_ones(db: Any, rooms: Any) -> None:
    assert ids(db.collection("rooms")) == ["c"]
    assert ids(db.collection("h/1/rooms")) == ["a"]


@pytest.mark.differs(google="does not implement PartitionQuery")
def test_partitions_cover_a_group(db: Any) -> None:
    for number in range(10):
        db.document(f"p/{number}/rooms/{number}").set({})
    partitions = list(db.collection_group("rooms").get_partitions(3))
    assert len(partitions) == 4
    assert sorted(name for part in partitions for name in ids(part.query())) == list("0123456789")


# Aggregation.


def aggregated(query: Any) -> dict[str, Any]:
    return {result.alias: result.value for result in query.get()[0]}


@pytest.fixture
def numbers(db: Any) -> Any:
    for name, value in [("1", 1), ("2", 2), ("3", 3.5), ("4", "text"), ("5", None)]:
        db.document(f"numbers/{name}").set({"v": value})
    db.document("numbers/6").set({"w": 1})
    return db.collection("numbers")


def test_counts_sums_and_averages(numbers: Any) -> None:
    assert aggregated(numbers.count(alias="n")) == {"n": 6}
    assert aggregated(numbers.sum("v", alias="s")) == {"s": 6.5}
    assert aggregated(numbers.avg("v", alias="a")) == {"a": 6.5 / 3}
    assert aggregated(numbers.limit(2).count(alias="n")) == {"n": 2}
    assert aggregated(where(numbers, ("v", ">", 1)).count(alias="n")) == {"n": 2}


def test_aggregations_together_look_at_documents_with_every_field(numbers: Any) -> None:
    assert aggregated(numbers.count(alias="n").sum("v", alias="s")) == {"n": 5, "s": 6.5}


def test_aggregates_of_nothing(db: Any) -> None:
    empty = db.collection("empty")
    found = aggregated(empty.count(alias="n").sum("v", alias="s").avg("v", alias="a"))
    # The average of nothing is null, which the client turns into a number.
    assert {alias: value or 0 for alias, value in found.items()} == {"n": 0, "s": 0, "a": 0}


def test_sums_of_integers_stay_integers_until_they_overflow(db: Any) -> None:
    db.document("big/1").set({"v": 2**63 - 1})
    assert aggregated(db.collection("big").sum("v", alias="s")) == {"s": 2**63 - 1}
    db.document("big/2").set({"v": 5})
    assert aggregated(db.collection("big").sum("v", alias="s")) == {"s": 2.0**63}
    db.document("big/3").set({"v": math.nan})
    assert math.isnan(aggregated(db.collection("big").sum("v", alias="s"))["s"])


def test_aggregates_what_a_window_leaves_of_the_index(numbers: Any) -> None:
    # "6" has no `v`; the others are in the order of `v`, null first.
    assert aggregated(numbers.offset(1).limit(2).count(alias="n").sum("v", alias="s")) == {"n": 2, "s": 3}


def test_refuses_to_sum_behind_the_name(numbers: Any) -> None:
    with pytest.raises(exceptions.InvalidArgument):
        numbers.order_by("__name__").sum("v", alias="s").get()


def test_refuses_the_same_alias_twice(numbers: Any) -> None:
    with pytest.raises(exceptions.InvalidArgument):
        numbers.count(alias="n").count(alias="n").get()


# Indexes.


@pytest.mark.differs(google="never asks for a composite index")
@pytest.mark.parametrize(
    ("conditions", "order"),
    [
        pytest.param([("a", "==", 1), ("b", ">", 1)], None, id="equality and range"),
        pytest.param([("a", "==", 1)], "b", id="equality and order"),
        pytest.param([("a", "array_contains", 1)], "b", id="array-contains and order"),
        pytest.param([("a", ">", 1), ("b", "<", 1)], None, id="two ranges"),
    ],
)
def test_names_the_index_that_is_missing(db: Any, conditions: Any, order: str | None) -> None:
    query = where(db.collection("bare"), *conditions)
    with pytest.raises(exceptions.FailedPrecondition, match=r'requires an index.*"collection": "bare"'):
        ids(query.order_by(order) if order else query)


@pytest.mark.differs(google="never asks for an index of a collection group")
def test_a_group_has_no_index_by_itself(db: Any) -> None:
    with pytest.raises(exceptions.FailedPrecondition, match='"scope": "COLLECTION_GROUP"'):
        ids(where(db.collection_group("bare"), ("a", "==", 1)))


def test_equalities_need_no_index(db: Any) -> None:
    db.document("bare/1").set({"a": 1, "b": 2, "c": [3]})
    assert ids(where(db.collection("bare"), ("a", "==", 1), ("b", "==", 2), ("c", "array_contains", 3))) == ["1"]


# What is not here.


@pytest.mark.differs(localcloud="has no vector search; it says so")
def test_finds_the_nearest_vectors(db: Any) -> None:
    from google.cloud.firestore_v1.base_vector_query import DistanceMeasure

    db.document("vectors/1").set({"v": Vector([1.0, 0.0])})
    db.document("vectors/2").set({"v": Vector([0.0, 1.0])})
    nearest = db.collection("vectors").find_nearest(
        vector_field="v", query_vector=Vector([0.1, 0.9]), limit=1, distance_measure=DistanceMeasure.EUCLIDEAN
    )
    assert [snapshot.id for snapshot in nearest.get()] == ["2"]


@pytest.mark.differs(localcloud="keeps no past versions for `read_time`; it says so")
def test_reads_the_past(db: Any) -> None:
    db.document("jobs/j").set({"n": 1})
    then = db.document("jobs/j").get().update_time
    db.document("jobs/j").set({"n": 2})
    assert db.document("jobs/j").get(read_time=then).get("n") == 1
