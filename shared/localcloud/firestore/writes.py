"""Apply one write to one document: precondition, mask, transforms, limits.

Pure functions: from the document before to the document after and the result.
"""

import math
from collections.abc import Iterable

import grpc

from localcloud.firestore import names, times, values
from localcloud.firestore.protos import Document, FieldTransform, Pb, Value, WriteResult
from localcloud.firestore.refusals import Refused, failed_precondition, invalid, not_found

TRANSFORMS_MAX = 500
"""Field transforms of one document in one commit."""

INT64_MAX = (1 << 63) - 1
INT64_MIN = -(1 << 63)
_REQUEST_TIME = FieldTransform.ServerValue.REQUEST_TIME
_MILLISECOND_US = 1000


def target(write: Pb) -> str:
    """Return the name of the document that a write is about."""
    match write.WhichOneof("operation"):
        case "update":
            return str(write.update.name)
        case "delete":
            return str(write.delete)
        case "transform":
            return str(write.transform.document)
    raise invalid("A write must update, delete or transform a document.")


def check_transform_count(writes: Iterable[Pb]) -> None:
    """Refuse a commit that transforms one document more often than allowed."""
    counts: dict[str, int] = {}
    for write in writes:
        name = target(write)
        counts[name] = counts.get(name, 0) + len(write.update_transforms) + len(write.transform.field_transforms)
        if counts[name] > TRANSFORMS_MAX:
            raise invalid(f"A commit may transform a document at most {TRANSFORMS_MAX} times.")


def apply(before: Pb | None, write: Pb, now_us: int) -> tuple[Pb | None, Pb]:
    """Apply a write.

    Args:
        before: The document so far; None when there is none. Not changed.
        write: A `Write`.
        now_us: The commit's time.

    Returns:
        The document after, None when it is deleted, and the `WriteResult`.

    Raises:
        Refused: The precondition does not hold, or the document would break a limit.
    """
    check_precondition(before, write.current_document, target(write))
    if write.WhichOneof("operation") == "delete":
        return None, WriteResult()

    after = Document(name=target(write))
    if write.WhichOneof("operation") == "transform":
        transforms = write.transform.field_transforms
        if before is not None:
            after.CopyFrom(before)
    else:
        transforms = write.update_transforms
        _update(after, before, write)
    results = [_transform(after.fields, transform, now_us) for transform in transforms]

    names.check_writable(after.name)
    values.check_fields(after.fields)
    if (size := values.document_size(after)) > values.DOCUMENT_BYTES_MAX:
        raise invalid(
            f"Document '{after.name}' cannot be written because its size ({size:,} bytes) exceeds the maximum"
            f" allowed size of {values.DOCUMENT_BYTES_MAX:,} bytes."
        )
    _stamp(after, before, now_us)
    return after, WriteResult(update_time=after.update_time, transform_results=results)


def check_precondition(document: Pb, condition: Pb, name: str) -> None:
    """Refuse when the document does not meet the write's precondition."""
    match condition.WhichOneof("condition_type"):
        case "exists" if condition.exists and document is None:
            raise not_found(name)
        case "exists" if not condition.exists and document is not None:
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"Document already exists: {name}")
        case "update_time" if document is None:
            raise failed_precondition(f"no document has the required base version: {name}")
        case "update_time" if document.update_time != condition.update_time:
            raise failed_precondition(
                f"the stored version ({times.from_timestamp(document.update_time)}) does not match the required base"
                f" version ({times.from_timestamp(condition.update_time)})"
            )


def _update(after: Pb, before: Pb | None, write: Pb) -> None:
    if not write.HasField("update_mask"):
        after.CopyFrom(write.update)
        return
    if before is not None:
        after.CopyFrom(before)
    for path in map(values.parse_path, write.update_mask.field_paths):
        value = values.get_field(write.update.fields, path)
        if value is None:
            values.delete_field(after.fields, path)
        else:
            values.set_field(after.fields, path, value)


