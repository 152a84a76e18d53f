"""Filters: tests of documents, and the disjunctions that a filter expands to.

Source of the rules: https://firebase.google.com/docs/firestore/query-data/queries, read 2026-11-25.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from localcloud.firestore import values
from localcloud.firestore.protos import CompositeFilter, FieldFilter, Pb, UnaryFilter
from localcloud.firestore.refusals import invalid

DISJUNCTIONS_MAX = 30
NOT_IN_MAX = 10

Op = FieldFilter.Operator
Unary = UnaryFilter.Operator

Test = Callable[[Pb], bool]
"""A function that returns whether a document matches."""

INEQUALITIES = frozenset(
    {Op.LESS_THAN, Op.LESS_THAN_OR_EQUAL, Op.GREATER_THAN, Op.GREATER_THAN_OR_EQUAL, Op.NOT_EQUAL, Op.NOT_IN}
)
RANGES: dict[int, Callable[[bytes, bytes], bool]] = {
    Op.LESS_THAN: lambda key, bound: key < bound,
    Op.LESS_THAN_OR_EQUAL: lambda key, bound: key <= bound,
    Op.GREATER_THAN: lambda key, bound: key > bound,
    Op.GREATER_THAN_OR_EQUAL: lambda key, bound: key >= bound,
}


_UNLISTED = {
    Op.IN: frozenset({values.NULL_KEY, values.NAN_KEY}),
    Op.ARRAY_CONTAINS_ANY: frozenset({values.NULL_KEY}),
}
"""Values that match nothing when they are listed as alternatives."""


@dataclass(frozen=True, slots=True)
class Term:
    """One comparison of one field; a filter is terms under AND and OR."""

    path: values.FieldPath
    op: int
    """A `FieldFilter.Operator`; unary filters are EQUAL and NOT_EQUAL with null or NaN."""
    keys: tuple[bytes, ...]
    """Order keys of the operand, or of its elements where the operator takes a list."""

    @property
    def is_inequality(self) -> bool:
        """Whether the comparison orders the results by its field."""
        return self.op in INEQUALITIES


def terms(where: Pb) -> Iterator[Term]:
    """Yield every comparison in a filter, in order of appearance."""
    match where.WhichOneof("filter_type"):
        case "composite_filter":
            if where.composite_filter.op not in {CompositeFilter.Operator.AND, CompositeFilter.Operator.OR}:
                raise invalid("A composite filter is AND or OR.")
            for inner in where.composite_filter.filters:
                yield from terms(inner)
        case "field_filter":
            yield _field_term(where.field_filter)
        case "unary_filter":
            yield _unary_term(where.unary_filter)
        case _:
            raise invalid("A filter must say what it filters.")


def disjunctions(where: Pb) -> list[list[Term]]:
    """Expand a filter into alternatives, each a list of comparisons that must all hold.

    IN and ARRAY_CONTAINS_ANY are alternatives too.

    Raises:
        Refused: There are more alternatives than production evaluates.
    """
    if where.WhichOneof("filter_type") != "composite_filter":
        (term,) = terms(where)
        return [[single] for single in _alternatives(term)]
    # Repeated parts count once.
    parts = {part.SerializeToString(deterministic=True): part for part in where.composite_filter.filters}
    inner = [disjunctions(part) for part in parts.values()]
    if where.composite_filter.op == CompositeFilter.Operator.OR:
        found = [branch for branches in inner for branch in branches]
    else:
        found = [[]]
        for branches in inner:
            _check_disjunction_count(len(found) * len(branches))
            found = [[*left, *right] for left in found for right in branches]
    _check_disjunction_count(len(found))
    return found


def _check_disjunction_count(count: int) -> None:
    if count > DISJUNCTIONS_MAX:
        raise invalid(f"The query has {count} disjunctions; at most {DISJUNCTIONS_MAX} are allowed.")


def _alternatives(term: Term) -> list[Term]:
    single = {Op.IN: Op.EQUAL, Op.ARRAY_CONTAINS_ANY: Op.ARRAY_CONTAINS}.get(term.op)
    if single is None:
        return [term]
    _check_disjunction_count(len(term.keys))
    return [Term(term.path, single, (key,)) for key in dict.fromkeys(term.keys) if key not in _UNLISTED[term.op]]


def _field_term(field_filter: Pb) -> Term:
    path = values.parse_path(field_filter.field.field_path)
    operator, operand = field_filter.op, field_filter.value
    if operator not in Op.values() or operator == Op.OPERATOR_UNSPECIFIED:
        raise invalid("A field filter must have an operator.")
    if operator in {Op.IN, Op.NOT_IN, Op.ARRAY_CONTAINS_ANY}:
        listed = operand.array_value.values
        if operand.WhichOneof("value_type") != "array_value" or not listed:
            raise invalid(f"'{Op.Name(operator)}' requires a non-empty array value.")
        if operator == Op.NOT_IN and len(listed) > NOT_IN_MAX:
            raise invalid(f"'NOT_IN' supports up to {NOT_IN_MAX} comparison values.")
        keys = tuple(map(values.order_key, listed))
    else:
        keys = (values.order_key(operand),)
    if path == values.NAME:
        if operator in {Op.ARRAY_CONTAINS, Op.ARRAY_CONTAINS_ANY}:
            raise invalid("__name__ is not an array.")
        if any(key[0] != values.REFERENCE for key in keys):
            raise invalid("__key__ filter value must be a Key")
    elif operator in RANGES and keys[0] in {values.NULL_KEY, values.NAN_KEY}:
        raise invalid(f"'{Op.Name(operator)}' does not compare with null or NaN.")
    return Term(path, operator, keys)


def _unary_term(unary: Pb) -> Term:
    path = values.parse_path(unary.field.field_path)
    if path == values.NAME:
        raise invalid("__name__ is never null or NaN.")
    match unary.op:
        case Unary.IS_NULL:
            return Term(path, Op.EQUAL, (values.NULL_KEY,))
        case Unary.IS_NAN:
            return Term(path, Op.EQUAL, (values.NAN_KEY,))
        case Unary.IS_NOT_NULL:
            return Term(path, Op.NOT_EQUAL, (values.NULL_KEY,))
        case Unary.IS_NOT_NAN:
            return Term(path, Op.NOT_EQUAL, (values.NAN_KEY,))
    raise invalid("A unary filter must have an operator.")


def compile_filter(where: Pb) -> Test:
    """Compile a filter into a test of documents."""
    if where.WhichOneof("filter_type") != "composite_filter":
        (term,) = terms(where)
        return compile_term(term)
    parts = [compile_filter(inner) for inner in where.composite_filter.filters]
    if where.composite_filter.op == CompositeFilter.Operator.OR:
        return lambda document: any(part(document) for part in parts)
    return lambda document: all(part(document) for part in parts)


def compile_term(term: Term) -> Test:
    """Compile one comparison into a test of documents."""
    if term.op in {Op.ARRAY_CONTAINS, Op.ARRAY_CONTAINS_ANY}:
        return _contains(term)
    holds = _comparison(term)

    def test(document: Pb) -> bool:
        key = field_key(document, term.path)
        return key is not None and holds(key)

    return test


def field_key(document: Pb, path: values.FieldPath) -> bytes | None:
    """Return the order key of a document's field, None where it has none; `__name__` is its reference."""
    if path == values.NAME:
        return values.reference_key(document.name)
    value = values.get_field(document.fields, path)
    return None if value is None else values.order_key(value)


def _comparison(term: Term) -> Callable[[bytes], bool]:
    keys = frozenset(term.keys)
    (first, *_) = term.keys
    match term.op:
        case Op.EQUAL:
            return lambda key: key == first
        case Op.IN:
            listed = keys - _UNLISTED[Op.IN]
            return lambda key: key in listed
        case Op.NOT_EQUAL:
            return lambda key: key not in keys and key != values.NULL_KEY
        case Op.NOT_IN if values.NULL_KEY in keys:
            return lambda _key: False
        case Op.NOT_IN:
            unlisted = (keys | {values.NULL_KEY}) - {values.NAN_KEY}
            return lambda key: key not in unlisted
    compare = RANGES[term.op]
    return lambda key: values.comparable(key, first) and compare(key, first)


def _contains(term: Term) -> Test:
    keys = frozenset(term.keys) - _UNLISTED.get(term.op, frozenset())

    def test(document: Pb) -> bool:
        value = values.get_field(document.fields, term.path)
        return (
            value is not None
            and value.WhichOneof("value_type") == "array_value"
            and any(values.order_key(element) in keys for element in value.array_value.values)
        )

    return test
