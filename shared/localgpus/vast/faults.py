"""Injected faults: wrong answers of the API, as a test or a person orders them."""

from __future__ import annotations

import threading

import msgspec


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An injected fault, for the next `times` requests of one kind."""

    call: str
    """`search`, `list`, `one`, `create`, `destroy`, `manage`, `bid`, `charges`, `metrics`, `user` or `webhooks`."""
    status: int = 503
    body: str = ""
    """Text of the answer, sent as it is."""
    headers: dict[str, str] = {}
    after: bool = False
    """Whether the request takes effect and only its answer is lost."""
    times: int = 1


class Faults:
    """The queue of faults that have not happened yet."""

    def __init__(self) -> None:
        self._coming: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._coming.append(fault)

    def take(self, call: str, *, after: bool) -> Fault | None:
        """Take the next fault for this call; None if there is none."""
        with self._lock:
            for fault in self._coming:
                if fault.call == call and fault.after == after:
                    fault.times -= 1
                    if fault.times <= 0:
                        self._coming.remove(fault)
                    return fault
        return None
