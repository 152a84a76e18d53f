"""The API's error answers: problem documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

NO_INSTANCES = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)
"""Recorded from version 2 on 2026-08-20. Only this text tells a lack of capacity from a broken rule."""
HOST_IS_FULL = "There are not enough free GPUs on the host machine to start this pod."


class Problem(Exception):
    """An error answer."""

    def __init__(
        self, status: int, detail: str, *, errors: Sequence[str] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        said = {"title": HTTPStatus(self.status).phrase, "status": self.status, "detail": self.detail}
        return {**said, "errors": list(self.errors)} if self.errors else said
