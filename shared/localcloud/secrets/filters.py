"""The supported part of Secret Manager's filter language: terms joined by AND.

    name:text   labels.key=value   labels.key:*   for secrets
    state:ENABLED or state=ENABLED                for versions

Source: https://cloud.google.com/secret-manager/docs/filtering, read 2026-11-25.
"""

import re
from collections.abc import Callable
from typing import Any

from localcloud.secrets.errors import invalid, unkept

_BYTES_MAX = 1024
_LABEL_TERM = re.compile(r"labels\.([\w-]+)([:=])(.+)")
_STATES = {"ENABLED", "DISABLED", "DESTROYED"}


def secrets(text: str) -> Callable[[Any], bool]:
    """Return a test of whether a secret matches the filter."""
    tests = [_secret_term(term) for term in _terms(text)]
    return lambda secret: all(test(secret) for test in tests)


def state(text: str) -> str | None:
    """Return the state that matching versions are in; None for any."""
    terms = _terms(text)
    if not terms:
        return None
    field, _, value = terms[0].replace("=", ":").partition(":")
    if len(terms) > 1 or field.strip() != "state":
        raise unkept(f"The filter {text!r}")
    found = value.strip().strip('"').upper()
    if found not in _STATES:
        raise invalid(f"A version's state is one of {', '.join(sorted(_STATES))}.")
    return found


def _terms(text: str) -> list[str]:
    if len(text) > _BYTES_MAX:
        raise invalid(f"A filter has at most {_BYTES_MAX} characters.")
    if re.search(r"\b(OR|NOT)\b|[()<>!]", text):
        raise unkept(f"The filter {text!r}")
    return [term.strip() for term in re.split(r"\s+AND\s+|\s+", text.strip()) if term.strip()]


def _secret_term(term: str) -> Callable[[Any], bool]:
    if match := _LABEL_TERM.fullmatch(term):
        key, value = match[1], match[3].strip('"')
        return lambda secret: key in secret.labels and value in {"*", secret.labels[key]}
    field, colon, value = term.partition(":")
    if field == "name" and colon:
        part = value.strip('"')
        return lambda secret: part in secret.name.rpartition("/")[2]
    raise unkept(f"The filter {term!r}")
