"""Which queries need a composite index, and which indexes serve them: a table of facts."""

from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.firestore import And, Client, FieldFilter, Or

from localcloud.firestore.indexes import CompositeIndex, Exemption, missing_index, required_index
from localcloud.firestore.values import parse_path

DB = Client(project="p", credentials=AnonymousCredentials())
JOBS = DB.collection("jobs")
GROUP = DB.collection_group("jobs")


def structured(query: Any) -> Any:
    return query._to_protobuf()._pb


def where(*conditions: tuple[str, str, Any], query: Any = JOBS) -> Any:
    for path, operator, value in conditions:
        query = query.where(filter=FieldFilter(path, operator, value))
    return query


def by(query: Any, *fields: str) -> Any:
    """Order by fields, descending after a minus."""
    for field in fields:
        query = query.order_by(field.lstrip("-"), direction="DESCENDING" if field[0] == "-" else "ASCENDING")
    return query


def index(*fields: str, scope: str = "COLLECTION") -> CompositeIndex:
    """An index on fields: descending after a minus, array-contains after an @."""
    parsed = [
        {"path": field[1:], "array": "CONTAINS"}
        if field[0] == "@"
        else {"path": field.lstrip("-"), "order": "DESCENDING" if field[0] == "-" else "ASCENDING"}
        for field in fields
    ]
    return CompositeIndex.parse({"collection": "jobs", "scope": scope, "fields": parsed})


def group_index(*fields: str) -> CompositeIndex:
    return index(*fields, scope="COLLECTION_GROUP")


REF = JOBS.document("x")

AUTOMATIC = {
    "everything": JOBS.limit(5),
    "one equality": where(("a", "==", 1)),
    "null": where(("a", "==", None)),
    "three equalities": where(("a", "==", 1), ("b", "==", 2), ("c", "==", 3)),
    "equality and array-contains": where(("a", "==", 1), ("t", "array_contains", 2)),
    "array-contains-any": where(("t", "array_contains_any", [1, 2])),
    "in": where(("a", "in", [1, 2])),
    "in and equality": where(("a", "in", [1, 2]), ("b", "==", 1)),
    "a range": where(("a", ">", 1)),
    "both ends of a range": where(("a", ">", 1), ("a", "<", 5)),
    "unequal": where(("a", "!=", 1)),
    "not in": where(("a", "not-in", [1])),
    "an order": by(JOBS, "a"),
    "an order descending": by(JOBS, "-a"),
    "a range and its own order": by(where(("a", ">", 1)), "-a"),
    "an order and names alike": by(JOBS, "-a", "-__name__"),
    "an equality and its own order": by(where(("a", "==", 1)), "a"),
    "equalities and names": by(where(("a", "==", 1), ("b", "==", 2)), "__name__"),
    "names": by(JOBS, "__name__"),
    "a range of names": where(("__name__", ">", REF)),
    "OR of equalities": JOBS.where(filter=Or([FieldFilter("a", "==", 1), FieldFilter("b", "==", 2)])),
    "a nested field": by(JOBS, "a.b.`c d`"),
    "a whole group": GROUP,
    "a group by name": by(GROUP, "__name__"),
}


@pytest.mark.parametrize("query", AUTOMATIC.values(), ids=AUTOMATIC.keys())
def test_needs_no_composite_index(query: Any) -> None:
    assert required_index(structured(query)) is None


