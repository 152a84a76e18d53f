"""What goes wrong between a client and the API, as somebody wants it."""

from __future__ import annotations

from dataclasses import dataclass, field

PAGE = "<html><head><title>{0}</title></head><body><h1>{0}</h1><hr><center>cloudflare</center></body></html>"


@dataclass(kw_only=True)
class Fault:
    """One answer that is not what it should be."""

    status: int | None = 503
    """None: the connection ends without an answer that can be read."""
    method: str = ""
    """Empty: any."""
    path: str = ""
    """What the path begins with, as `/v2/pods`."""
    html: bool = False
    """A proxy's page in place of a problem document."""
    detail: str = "upstream unavailable"
    headers: dict[str, str] = field(default_factory=dict)
    applied: bool = False
    """The request took effect, and only its answer is lost."""
    times: int = 1

    def fits(self, method: str, path: str) -> bool:
        return self.method in ("", method) and path.startswith(self.path)


@dataclass
class Faults:
    """Those that are still to come, first come first served."""

    coming: list[Fault] = field(default_factory=list)

    def take(self, method: str, path: str) -> Fault | None:
        for fault in self.coming:
            if fault.fits(method, path):
                fault.times -= 1
                if fault.times <= 0:
                    self.coming.remove(fault)
                return fault
        return None
