"""Structured queries: their scope, their order, and their results."""

from collections.abc import Iterable
from dataclasses import dataclass

from localcloud.firestore import filters, names, rules, values
from localcloud.firestore.documents import Documents, Scope
from localcloud.firestore.filters import Op, Term
from localcloud.firestore.orders import DESCENDING, normalized_orders
from localcloud.firestore.protos import CompositeFilter, Document, Pb
from localcloud.firestore.refusals import invalid

_NAME_END = b"\x00"
"""The terminator of a path in a sort key: no key is a prefix of another, so `invert` reverses their order."""

SortKey = tuple[bytes, ...]
"""One order key for each order, already inverted where the order descends."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The start or end of the results: a position in the order, given by one or more keys."""

    key: SortKey
    before: bool
    """Whether the position is just before the equal documents, or just after them."""

    def is_after(self, key: SortKey) -> bool:
        """Return whether this position comes after a document that sorts at `key`."""
        prefix = key[: len(self.key)]
        return prefix < self.key or (prefix == self.key and not self.before)


class Query:
    """A checked and compiled query of one database; it can be run any number of times."""

    def __init__(self, documents: Documents, parent: str, structured: Pb) -> None:
        """Check and compile a query.

        Args:
            documents: The documents that it runs on.
            parent: The resource name of the document or root that it starts from.
            structured: A `StructuredQuery`; not changed.

        Raises:
            Refused: Production would refuse it, or this server cannot run it.
        """
        database, segments = names.parent_segments(parent)
        self.structured = structured
        self.terms: list[Term] = list(filters.terms(structured.where)) if structured.HasField("where") else []
        self.orders = normalized_orders(structured, self.terms)
        rules.check(structured, self.terms, self.orders)
        self._documents = documents
        self._matches = filters.compile_filter(structured.where) if structured.HasField("where") else None
        self._start = self._bound("start_at")
        self._end = self._bound("end_at")
        self._limit: int | None = structured.limit.value if structured.HasField("limit") else None
        self._offset: int = structured.offset
        selected = [values.parse_path(field.field_path) for field in structured.select.fields]
        self._projection = selected if structured.HasField("select") and selected else None
        self.scope = self._scope(database, segments)
        self.fingerprint = (parent, structured.SerializeToString(deterministic=True))
        """A key that is equal for equal queries."""

    @property
    def is_cut(self) -> bool:
        """Whether a limit or an offset decides which documents are results."""
        return self._limit is not None or self._offset > 0

    def _scope(self, database: str, segments: tuple[str, ...]) -> Scope:
        selector = self.structured.from_[0] if self.structured.from_ else None
        low, high = _name_range(self.structured)
        return Scope(
            database=self._documents.database(database),
            parent=names.encode(segments),
            collection=selector.collection_id or None if selector is not None else None,
            all_descendants=selector is None or selector.all_descendants,
            low=low,
            high=high,
        )

    def _bound(self, which: str) -> Bound | None:
        if not self.structured.HasField(which):
            return None
        cursor = getattr(self.structured, which)
        if len(cursor.values) > len(self.orders):
            raise invalid("Cursor has too many values.")
        keys = []
        for order, value in zip(self.orders, cursor.values, strict=False):
            if order.path != values.NAME:
                keys.append(order.key(values.order_key(value)))
            elif value.WhichOneof("value_type") == "reference_value":
                keys.append(order.key(names.encode(names.split(value.reference_value)[1]) + _NAME_END))
            else:
                raise invalid("Cursor position for __name__ must be a reference.")
        return Bound(tuple(keys), cursor.before)

    # Running.

    def matches(self, path: bytes, document: Pb) -> bool:
        """Return whether a document matches, without regard to limit and offset."""
        if not self.scope.holds(path) or (self._matches is not None and not self._matches(document)):
            return False
        key = self._sort_key(path, document)
        return key is not None and self._within(key)

    def run(self, at_us: int | None = None) -> tuple[list[Pb], int]:
        """Find the results.

        Args:
            at_us: The time of an open snapshot; None is now.

        Returns:
            The whole documents in order, and how many the offset skipped.
        """
        found: list[tuple[SortKey, Pb]] = []
        in_path_order = len(self.orders) == 1 and not self.orders[0].descending
        wanted = None if self._limit is None or not in_path_order else self._limit + self._offset
        for path, document in self._documents.scan(self.scope, at_us):
            if self._matches is not None and not self._matches(document):
                continue
            key = self._sort_key(path, document)
            if key is None or not self._within(key):
                continue
            found.append((key, document))
            if wanted is not None and len(found) >= wanted:
                break
        if not in_path_order:
            found.sort(key=lambda item: item[0])
        skipped = min(self._offset, len(found))
        end = None if self._limit is None else self._offset + self._limit
        return [document for _, document in found[self._offset : end]], skipped

    def _sort_key(self, path: bytes, document: Pb) -> SortKey | None:
        """Return where a document sorts; None when it lacks a field that results are sorted by."""
        keys = []
        for order in self.orders:
            # Within a database, paths sort as references do, and are at hand.
            key = path + _NAME_END if order.path == values.NAME else filters.field_key(document, order.path)
            if key is None:
                return None
            keys.append(order.key(key))
        return tuple(keys)

    def _within(self, key: SortKey) -> bool:
        if self._start is not None and self._start.is_after(key):
            return False
        return self._end is None or self._end.is_after(key)

    def project(self, document: Pb) -> Pb:
        """Return the document with the selected fields only."""
        return document if self._projection is None else masked(document, self._projection)


def masked(document: Pb, paths: Iterable[values.FieldPath]) -> Pb:
    """Return a document with only the fields at the given paths; `__name__` selects none."""
    part = Document(name=document.name, create_time=document.create_time, update_time=document.update_time)
    for path in paths:
        value = values.get_field(document.fields, path)
        if value is not None:
            values.set_field(part.fields, path, value)
    return part


def _name_range(structured: Pb) -> tuple[bytes, bytes]:
    """Return the range of paths that `__name__` comparisons allow, to shorten the scan."""
    lows = _name_bounds(structured.where, {Op.GREATER_THAN, Op.GREATER_THAN_OR_EQUAL, Op.EQUAL})
    highs = _name_bounds(structured.where, {Op.LESS_THAN, Op.LESS_THAN_OR_EQUAL, Op.EQUAL})
    orders = [order.field.field_path for order in structured.order_by]
    if structured.start_at.values and orders == ["__name__"] and structured.order_by[0].direction != DESCENDING:
        lows.append(names.encode(names.split(structured.start_at.values[0].reference_value)[1]))
    # No path sorts between a path itself and its first descendant.
    return max(lows, default=b""), min([high + b"\x00" for high in highs], default=names.AFTER_DESCENDANTS)


def _name_bounds(where: Pb, operators: set[int]) -> list[bytes]:
    kind = where.WhichOneof("filter_type")
    if kind == "composite_filter" and where.composite_filter.op == CompositeFilter.Operator.AND:
        return [bound for inner in where.composite_filter.filters for bound in _name_bounds(inner, operators)]
    if kind != "field_filter" or where.field_filter.op not in operators:
        return []
    if where.field_filter.field.field_path != "__name__":
        return []
    return [names.encode(names.split(where.field_filter.value.reference_value)[1])]
