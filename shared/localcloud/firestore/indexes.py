"""Composite indexes: which one a query needs, and whether a declared one serves it.

Production keeps for every field of a collection an index in each direction and one for array-contains. They serve
one field's range or order, and any number of equalities and array-contains, by merging indexes. Everything else
needs a composite index: a prefix of equalities in any order, then the sort fields, with all directions as requested
or all reversed. Collection groups have no automatic indexes, and neither have fields that an exemption takes out.

Each alternative of an OR (IN and ARRAY_CONTAINS_ANY are ORs) is checked separately.
Source: https://firebase.google.com/docs/firestore/query-data/index-overview and .../multiple-range-fields, read
2026-11-25.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from localcloud.firestore import filters, values
from localcloud.firestore.filters import Op, Term
from localcloud.firestore.orders import Order, normalized_orders
from localcloud.firestore.protos import Pb
from localcloud.firestore.refusals import failed_precondition

Mode = Literal["ASCENDING", "DESCENDING", "CONTAINS"]
QueryScope = Literal["COLLECTION", "COLLECTION_GROUP"]


@dataclass(frozen=True, slots=True)
class IndexField:
    """One field of an index and its mode."""

    path: values.FieldPath
    mode: Mode

    @classmethod
    def parse(cls, field: Mapping[str, str]) -> Self:
        """Parse `{"path": …, "order": …}` or `{"path": …, "array": "CONTAINS"}`."""
        mode = field["array"] if "array" in field else field["order"]
        if mode not in ({"CONTAINS"} if "array" in field else {"ASCENDING", "DESCENDING"}):
            raise ValueError(f"index field {field['path']}: {mode} is not ASCENDING, DESCENDING or CONTAINS.")
        return cls(values.parse_path(field["path"]), mode)  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, str]:
        """Return the form that `parse` reads."""
        kind = "array" if self.mode == "CONTAINS" else "order"
        return {"path": values.render_path(self.path), kind: self.mode}


@dataclass(frozen=True, slots=True)
class CompositeIndex:
    """An index of the declaration. `__name__` implicitly comes last, in the direction of the last field."""

    collection: str
    fields: tuple[IndexField, ...]
    scope: QueryScope = "COLLECTION"

    @classmethod
    def parse(cls, index: Mapping[str, Any]) -> Self:
        """Parse one entry of the declaration.

        Raises:
            ValueError: A value is not allowed in an index.
            KeyError: A key is missing.
        """
        scope = index.get("scope", "COLLECTION")
        if scope not in {"COLLECTION", "COLLECTION_GROUP"}:
            raise ValueError(f"index on {index['collection']}: {scope} is not COLLECTION or COLLECTION_GROUP.")
        fields = tuple(map(IndexField.parse, index["fields"]))
        if not fields:
            raise ValueError(f"index on {index['collection']} has no fields.")
        return cls(index["collection"], fields, scope)

    def as_dict(self) -> dict[str, Any]:
        """Return the form that `parse` reads."""
        return {
            "collection": self.collection,
            "scope": self.scope,
            "fields": [field.as_dict() for field in self.fields],
        }


@dataclass(frozen=True, slots=True)
class Exemption:
    """A field without automatic indexes, or a whole collection: its documents can be read by id only.

    Source: https://firebase.google.com/docs/firestore/query-data/index-overview#single-field_index_exemptions, read
    2026-12-01.
    """

    collection: str
    path: values.FieldPath | None = None
    """None: every field of the collection."""


Declared = CompositeIndex | Exemption
"""What a declaration says of indexes."""


@dataclass(frozen=True, slots=True)
class _Need:
    """The index that one alternative of a query needs."""

    collection: str
    scope: QueryScope
    pinned: tuple[IndexField, ...]
    """The fields compared with one value; `order` is any direction."""
    sorted_by: tuple[Order, ...]
    """The sort fields that follow, in order, without `__name__`."""
    name_descending: bool
    aggregated: tuple[values.FieldPath, ...]
    """The aggregated fields that follow, in any order and direction."""

    @property
    def is_automatic(self) -> bool:
        """Whether the automatic indexes of production serve it."""
        further = {order.path for order in self.sorted_by} | set(self.aggregated)
        if not self.pinned and not further:
            return True
        if self.scope == "COLLECTION_GROUP":
            return False
        if not further:
            return True
        natural = all(order.descending == self.name_descending for order in self.sorted_by)
        return not self.pinned and len(further) == 1 and (natural or bool(self.aggregated))

    def is_exempt(self, exemptions: Collection[Exemption]) -> bool:
        """Whether it uses a field that has no automatic index."""
        used = {field.path for field in self.pinned} | {order.path for order in self.sorted_by} | set(self.aggregated)
        return any(
            one.collection == self.collection and (one.path in used or (one.path is None and bool(used)))
            for one in exemptions
        )

    def as_index(self) -> CompositeIndex:
        """Return the smallest index that serves it alone."""
        fields = [*self.pinned, *map(_sorted_field, self.sorted_by)]
        fields += [IndexField(path, "ASCENDING") for path in self.aggregated]
        name_descends_by_itself = bool(fields) and fields[-1].mode == "DESCENDING"
        if not self.aggregated and self.name_descending != name_descends_by_itself and self.sorted_by:
            fields.append(_sorted_field(Order(values.NAME, self.name_descending)))
        return CompositeIndex(self.collection, tuple(fields), self.scope)

    def pinned_by(self, index: CompositeIndex) -> frozenset[values.FieldPath] | None:
        """Return the pinned fields that an index covers if its remaining fields match this need; None if not."""
        if (index.collection, index.scope) != (self.collection, self.scope):
            return None
        pinned = {field.path: field.mode == "CONTAINS" for field in self.pinned}
        for split in range(len(index.fields) + 1):
            if self._continues(index.fields, split):
                return frozenset(field.path for field in index.fields[:split])
            if split == len(index.fields):
                break
            field = index.fields[split]
            if pinned.get(field.path) != (field.mode == "CONTAINS"):
                break
        return None

    def _continues(self, fields: Sequence[IndexField], at: int) -> bool:
        rest = list(fields[at:])
        last = fields[-1]
        if last.path != values.NAME:
            rest.append(IndexField(values.NAME, "DESCENDING" if last.mode == "DESCENDING" else "ASCENDING"))
        head, tail = rest[: len(self.sorted_by)], rest[len(self.sorted_by) : -1]
        if any(field.mode == "CONTAINS" for field in (*head, *tail)):
            return False
        if {field.path for field in tail} != set(self.aggregated) or len(tail) != len(self.aggregated):
            return False
        wanted = list(self.sorted_by)
        if not self.aggregated:
            head, wanted = [*head, rest[-1]], [*wanted, Order(values.NAME, self.name_descending)]
        if [field.path for field in head] != [order.path for order in wanted]:
            return False
        turned = {(field.mode == "DESCENDING") != order.descending for field, order in zip(head, wanted, strict=True)}
        return len(turned) <= 1


def _sorted_field(order: Order) -> IndexField:
    return IndexField(order.path, "DESCENDING" if order.descending else "ASCENDING")


def _needs(structured: Pb, aggregated: Iterable[values.FieldPath]) -> list[_Need]:
    if not structured.from_ or not structured.from_[0].collection_id:
        return []  # A query of all collections at once is read by name only.
    has_filter = structured.HasField("where")
    terms = list(filters.terms(structured.where)) if has_filter else []
    orders = normalized_orders(structured, terms)
    branches = filters.disjunctions(structured.where) if has_filter else [[]]
    return [_need(structured.from_[0], branch, orders, tuple(aggregated)) for branch in branches]


def _need(selector: Pb, branch: list[Term], orders: list[Order], aggregated: tuple[values.FieldPath, ...]) -> _Need:
    pinned: dict[values.FieldPath, IndexField] = {}
    for term in branch:
        if term.path == values.NAME:
            continue
        if term.op == Op.EQUAL:
            pinned.setdefault(term.path, IndexField(term.path, "ASCENDING"))
        elif term.op == Op.ARRAY_CONTAINS:
            pinned.setdefault(term.path, IndexField(term.path, "CONTAINS"))
    equal = {path for path, field in pinned.items() if field.mode != "CONTAINS"}
    cut = next(at for at, order in enumerate(orders) if order.path == values.NAME)  # Nothing sorts after the name.
    sorted_by = tuple(order for order in orders[:cut] if order.path not in equal)
    known = equal | {order.path for order in sorted_by}
    return _Need(
        collection=selector.collection_id,
        scope="COLLECTION_GROUP" if selector.all_descendants else "COLLECTION",
        pinned=tuple(sorted(pinned.values(), key=lambda field: field.mode == "CONTAINS")),
        sorted_by=sorted_by,
        name_descending=orders[cut].descending,
        aggregated=tuple(path for path in aggregated if path not in known and path != values.NAME),
    )


def required_index(structured: Pb, aggregated: Iterable[values.FieldPath] = ()) -> CompositeIndex | None:
    """Return the smallest composite index for a query.

    Args:
        structured: A `StructuredQuery` that `Query` accepts.
        aggregated: The fields that are summed or averaged over it.

    Returns:
        The index for the first alternative that needs one; None when none does.
    """
    return missing_index(structured, (), aggregated)


def missing_index(
    structured: Pb, declared: Iterable[Declared], aggregated: Iterable[values.FieldPath] = ()
) -> CompositeIndex | None:
    """Return the composite index that a query lacks; None when the declared ones, alone or merged, serve it."""
    declared = tuple(declared)
    composite = [one for one in declared if isinstance(one, CompositeIndex)]
    exemptions = [one for one in declared if isinstance(one, Exemption)]
    for need in _needs(structured, aggregated):
        if need.is_automatic and not need.is_exempt(exemptions):
            continue
        covered = [found for index in composite if (found := need.pinned_by(index)) is not None]
        if not covered or frozenset().union(*covered) != {field.path for field in need.pinned}:
            return need.as_index()
    return None


def check(structured: Pb, declared: Iterable[Declared], aggregated: Iterable[values.FieldPath] = ()) -> None:
    """Refuse a query that lacks a composite index, as production does."""
    if (index := missing_index(structured, declared, aggregated)) is not None:
        raise failed_precondition(
            "The query requires an index. You can create it by adding to the declaration: "
            + json.dumps(index.as_dict())
        )
