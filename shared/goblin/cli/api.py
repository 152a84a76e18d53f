"""HTTP client for CLI commands: finds the URL and the API key, and prints errors as one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx

from goblin.cli.deployment import reach
from goblin.cli.main import fail
from goblin.cli.terminal import plain

TIMEOUT_S = 120.0
"""`POST /jobs` reads the whole dataset once before it answers."""


class NoAnswer(Exception):
    """Goblin does not answer, or it answers 429 or 5xx. The same request may succeed later."""


def needed(name: str) -> str:
    """Return a variable that `goblin env` prints; end the command when it is not set."""
    value = os.environ.get(name, "")
    if not value:
        fail(f'{name} is not set. Set it with: eval "$(goblin env)"')
    return value


class Api:
    """Client of one Goblin, with an API key."""

    def __init__(self, data: Path | None) -> None:
        reach(data)
        # Jobs and budgets have a host of their own in production.
        self.url = (os.environ.get("GOBLIN_JOBS_URL") or needed("GOBLIN_URL")).rstrip("/")
        headers = {"authorization": f"Bearer {needed('GOBLIN_API_KEY')}"}
        # No proxies from the environment: the key is sent to this URL and nowhere else.
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT_S, trust_env=False)

    def get(self, path: str, **query: Any) -> Any:
        """Send a GET request and decode its JSON; end the command with one line when it fails."""
        try:
            return self.look(path, **query).json()
        except NoAnswer as reason:
            fail(str(reason))

    def post(self, path: str, body: Any = None) -> Any:
        """Send a POST request; otherwise like `get`."""
        try:
            return self._ask("POST", path, json=body).json()
        except NoAnswer as reason:
            fail(str(reason))

    def look(self, path: str, **query: Any) -> httpx.Response:
        """Send a GET request, for callers that retry; a 4xx ends the command.

        Raises:
            NoAnswer: No answer, 429 or 5xx; the caller may try again.
        """
        return self._ask("GET", path, params=query)

    def _ask(self, method: str, path: str, **words: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **words)
        except httpx.TransportError as error:
            raise NoAnswer(
                f"{self.url} does not answer ({error or type(error).__name__}). Is Goblin running?"
            ) from error
        if answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise NoAnswer(_why(answer))
        if not answer.is_success:
            fail(_why(answer))
        return answer


def _why(answer: httpx.Response) -> str:
    try:
        return plain(str(answer.json()["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return f"{answer.url} answered with HTTP status {answer.status_code}."
