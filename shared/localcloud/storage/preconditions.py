"""`if*Match` preconditions: write, read or delete only what is still as the client last saw it.

Source: https://cloud.google.com/storage/docs/request-preconditions, read 2026-11-25.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from localcloud.storage.errors import StorageError, invalid, not_modified, precondition_failed
from localcloud.storage.records import StoredObject


@dataclass(frozen=True, kw_only=True, slots=True)
class Preconditions:
    """The preconditions of a request. Generation 0 means that the object must not exist."""

    generation: int | None = None
    not_generation: int | None = None
    metageneration: int | None = None
    not_metageneration: int | None = None
    etags: tuple[str, ...] = ()
    not_etags: tuple[str, ...] = ()

    def check(self, current: StoredObject | None, *, reading: bool = False) -> None:
        """Raise 412, or 304 when `reading` and the client has this version already.

        Args:
            current: The version in question; None when there is none.
            reading: Whether the request only reads.
        """
        generation = current.generation if current else 0
        metageneration = current.metageneration if current else None
        self.check_numbers(generation, metageneration, reading=reading)
        if self.etags and (current is None or not _listed(current, self.etags)):
            raise precondition_failed("If-Match")
        if self.not_etags and current is not None and _listed(current, self.not_etags):
            raise _had_already(reading)

    def check_numbers(self, generation: int, metageneration: int | None, *, reading: bool = False) -> None:
        """Check like `check` where there is no etag, as for a bucket."""
        if self.generation is not None and generation != self.generation:
            raise precondition_failed("If-Match")
        if self.metageneration is not None and metageneration != self.metageneration:
            raise precondition_failed("If-Match")
        if self.not_generation is not None and generation == self.not_generation:
            raise _had_already(reading)
        if self.not_metageneration is not None and metageneration == self.not_metageneration:
            raise _had_already(reading)


NONE = Preconditions()


def from_query(query: Mapping[str, str], *, source: bool = False) -> Preconditions:
    """Parse `ifGenerationMatch` and its siblings; `source` parses `ifSourceGenerationMatch` and its siblings.

    Capitals are ignored: the Python client's uploads send `ifMetaGenerationNotMatch`.
    """
    found = {name.lower(): value for name, value in query.items()}
    prefix = "ifsource" if source else "if"
    return Preconditions(
        generation=_number(found, f"{prefix}generationmatch"),
        not_generation=_number(found, f"{prefix}generationnotmatch"),
        metageneration=_number(found, f"{prefix}metagenerationmatch"),
        not_metageneration=_number(found, f"{prefix}metagenerationnotmatch"),
    )


def from_request(query: Mapping[str, str], headers: Mapping[str, str]) -> Preconditions:
    """Parse the query parameters, and `If-Match` and `If-None-Match` with their etags."""
    numbers = from_query(query)
    return Preconditions(
        generation=numbers.generation,
        not_generation=numbers.not_generation,
        metageneration=numbers.metageneration,
        not_metageneration=numbers.not_metageneration,
        etags=_etags(headers.get("if-match")),
        not_etags=_etags(headers.get("if-none-match")),
    )


def from_headers(headers: Mapping[str, str]) -> Preconditions:
    """Parse the XML API's `x-goog-if-generation-match`, `x-goog-if-metageneration-match`, `If-Match`."""
    return Preconditions(
        generation=_number(headers, "x-goog-if-generation-match"),
        metageneration=_number(headers, "x-goog-if-metageneration-match"),
        etags=_etags(headers.get("if-match")),
        not_etags=_etags(headers.get("if-none-match")),
    )


def _number(values: Mapping[str, str], name: str) -> int | None:
    raw = values.get(name)
    if raw is None:
        return None
    if not raw.isascii() or not raw.isdigit() or len(raw) > 19:
        raise invalid(f"Invalid value for {name}: it must be a whole number")
    return int(raw)


def _etags(header: str | None) -> tuple[str, ...]:
    if header is None:
        return ()
    return tuple(part.strip().removeprefix("W/").strip('"') for part in header.split(","))


def _listed(stored: StoredObject, etags: tuple[str, ...]) -> bool:
    return any(etag in {"*", stored.etag, stored.xml_etag} for etag in etags)


def _had_already(reading: bool) -> StorageError:
    return not_modified("If-None-Match") if reading else precondition_failed("If-None-Match")
