"""Time to live: expired documents are deleted some time after their expiry; until then they can be read.

Source: https://firebase.google.com/docs/firestore/ttl, read 2026-11-25.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from localcloud.firestore import times, values
from localcloud.firestore.documents import Documents, Scope


@dataclass(frozen=True, slots=True)
class TtlField:
    """The field that holds a document's expiry, in all collections of one id."""

    collection: str
    field: values.FieldPath

    @classmethod
    def parse(cls, declared: Mapping[str, Any]) -> Self:
        """Parse `{"collection": …, "field": …}`.

        Raises:
            KeyError: A key is missing.
        """
        return cls(declared["collection"], values.parse_path(declared["field"]))


def expired(documents: Documents, ttl: TtlField, *, before_us: int) -> Iterator[tuple[int, bytes]]:
    """Yield documents, as database and path, that expired before an instant; values of other types never expire."""
    for database in documents.database_names():
        scope = Scope(database, b"", ttl.collection, all_descendants=True)
        for path, document in documents.scan(scope):
            value = values.get_field(document.fields, ttl.field)
            if value is None or value.WhichOneof("value_type") != "timestamp_value":
                continue
            if times.from_timestamp(value.timestamp_value) <= before_us:
                yield database, path
