"""The head of a request: how large it is, which host it names, and whether another site's page sent it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from httpguard.limits import DEFAULT, Limits
from httpguard.refusal import Refusal, in_openais_words

Headers = Iterable[tuple[bytes, bytes]]
"""As in an ASGI scope: names in lower case."""

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""Names of this machine. Another name that leads here was made up by a web page: DNS rebinding."""

_FROM_OURSELVES = frozenset({b"same-origin", b"none"})


def check_head(headers: Headers, limits: Limits = DEFAULT, *, target: bytes = b"") -> None:
    """Check the size of a head.

    Args:
        headers: The request's headers.
        limits: Of them: `head_bytes` and `head_lines`.
        target: Path and query.

    Raises:
        Refusal: 431.
    """
    size, lines = len(target), 0
    for name, value in headers:
        lines += 1
        size += len(name) + len(value) + 4  # Colon, space, line end.
    if size > limits.head_bytes or lines > limits.head_lines:
        raise too_large_head(limits)


def too_large_head(limits: Limits) -> Refusal:
    """Build the refusal of a head that is too large."""
    return Refusal(
        431,
        "headers_too_large",
        f"The headers are over {limits.head_bytes // 1024} KiB, or more than {limits.head_lines}. Send fewer.",
    )


def check_caller(
    method: str, headers: Headers, *, hosts: Collection[str] | None, origins: Collection[str] = ()
) -> None:
    """Check that no web page of another site sent the request.

    Args:
        method: The request's method.
        headers: The request's headers.
        hosts: Host names by which the server is called, in lower case and without port; None: any.
        origins: Origins, besides the server's own, whose pages may call it.

    Raises:
        Refusal: 421 for another host; 403 for another site's page.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in (b"host", b"origin") and name in found:
            raise Refusal(400, "repeated_header", f"The header {name.decode()} is there twice. Send it once.")
        found[name] = value
    host = found.get(b"host", b"").decode("latin-1").lower()
    if hosts is not None and _name_of(host) not in hosts:
        raise Refusal(421, "wrong_host", "This server is not called by that host name. Use 127.0.0.1 or localhost.")
    origin = found.get(b"origin")
    if origin is not None:
        said = origin.decode("latin-1").lower()
        if said in origins or (host and said in (f"http://{host}", f"https://{host}")):
            return
        raise Refusal(403, "wrong_origin", "Requests from web pages of another site are refused.")
    if found.get(b"sec-fetch-site", b"none").lower() in _FROM_OURSELVES:
        return
    # A link on another page may lead here: the person sees the answer, the other page does not.
    if method == "GET" and found.get(b"sec-fetch-mode") == b"navigate" and found.get(b"sec-fetch-dest") == b"document":
        return
    raise Refusal(403, "wrong_origin", "Requests from web pages of another site are refused.")


def _name_of(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


class Guard:
    """ASGI application in front of another one: checks each head, and refuses in the API's own words."""

    def __init__(
        self,
        app: Any,
        *,
        hosts: Collection[str] | None = LOOPBACK,
        origins: Collection[str] = (),
        limits: Limits = DEFAULT,
        words: Callable[[Refusal], bytes] = in_openais_words,
    ) -> None:
        """Keep the application.

        Args:
            app: The ASGI application.
            hosts: As of `check_caller`.
            origins: As of `check_caller`.
            limits: As of `check_head`.
            words: Returns the JSON body of a refusal.
        """
        self._app = app
        self._hosts, self._origins = hosts, frozenset(origins)
        self._limits, self._words = limits, words

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # No server of ours has one.
            return
        if scope["type"] == "http":
            try:
                target = scope.get("raw_path") or b""
                check_head(scope["headers"], self._limits, target=target + scope["query_string"])
                check_caller(scope["method"], scope["headers"], hosts=self._hosts, origins=self._origins)
            except Refusal as refusal:
                await self._refuse(refusal, send)
                return
        await self._app(scope, receive, send)

    async def _refuse(self, refusal: Refusal, send: Any) -> None:
        body = self._words(refusal)
        headers = [
            (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]  # fmt: skip
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
