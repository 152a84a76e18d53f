"""A refusal, and its words."""

from __future__ import annotations

import json


class Refusal(Exception):
    """A request that is not read any further. The message is for the caller; it quotes nothing that the caller sent."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status, always 4xx."""
        self.code = code
        """One word for programs."""
        self.message = message


def in_openais_words(refusal: Refusal) -> bytes:
    """Return the JSON body of a refusal in the shape of OpenAI's errors."""
    error = {"message": refusal.message, "type": "invalid_request_error", "param": None, "code": refusal.code}
    return json.dumps({"error": error}, separators=(",", ":")).encode()
