"""Injected faults: wrong answers of the API, as a test orders them."""

from __future__ import annotations

from dataclasses import dataclass, field

PAGE = "<html><head><title>{0}</title></head><body><h1>{0}</h1><hr><center>cloudflare</center></body></html>"


@dataclass(kw_only=True)
class Fault:
    """An injected fault, for the next `times` matching requests."""

    status: int | None = 503
    """Status of the answer; None: the connection breaks off within the answer."""
    method: str = ""
    """Method of the request; empty: any."""
    path: str = ""
    """Prefix of the path, for example `/v2/pods`."""
    html: bool = False
    """Whether the answer is a proxy's page in place of a problem document."""
    detail: str = "upstream unavailable"
    headers: dict[str, str] = field(default_factory=dict)
    applied: bool = False
    """Whether the request takes effect and only its answer is lost."""
    times: int = 1

    def fits(self, method: str, path: str) -> bool:
        return self.method in ("", method) and path.startswith(self.path)


@dataclass
class Faults:
    """The queue of faults that have not happened yet."""

    coming: list[Fault] = field(default_factory=list)

    def take(self, method: str, path: str) -> Fault | None:
        for fault in self.coming:
            if fault.fits(method, path):
                fault.times -= 1
                if fault.times <= 0:
                    self.coming.remove(fault)
                return fault
        return None