NEEDED: dict[str, tuple[Any, CompositeIndex]] = {
    "equality and range": (where(("a", "==", 1), ("b", ">", 1)), index("a", "b")),
    "equality and order": (by(where(("a", "==", 1)), "-b"), index("a", "-b")),
    "equality and unequal": (where(("a", "==", 1), ("b", "!=", 1)), index("a", "b")),
    "equalities and order": (by(where(("a", "==", 1), ("b", "==", 1)), "c"), index("a", "b", "c")),
    "array-contains and order": (by(where(("t", "array_contains", 1)), "a"), index("@t", "a")),
    "array-contains, equality and order": (
        by(where(("t", "array_contains", 1), ("a", "==", 1)), "b"),
        index("a", "@t", "b"),
    ),
    "two ranges": (where(("b", ">", 1), ("a", "<", 1)), index("a", "b")),
    "two ranges, the second ordered": (by(where(("a", ">", 1), ("b", "<", 1)), "-b"), index("-b", "-a")),
    "a range and another order": (by(where(("a", ">", 1)), "b"), index("b", "a")),
    "two orders": (by(JOBS, "a", "-b"), index("a", "-b")),
    "in and order": (by(where(("a", "in", [1, 2])), "b"), index("a", "b")),
    "order against the names": (by(JOBS, "-a", "__name__"), index("-a", "__name__")),
    "OR and order": (
        by(JOBS.where(filter=Or([FieldFilter("a", "==", 1), FieldFilter("b", "==", 2)])), "c"),
        index("a", "c"),
    ),
    "OR inside AND, with a range": (
        JOBS.where(filter=And([Or([FieldFilter("a", "==", 1), FieldFilter("b", "==", 2)]), FieldFilter("c", ">", 2)])),
        index("a", "c"),
    ),
    "a group's equality": (where(("a", "==", 1), query=GROUP), group_index("a")),
    "a group's order": (by(GROUP, "-a"), group_index("-a")),
    "a group's array-contains": (where(("t", "array_contains", 1), query=GROUP), group_index("@t")),
    "a group's equality and range": (where(("a", "==", 1), ("b", ">", 1), query=GROUP), group_index("a", "b")),
}


@pytest.mark.parametrize(("query", "needed"), NEEDED.values(), ids=NEEDED.keys())
def test_needs_a_composite_index(query: Any, needed: CompositeIndex) -> None:
    assert required_index(structured(query)) == needed


@pytest.mark.parametrize(("query", "needed"), NEEDED.values(), ids=NEEDED.keys())
def test_adding_what_is_named_serves_every_query_in_the_end(query: Any, needed: CompositeIndex) -> None:
    declared: list[CompositeIndex] = []
    while (missing := missing_index(structured(query), declared)) is not None:
        assert missing not in declared
        declared.append(missing)
    assert declared[0] == needed


SERVED: dict[str, tuple[Any, list[CompositeIndex]]] = {
    "equalities in another order": (by(where(("a", "==", 1), ("b", "==", 1)), "c"), [index("b", "a", "c")]),
    "equalities in any direction": (by(where(("a", "==", 1)), "b"), [index("-a", "b")]),
    "all directions reversed": (by(JOBS, "a", "-b"), [index("-a", "b")]),
    "one direction reversed": (by(where(("a", "==", 1)), "-b"), [index("a", "b")]),
    "names spelled out": (by(where(("a", "==", 1)), "b"), [index("a", "b", "__name__")]),
    "merged": (by(where(("a", "==", 1), ("b", "==", 1)), "c"), [index("a", "c"), index("b", "c")]),
    "array-contains merged": (
        by(where(("a", "==", 1), ("t", "array_contains", 1)), "c"),
        [index("a", "c"), index("@t", "c")],
    ),
    "a group's equalities merged": (
        where(("a", "==", 1), ("b", "==", 1), query=GROUP),
        [group_index("a"), group_index("b")],
    ),
    "a group's order reversed": (by(GROUP, "-a"), [group_index("a")]),
}


@pytest.mark.parametrize(("query", "declared"), SERVED.values(), ids=SERVED.keys())
def test_is_served(query: Any, declared: list[CompositeIndex]) -> None:
    assert missing_index(structured(query), declared) is None


