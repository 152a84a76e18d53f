"""Pages of a listing: prefix, delimiter, offsets, versions.

Names are ordered by their UTF-8 bytes. Names behind a common prefix are skipped, not read.
Source: https://cloud.google.com/storage/docs/json_api/v1/objects/list, read 2026-11-25.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec

from localcloud.storage.catalog import Catalog
from localcloud.storage.errors import invalid, unkept
from localcloud.storage.records import StoredObject

PAGE_MAX = 1000
_GLOB_MAX = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The parameters of a listing."""

    prefix: str = ""
    delimiter: str = ""
    start: str = ""
    """The first name to include."""
    end: str = ""
    """The first name to exclude; empty for no end."""
    trailing: bool = False
    """Whether an object named like a common prefix is also an item."""
    versions: bool = False
    pattern: re.Pattern[str] | None = None
    """The pattern that item names must match."""
    limit: int = PAGE_MAX
    token: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Items and prefixes, each in order; `token` is empty on the last page."""

    items: list[StoredObject] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    token: str = ""

    @property
    def count(self) -> int:
        """How many items and prefixes the page holds so far."""
        return len(self.items) + len(self.prefixes)


class _Position(NamedTuple):
    """The position where a page begins."""

    name: str
    generation: int
    last_prefix: str
    """The common prefix shown last, not to be shown again."""


def from_query(query: Mapping[str, str]) -> Listing:
    """Parse the parameters of `objects.list`."""
    if _flag(query, "softDeleted"):
        raise unkept("Soft delete")
    glob = query.get("matchGlob")
    return Listing(
        prefix=query.get("prefix", ""),
        delimiter=query.get("delimiter", ""),
        start=query.get("startOffset", ""),
        end=query.get("endOffset", ""),
        trailing=_flag(query, "includeTrailingDelimiter"),
        versions=_flag(query, "versions"),
        pattern=glob_pattern(glob) if glob else None,
        limit=page_size(query),
        token=query.get("pageToken", ""),
    )


def _flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "").lower() == "true"  # The Python client sends `True`.


def page_size(query: Mapping[str, str]) -> int:
    """Return `maxResults`, at most a thousand."""
    raw = query.get("maxResults", "")
    if not raw:
        return PAGE_MAX
    if not raw.isascii() or not raw.isdigit() or len(raw) > 9:
        raise invalid("Invalid value for maxResults")
    return min(int(raw), PAGE_MAX) or PAGE_MAX


def list_page(catalog: Catalog, bucket: str, listing: Listing) -> Page:
    """Return one page. Items and prefixes count together; only a trailing delimiter may add one more."""
    at = _Position(max(listing.prefix, listing.start, key=str.encode), 0, "")
    if listing.token:
        at = max(at, _read_token(listing.token), key=lambda one: (one.name.encode(), one.generation))
    end = _earlier(listing.end or None, after_prefix(listing.prefix))
    page = Page()
    while end is None or at.name.encode() < end.encode():
        wanted = max(listing.limit - page.count, 0) + 1
        rows = list(
            catalog.objects_from(
                bucket,
                name=at.name,
                generation=at.generation,
                end=end,
                versions=listing.versions,
                limit=wanted,
            )
        )
        for row in rows:
            common = common_prefix(row.name, listing.prefix, listing.delimiter)
            shown = listing.pattern is None or listing.pattern.fullmatch(row.name) is not None
            adds_prefix = shown and common is not None and common != at.last_prefix
            adds_item = shown and (common is None or (listing.trailing and row.name == common))
            if (adds_prefix or adds_item) and page.count >= listing.limit:
                return replace(page, token=_token(_Position(row.name, row.generation, at.last_prefix)))
            if adds_prefix and common is not None:
                page.prefixes.append(common)
            if adds_item:
                page.items.append(row)
            at = _Position(row.name, row.generation + 1, (common if adds_prefix else None) or at.last_prefix)
            # All further names behind a shown prefix add nothing: skip them.
            leap = after_prefix(common) if common is not None and common == at.last_prefix else None
            if leap is not None and not adds_item:
                at = _Position(leap, 0, at.last_prefix)
                break
        else:
            if len(rows) < wanted:
                return page
    return page


def common_prefix(name: str, prefix: str, delimiter: str) -> str | None:
    """Return the name up to the first delimiter after `prefix`; None when there is none."""
    if not delimiter:
        return None
    at = name.find(delimiter, len(prefix))
    return None if at < 0 else name[: at + len(delimiter)]


def after_prefix(prefix: str) -> str | None:
    """Return the first name, by UTF-8 bytes, after all names that start with `prefix`; None when there is none."""
    stem = prefix
    while stem:
        last = ord(stem[-1])
        stem = stem[:-1]
        if last < 0x10FFFF:
            # UTF-8 orders as code points do, and has no surrogates.
            following = 0xE000 if last == 0xD7FF else last + 1
            return stem + chr(following)
    return None


def glob_pattern(glob: str) -> re.Pattern[str]:
    """Compile `matchGlob`: `*` and `?` stop at a slash, `**` does not; `[a-z]`, `[!a-z]`, `{a,b}`."""
    if len(glob) > _GLOB_MAX:
        raise invalid(f"matchGlob is longer than {_GLOB_MAX} characters")
    out: list[str] = []
    at = depth = 0
    while at < len(glob):
        char = glob[at]
        if glob.startswith("**/", at):
            out.append("(?:.*/)?")
            at += 3
            continue
        if glob.startswith("**", at):
            out.append(".*")
            at += 2
            continue
        if char == "[" and (close := glob.find("]", at + 2)) > 0:
            inside = glob[at + 1 : close].replace("\\", r"\\").replace("[", r"\[")
            out.append(f"[^{inside[1:]}]" if inside[0] in "!^" else f"[{inside}]")
            at = close + 1
            continue
        if char == "{":
            depth += 1
        elif char == "}" and depth:
            depth -= 1
            out.append(")")
            at += 1
            continue
        plain = {"*": "[^/]*", "?": "[^/]", "{": "(?:"}
        out.append("|" if char == "," and depth else plain.get(char, re.escape(char)))
        at += 1
    if depth:
        raise invalid("matchGlob has an unclosed {")
    try:
        return re.compile("".join(out), re.DOTALL)
    except re.error as error:
        raise invalid(f"matchGlob cannot be read: {error}") from error


def _earlier(first: str | None, second: str | None) -> str | None:
    """Return the earlier end; None is no end."""
    if first is None or second is None:
        return first or second
    return min(first, second, key=str.encode)


def _token(at: _Position) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(at)).decode()


def _read_token(token: str) -> _Position:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(token), type=_Position)
    except (binascii.Error, ValueError) as error:
        raise invalid("Invalid pageToken") from error
