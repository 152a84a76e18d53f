"""The running Goblin over HTTP, for commands: where it is, who we are, and errors in one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx

from goblin.cli.deployment import reach
from goblin.cli.main import fail

TIMEOUT_S = 120.0
"""A submit reads the whole dataset once before it answers."""


class NoAnswer(Exception):
    """Nobody answers, or who answers cannot just now: it may be asked again."""


def needed(name: str) -> str:
    """A variable that `goblin env` prints; ends the command when it is not set."""
    value = os.environ.get(name, "")
    if not value:
        fail(f"{name} is not set; `goblin env` prints it")
    return value


class Api:
    """One Goblin, asked with an API key."""

    def __init__(self, data: Path | None) -> None:
        reach(data)
        self.url = needed("GOBLIN_URL").rstrip("/")
        headers = {"authorization": f"Bearer {needed('GOBLIN_API_KEY')}"}
        # No proxies: the key goes where it was told to go.
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT_S, trust_env=False)

    def get(self, path: str, **query: Any) -> Any:
        """Read; ends the command with one line when that is not possible."""
        try:
            return self.look(path, **query).json()
        except NoAnswer as reason:
            fail(str(reason))

    def post(self, path: str, body: Any = None) -> Any:
        """Write; otherwise like `get`."""
        try:
            return self._ask("POST", path, json=body).json()
        except NoAnswer as reason:
            fail(str(reason))

    def look(self, path: str, **query: Any) -> httpx.Response:
        """Read, for those who come back; a refusal ends the command.

        Raises:
            NoAnswer: Ask again.
        """
        return self._ask("GET", path, params=query)

    def _ask(self, method: str, path: str, **words: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **words)
        except httpx.TransportError as error:
            raise NoAnswer(f"{self.url} does not answer: {error or type(error).__name__}") from error
        if answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise NoAnswer(_why(answer))
        if not answer.is_success:
            fail(_why(answer))
        return answer


def _why(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.url} answered {answer.status_code}"
