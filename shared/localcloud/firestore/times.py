"""Instants as Firestore counts them: whole microseconds since 1970, UTC."""

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def from_datetime(instant: datetime) -> int:
    """Return the microseconds of an aware instant."""
    return (instant - _EPOCH) // _MICROSECOND


def from_timestamp(stamp: Timestamp) -> int:
    """Return the microseconds of a protobuf timestamp."""
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000


def to_timestamp(instant_us: int) -> Timestamp:
    """Build a protobuf timestamp."""
    return Timestamp(seconds=instant_us // 1_000_000, nanos=instant_us % 1_000_000 * 1000)
