"""The filter language of a subscription, which selects messages by their attributes.

    expression = term { AND term } | term { OR term }        AND and OR are never mixed without parentheses
    term       = [ NOT | - ] factor
    factor     = ( expression )
               | attributes:KEY
               | attributes.KEY ( = | != ) "value"
               | hasPrefix(attributes.KEY, "prefix")
    KEY        = a word, or a "quoted string"

Source: https://cloud.google.com/pubsub/docs/subscription-message-filter, read 2026-11-23. `!=` is true for a
message that lacks the key.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from localcloud.pubsub.errors import invalid

FILTER_BYTES_MAX = 256
DEPTH_MAX = 32
"""Nested parentheses and negations. A filter of 256 bytes could nest deeper than recursion should go."""

Attributes: TypeAlias = Mapping[str, str]
Filter: TypeAlias = Callable[[Attributes], bool]

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<word>[A-Za-z_][A-Za-z0-9_\-]*)
      | (?P<mark>!=|[=:.,()\-])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class Token(NamedTuple):
    """A token of the expression; `kind` is `string`, `word`, `mark` or, after the last one, `end`."""

    kind: str
    text: str


END = Token("end", "")


def everything(_attributes: Attributes) -> bool:
    """Accept every message: the empty filter."""
    return True


def parse_filter(text: str) -> Filter:
    """Compile a filter. An invalid one is refused with INVALID_ARGUMENT."""
    if not text.strip():
        return everything
    if len(text.encode()) > FILTER_BYTES_MAX:
        raise invalid(f"The filter is longer than {FILTER_BYTES_MAX} bytes.")
    reader = _Reader(_tokens(text))
    matches = reader.expression(depth=0)
    reader.expect("end")
    return matches


def _tokens(text: str) -> list[Token]:
    tokens = []
    position, end = 0, len(text.rstrip())
    while position < end:
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            raise invalid(f"Invalid filter: cannot read {text[position : position + 20]!r}.")
        tokens.append(Token(found.lastgroup, found[found.lastgroup]))
        position = found.end()
    return [*tokens, END]


class _Reader:
    """A recursive descent parser with one method for each line of the grammar."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def expression(self, depth: int) -> Filter:
        """Parse `term { AND term } | term { OR term }`."""
        if depth > DEPTH_MAX:
            raise invalid("Invalid filter: nested too deeply.")
        terms = [self._term(depth)]
        joiner = self._peek().text if self._peek() in (Token("word", "AND"), Token("word", "OR")) else ""
        while joiner and self._take_if("word", joiner):
            terms.append(self._term(depth))
        if self._peek() in (Token("word", "AND"), Token("word", "OR")):
            raise invalid("Invalid filter: parentheses are required where AND and OR are mixed.")
        if len(terms) == 1:
            return terms[0]
        return _all_of(terms) if joiner == "AND" else _any_of(terms)

    def expect(self, kind: str, text: str | None = None) -> str:
        """Return the text of the next token, which must be of this kind and text."""
        token = self._tokens[self._at]
        if token.kind != kind or (text is not None and token.text != text):
            wanted = text or {"end": "the end", "word": "a name", "string": "a quoted string"}.get(kind, kind)
            raise invalid(f"Invalid filter: expected {wanted}, found {token.text or 'the end'}.")
        self._at += 1
        return token.text

    def _term(self, depth: int) -> Filter:
        if self._take_if("word", "NOT") or self._take_if("mark", "-"):
            return _negation(self._factor(depth))
        return self._factor(depth)

    def _factor(self, depth: int) -> Filter:
        if self._take_if("mark", "("):
            inside = self.expression(depth + 1)
            self.expect("mark", ")")
            return inside
        if self._take_if("word", "hasPrefix"):
            self.expect("mark", "(")
            key = self._attribute()
            self.expect("mark", ",")
            prefix = self._string()
            self.expect("mark", ")")
            return _has_prefix(key, prefix)
        if self._tokens[self._at + 1 : self._at + 2] == [Token("mark", ":")]:
            self.expect("word", "attributes")
            self.expect("mark", ":")
            return _has_key(self._key())
        key = self._attribute()
        if self._take_if("mark", "!="):
            return _negation(_equals(key, self._string()))
        self.expect("mark", "=")
        return _equals(key, self._string())

    def _attribute(self) -> str:
        self.expect("word", "attributes")
        self.expect("mark", ".")
        return self._key()

    def _key(self) -> str:
        return self._string() if self._peek().kind == "string" else self.expect("word")

    def _string(self) -> str:
        return _ESCAPE.sub(r"\1", self.expect("string")[1:-1])

    def _peek(self) -> Token:
        return self._tokens[self._at]

    def _take_if(self, kind: str, text: str) -> bool:
        if self._tokens[self._at] != Token(kind, text):
            return False
        self._at += 1
        return True


def _has_key(key: str) -> Filter:
    return lambda attributes: key in attributes


def _equals(key: str, value: str) -> Filter:
    return lambda attributes: attributes.get(key) == value


def _has_prefix(key: str, prefix: str) -> Filter:
    return lambda attributes: key in attributes and attributes[key].startswith(prefix)


def _negation(inner: Filter) -> Filter:
    return lambda attributes: not inner(attributes)


def _all_of(terms: list[Filter]) -> Filter:
    return lambda attributes: all(term(attributes) for term in terms)


def _any_of(terms: list[Filter]) -> Filter:
    return lambda attributes: any(term(attributes) for term in terms)