def _stamp(after: Pb, before: Pb | None, now_us: int) -> None:
    # A write that changes nothing keeps the version.
    if before is not None and _same_fields(after, before):
        after.create_time.CopyFrom(before.create_time)
        after.update_time.CopyFrom(before.update_time)
        return
    after.update_time.CopyFrom(times.to_timestamp(now_us))
    after.create_time.CopyFrom(before.create_time if before is not None else after.update_time)


def _same_fields(after: Pb, before: Pb) -> bool:
    # Not message equality, which treats -0.0 as 0.0 and NaN as different from itself.
    if after.fields.keys() != before.fields.keys():
        return False
    return all(
        value.SerializeToString(deterministic=True) == before.fields[name].SerializeToString(deterministic=True)
        for name, value in after.fields.items()
    )


# Transforms.


def _transform(fields: Pb, transform: Pb, now_us: int) -> Pb:
    """Apply one field transform. Returns the result for the client."""
    path = values.parse_path(transform.field_path)
    present = values.get_field(fields, path)
    old = present if present is not None else Value()
    match transform.WhichOneof("transform_type"):
        case "set_to_server_value" if transform.set_to_server_value == _REQUEST_TIME:
            # Production's server time has milliseconds.
            new = told = Value(timestamp_value=times.to_timestamp(now_us - now_us % _MILLISECOND_US))
        case "increment":
            new = told = _increment(old, _number(transform.increment))
        case "maximum":
            new = told = _extreme(old, _number(transform.maximum), larger=True)
        case "minimum":
            new = told = _extreme(old, _number(transform.minimum), larger=False)
        case "append_missing_elements":
            new, told = _append_missing(old, transform.append_missing_elements), Value(null_value=0)
        case "remove_all_from_array":
            new, told = _remove_all(old, transform.remove_all_from_array), Value(null_value=0)
        case _:
            raise invalid(f'The transform of "{transform.field_path}" is of no known type.')
    told = _copy(told)  # The result may be part of the document, which later transforms change.
    values.set_field(fields, path, _copy(new))
    return told


def _copy(value: Pb) -> Pb:
    copied = Value()
    copied.CopyFrom(value)
    return copied


def _is_number(value: Pb) -> bool:
    return value.WhichOneof("value_type") in {"integer_value", "double_value"}


def _number(operand: Pb) -> Pb:
    if not _is_number(operand):
        raise invalid("A numeric transform needs an integer or a double.")
    return operand


def _amount(value: Pb) -> int | float:
    amount: int | float = getattr(value, value.WhichOneof("value_type"))
    return amount


def _increment(old: Pb, operand: Pb) -> Pb:
    if not _is_number(old):
        return operand
    total = _amount(old) + _amount(operand)
    if isinstance(total, int):
        return Value(integer_value=max(INT64_MIN, min(INT64_MAX, total)))
    return Value(double_value=total)


def _extreme(old: Pb, operand: Pb, *, larger: bool) -> Pb:
    if not _is_number(old):
        return operand
    left, right = _amount(old), _amount(operand)
    if math.isnan(left):
        return old
    if math.isnan(right):
        return operand
    # Of equal numbers of two types, keep the stored one.
    return operand if (right > left if larger else right < left) else old


def _elements(old: Pb) -> list[Pb]:
    return list(old.array_value.values) if old.WhichOneof("value_type") == "array_value" else []


def _append_missing(old: Pb, extra: Pb) -> Pb:
    elements = _elements(old)
    present = set(map(values.order_key, elements))
    for element in extra.values:
        key = values.order_key(element)
        if key not in present:
            present.add(key)
            elements.append(element)
    return _array(elements)


def _remove_all(old: Pb, unwanted: Pb) -> Pb:
    gone = set(map(values.order_key, unwanted.values))
    return _array([element for element in _elements(old) if values.order_key(element) not in gone])


def _array(elements: list[Pb]) -> Pb:
    array = Value()
    array.array_value.SetInParent()
    array.array_value.values.extend(elements)
    return array
