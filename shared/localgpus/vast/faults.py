"""What goes wrong between a client and the API, as somebody wants it."""

from __future__ import annotations

import threading

import msgspec


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Answers that are not what they should be."""

    call: str
    """`search`, `list`, `one`, `create`, `destroy`, `manage`, `bid`, `charges`, `metrics`, `user` or `webhooks`."""
    status: int = 503
    body: str = ""
    """JSON or not, as it goes out."""
    headers: dict[str, str] = {}
    after: bool = False
    """The request took effect, and only its answer is lost."""
    times: int = 1


class Faults:
    """Those that are still to come, first come first served."""

    def __init__(self) -> None:
        self._coming: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._coming.append(fault)

    def take(self, call: str, *, after: bool) -> Fault | None:
        """The next one for this call, if there is one."""
        with self._lock:
            for fault in self._coming:
                if fault.call == call and fault.after == after:
                    fault.times -= 1
                    if fault.times <= 0:
                        self._coming.remove(fault)
                    return fault
        return None