UNSERVED: dict[str, tuple[Any, list[CompositeIndex]]] = {
    "sorted fields swapped": (by(JOBS, "a", "b"), [index("b", "a")]),
    "one of two directions": (by(JOBS, "a", "-b"), [index("a", "b")]),
    "a field too many before the order": (by(where(("a", "==", 1)), "c"), [index("a", "b", "c")]),
    "a field too many after it": (by(where(("a", "==", 1)), "c"), [index("a", "c", "d")]),
    "an equality not covered": (by(where(("a", "==", 1), ("b", "==", 1)), "c"), [index("a", "c")]),
    "merged with another order": (
        by(where(("a", "==", 1), ("b", "==", 1)), "c"),
        [index("a", "c"), index("b", "d")],
    ),
    "an order for array-contains": (by(where(("t", "array_contains", 1)), "a"), [index("t", "a")]),
    "array-contains for an order": (by(where(("t", "==", 1)), "a"), [index("@t", "a")]),
    "names the other way": (by(where(("a", "==", 1)), "b"), [index("a", "b", "-__name__")]),
    "a collection's for a group": (where(("a", "==", 1), ("b", ">", 1), query=GROUP), [index("a", "b")]),
    "a group's for a collection": (where(("a", "==", 1), ("b", ">", 1)), [group_index("a", "b")]),
    "another collection's": (
        by(where(("a", "==", 1)), "b"),
        [CompositeIndex.parse({"collection": "runs", "fields": [{"path": "a", "order": "ASCENDING"}]})],
    ),
}


@pytest.mark.parametrize(("query", "declared"), UNSERVED.values(), ids=UNSERVED.keys())
def test_is_not_served(query: Any, declared: list[CompositeIndex]) -> None:
    assert missing_index(structured(query), declared) is not None


AGGREGATED: dict[str, tuple[Any, list[str], CompositeIndex | None]] = {
    "a sum": (JOBS.limit(9), ["n"], None),
    "a sum over its own range": (where(("n", ">", 1)), ["n"], None),
    "a sum of an equality's field": (where(("n", "==", 1)), ["n"], None),
    "a sum under an equality": (where(("a", "==", 1)), ["n"], index("a", "n")),
    "a sum under a range": (where(("a", ">", 1)), ["n"], index("a", "n")),
    "two sums": (JOBS.limit(9), ["n", "m"], index("n", "m")),
    "a sum over a group": (GROUP, ["n"], group_index("n")),
}


@pytest.mark.parametrize(("query", "fields", "needed"), AGGREGATED.values(), ids=AGGREGATED.keys())
def test_aggregated_fields_belong_to_the_index(query: Any, fields: list[str], needed: CompositeIndex | None) -> None:
    aggregated = [parse_path(field) for field in fields]
    assert required_index(structured(query), aggregated) == needed
    if needed is not None:
        assert missing_index(structured(query), [needed], aggregated) is None


def test_reads_back_what_it_writes() -> None:
    declared = index("a", "@t", "-`b c`")
    assert CompositeIndex.parse(declared.as_dict()) == declared


@pytest.mark.parametrize(
    "wrong",
    [
        {"collection": "jobs", "fields": []},
        {"collection": "jobs", "scope": "ALL", "fields": [{"path": "a", "order": "ASCENDING"}]},
        {"collection": "jobs", "fields": [{"path": "a", "order": "UPWARD"}]},
        {"collection": "jobs", "fields": [{"path": "a", "array": "ASCENDING"}]},
    ],
)
def test_refuses_a_declaration_that_no_index_can_be(wrong: Any) -> None:
    with pytest.raises(ValueError):
        CompositeIndex.parse(wrong)


@pytest.mark.parametrize(
    ("query", "exemption", "served"),
    [
        (where(("a", "==", 1)), Exemption("jobs"), False),
        (by(JOBS, "a"), Exemption("jobs"), False),
        (JOBS.limit(5), Exemption("jobs"), True),
        (by(JOBS, "__name__"), Exemption("jobs"), True),
        (where(("a", "==", 1)), Exemption("other"), True),
        (where(("a", "==", 1)), Exemption("jobs", parse_path("a")), False),
        (where(("a", ">", 1)), Exemption("jobs", parse_path("a")), False),
        (where(("b", "==", 1)), Exemption("jobs", parse_path("a")), True),
    ],
)
def test_an_exempt_field_has_no_automatic_index(query: Any, exemption: Exemption, served: bool) -> None:
    assert (missing_index(structured(query), [exemption]) is None) is served
    if not served:
        needed = missing_index(structured(query), [exemption])
        assert needed is not None
        assert missing_index(structured(query), [exemption, needed]) is None, "a composite index serves it all the same"
