"""Queries that production refuses to run, with any indexes.

Source: https://firebase.google.com/docs/firestore/query-data/queries, read 2026-11-25, and the refusals of Google's
emulator 1.19.9.
"""

from collections.abc import Sequence

from localcloud.firestore import filters, values
from localcloud.firestore.filters import Op, Term
from localcloud.firestore.orders import Order
from localcloud.firestore.protos import CompositeFilter, Pb
from localcloud.firestore.refusals import failed_precondition, invalid, refuse_unsupported


def check(structured: Pb, terms: Sequence[Term], orders: Sequence[Order]) -> None:
    """Refuse a query that no index could serve.

    Args:
        structured: A `StructuredQuery`.
        terms: Its comparisons.
        orders: All sort orders of its results.
    """
    if structured.HasField("find_nearest"):
        refuse_unsupported("find_nearest")
    if len(structured.from_) > 1:
        raise invalid("A query reads one collection selector.")
    if structured.offset < 0 or structured.limit.value < 0:
        raise invalid("A query's offset and limit must not be negative.")
    if structured.HasField("where"):
        _check_filter(structured.where, terms)
    _check_orders(terms, orders)


def _check_filter(where: Pb, terms: Sequence[Term]) -> None:
    operators = [term.op for term in terms]
    branches = filters.disjunctions(where)
    if operators.count(Op.NOT_EQUAL) + operators.count(Op.NOT_IN) > 1:
        raise invalid("Only a single 'NOT_EQUAL' or 'NOT_IN' filter is allowed per query.")
    if Op.NOT_IN in operators and ({Op.IN, Op.ARRAY_CONTAINS_ANY} & set(operators) or _has_or(where)):
        raise invalid("'NOT_IN' cannot be used in the same query with 'IN', 'ARRAY_CONTAINS_ANY' or 'OR'.")
    if any(len({term for term in branch if term.op == Op.ARRAY_CONTAINS}) > 1 for branch in branches):
        raise invalid("Only a single 'ARRAY_CONTAINS' filter is allowed per disjunction.")
    unequal = {term.path for term in terms if term.is_inequality}
    pins_name = any(term.path == values.NAME and term.op in {Op.EQUAL, Op.IN} for term in terms)
    if pins_name and unequal and values.NAME not in unequal:
        raise invalid("Equality on __name__ is not allowed when only other fields have inequalities.")


def _has_or(where: Pb) -> bool:
    if where.WhichOneof("filter_type") != "composite_filter":
        return False
    composite = where.composite_filter
    return composite.op == CompositeFilter.Operator.OR or any(map(_has_or, composite.filters))


def _check_orders(terms: Sequence[Term], orders: Sequence[Order]) -> None:
    paths = [order.path for order in orders]
    if len(set(paths)) < len(paths):
        raise invalid("A query orders by a field at most once.")
    if paths[-1] != values.NAME:
        raise invalid("A query cannot order by more fields after __name__.")
    pinned = any(not term.is_inequality and term.path != values.NAME for term in terms)
    if len(orders) == 1 and orders[0].descending and not pinned:
        raise failed_precondition("Firestore does not support descending scans by __name__.")


def check_aggregated(
    structured: Pb, terms: Sequence[Term], orders: Sequence[Order], aggregated: Sequence[values.FieldPath]
) -> None:
    """Refuse a sum or average whose index would need its field after `__name__`."""
    names_matter = any(order.field.field_path == "__name__" for order in structured.order_by) or any(
        term.path == values.NAME for term in terms
    )
    if names_matter and not {order.path for order in orders}.issuperset(aggregated):
        raise invalid("A query cannot aggregate a field that its index would need after __name__.")
