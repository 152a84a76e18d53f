"""Which route a path means: clients are given base URLs with `/v1`, without it, with it twice, or of another product.

Azure's clients put the model into the path: `/openai/deployments/MODEL/chat/completions`. Source: openai-python 3.57
(`lib/azure.py`), read 2026-12-01.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple

import msgspec

BEFORE = frozenset({"v1", "openai", "api", "anthropic", "ollama"})
"""What a base URL may have before the name of an operation."""
BY_MODEL = frozenset({"deployments", "engines"})
"""What comes before a model's name in a path: Azure's word, and OpenAI's own of before 2022."""
SHOWN_MAX = 200
"""The most characters of a caller's path in a message."""
_PARAMETER = re.compile(r"\{(\w+)(:path)?\}")


class Address(NamedTuple):
    """A route's path, and the model that the caller's path named; None without one."""

    path: str
    model: str | None = None


class Addresses:
    """The paths of an application's routes, and what is meant by others."""

    def __init__(self, paths: Iterable[str]) -> None:
        """Keep the paths of the routes, as Starlette writes them: `/v1/models/{model_id:path}`."""
        self.paths = tuple(dict.fromkeys(paths))
        self._exact = frozenset(path for path in self.paths if "{" not in path)
        self._open = [re.compile(_pattern(path)) for path in self.paths if "{" in path]
        self._operations = sorted((path.removeprefix("/v1/") for path in self._exact), key=len, reverse=True)

    def find(self, path: str) -> Address:
        """Return the route's path that is meant; the path itself where no route is."""
        if path in self._exact:
            return Address(path)
        words = [word for word in path.split("/") if word]
        after = next((place for place, word in enumerate(words) if word not in BEFORE), len(words))
        before, rest = words[:after], words[after:]
        if rest and rest[0] in BY_MODEL:
            return self._of_model("/".join(rest[1:])) or Address(path)
        for found in _meant(before, "/".join(rest)):
            if found in self._exact or any(pattern.fullmatch(found) for pattern in self._open):
                return Address(found)
        return Address(path)

    def near(self, path: str) -> list[str]:
        """List the routes whose paths look most like one that is unknown, the nearest first."""
        return get_close_matches(path[:SHOWN_MAX], self.paths, n=3, cutoff=0.75)

    def _of_model(self, rest: str) -> Address | None:
        """Split `MODEL/chat/completions`. The name of a model may have slashes itself."""
        for operation in self._operations:
            if rest.endswith(f"/{operation}") and f"/v1/{operation}" in self._exact:
                return Address(f"/v1/{operation}", rest.removesuffix(f"/{operation}"))
        return None


def with_model(body: bytes, model: str) -> bytes:
    """Put the model that a path named into a body, which may lack it. A body that is no object stays as it is."""
    try:
        said: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body  # The route's parser says what is wrong with it.
    return msgspec.json.encode({**said, "model": model}) if isinstance(said, dict) else body


def _meant(before: list[str], rest: str) -> list[str]:
    """List the paths that may be meant, the likeliest first."""
    if not rest:
        return []
    if before and before[-1] == "api":
        return [f"/api/{rest}", f"/v1/{rest}", f"/{rest}"]
    return [f"/v1/{rest}", f"/{rest}"]


def _pattern(path: str) -> str:
    """Translate a route's path: a parameter is one word, or with `:path` the rest, and never nothing."""
    pieces, end = [], 0
    for found in _PARAMETER.finditer(path):
        pieces += [re.escape(path[end : found.start()]), ".+" if found[2] else "[^/]+"]
        end = found.end()
    return "".join([*pieces, re.escape(path[end:])])
