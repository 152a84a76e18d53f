"""Sort orders of a query: the requested ones, and those that production adds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from localcloud.firestore import values
from localcloud.firestore.filters import Term
from localcloud.firestore.protos import Pb, StructuredQuery

ASCENDING = StructuredQuery.Direction.ASCENDING
DESCENDING = StructuredQuery.Direction.DESCENDING


@dataclass(frozen=True, slots=True)
class Order:
    """One field that results are sorted by."""

    path: values.FieldPath
    descending: bool

    def key(self, key: bytes) -> bytes:
        """Return the value's order key as this order sorts it."""
        return values.invert(key) if self.descending else key


def normalized_orders(structured: Pb, terms: Iterable[Term]) -> list[Order]:
    """Return all sort fields: the requested ones, then fields of inequalities by name, then `__name__`.

    Added fields take the direction of the last requested order.
    """
    orders = [
        Order(values.parse_path(order.field.field_path), order.direction == DESCENDING) for order in structured.order_by
    ]
    descending = orders[-1].descending if orders else False
    ordered = {order.path for order in orders}
    implied = {term.path for term in terms if term.is_inequality} - ordered - {values.NAME}
    orders += [Order(path, descending) for path in sorted(implied, key=values.render_path)]
    if values.NAME not in ordered:
        orders.append(Order(values.NAME, descending))
    return orders


def sorted_by_also(structured: Pb, orders: Sequence[Order], further: Iterable[values.FieldPath]) -> Pb:
    """Return a query that also sorts by further fields, just before the name, so that its results must have them.

    Args:
        structured: A `StructuredQuery`; not changed.
        orders: All sort orders of its results, the name last.
        further: The fields to add; fields that are sorted by already stay where they are.
    """
    *sorted_by, name = orders
    known = {order.path for order in sorted_by}
    extended = StructuredQuery()
    extended.CopyFrom(structured)
    del extended.order_by[:]
    for order in (*sorted_by, *(Order(path, name.descending) for path in further if path not in known), name):
        added = extended.order_by.add(direction=DESCENDING if order.descending else ASCENDING)
        added.field.field_path = values.render_path(order.path)
    return extended
