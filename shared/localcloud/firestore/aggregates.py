"""Count, sum and average of a query's results.

Source: https://firebase.google.com/docs/firestore/query-data/aggregation-queries, read 2026-11-25.
"""

import math
from collections.abc import Sequence

from localcloud.firestore import values
from localcloud.firestore.protos import Pb, Value
from localcloud.firestore.refusals import invalid
from localcloud.firestore.writes import INT64_MAX, INT64_MIN

AGGREGATIONS_MAX = 5


def check(aggregations: Sequence[Pb]) -> None:
    """Refuse aggregations that production would refuse."""
    if not 1 <= len(aggregations) <= AGGREGATIONS_MAX:
        raise invalid(f"A query aggregates between 1 and {AGGREGATIONS_MAX} times.")
    aliases = [aggregation.alias for aggregation in aggregations if aggregation.alias]
    if len(set(aliases)) < len(aliases):
        raise invalid("Aggregation aliases must be unique.")
    for aggregation in aggregations:
        kind = aggregation.WhichOneof("operator")
        if kind is None:
            raise invalid("An aggregation must say what it computes.")
        if kind == "count" and aggregation.count.HasField("up_to") and aggregation.count.up_to.value <= 0:
            raise invalid("The upper bound of a count must be positive.")


def fields(aggregations: Sequence[Pb]) -> list[values.FieldPath]:
    """Return the fields that are summed or averaged, each once."""
    operators = [getattr(one, one.WhichOneof("operator")) for one in aggregations if not one.HasField("count")]
    return list(dict.fromkeys(values.parse_path(operator.field.field_path) for operator in operators))


def compute(aggregations: Sequence[Pb], documents: Sequence[Pb]) -> dict[str, Pb]:
    """Aggregate documents. Returns the results by alias; the default aliases are `field_1`, `field_2`, …

    All documents must have every summed or averaged field: production reads an index that holds no others.
    """
    unnamed = iter(range(1, len(aggregations) + 1))
    return {one.alias or f"field_{next(unnamed)}": _compute_one(one, documents) for one in aggregations}


def _compute_one(aggregation: Pb, documents: Sequence[Pb]) -> Pb:
    match aggregation.WhichOneof("operator"):
        case "count":
            count = len(documents)
            if aggregation.count.HasField("up_to"):
                count = min(count, aggregation.count.up_to.value)
            return Value(integer_value=count)
        case "sum":
            return _sum(_numbers(aggregation.sum.field.field_path, documents))
    numbers = _numbers(aggregation.avg.field.field_path, documents)
    return Value(double_value=_total(numbers) / len(numbers)) if numbers else Value(null_value=0)


def _numbers(field_path: str, documents: Sequence[Pb]) -> list[int | float]:
    path = values.parse_path(field_path)
    found = []
    for document in documents:
        value = values.get_field(document.fields, path)
        kind = value.WhichOneof("value_type") if value is not None else None
        if kind in {"integer_value", "double_value"}:
            found.append(getattr(value, kind))
    return found


def _sum(numbers: list[int | float]) -> Pb:
    if all(isinstance(number, int) for number in numbers):
        total = sum(numbers)
        if INT64_MIN <= total <= INT64_MAX:
            return Value(integer_value=int(total))
    return Value(double_value=_total(numbers))


def _total(numbers: list[int | float]) -> float:
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):  # Infinities of both signs, or a partial sum beyond a double.
        return float(sum(map(float, numbers)))
