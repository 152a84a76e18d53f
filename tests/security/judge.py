"""What a server may answer to an attack, and what it may write meanwhile."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tests.security.stand import Door, Server
from tests.security.wire import Reply

CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")
LINE_BYTES_MAX = 64 * 1024


def complaint(server: str, reply: Reply, *, path: str = "", refused: bool = False, method: str = "") -> str:
    """What is wrong with an answer; empty if nothing is.

    Args:
        server: The name of the server.
        reply: Its answer; a connection that was closed without one is fine.
        path: Of a door, to know which API was called.
        refused: Whether it has to be a refusal.
        method: The request's.
    """
    if reply.status == 0:
        return ""
    # An API that a local cloud or market does not have is 501 there.
    if reply.status >= 500 and not (reply.status == 501 and server in ("localcloud", "localgpus", "llamacpp")):
        return f"status {reply.status}: {reply.body[:200]!r}"
    if refused and reply.status < 400:
        return f"status {reply.status} for what is no request: {reply.body[:200]!r}"
    if reply.status >= 400 and method != "HEAD" and (wrong := shape(server, path, reply)):
        return f"{wrong}: {reply.status} {reply.body[:200]!r}"
    if CONTROL.search(json.dumps(reply.headers, ensure_ascii=False).encode()):
        return "a control character in a header"
    return ""


def shape(server: str, path: str, reply: Reply) -> str:
    """What is wrong with the words of a refusal."""
    kind = reply.headers.get("content-type", "")
    if server == "front end" and kind.startswith("text/html"):
        return ""  # Google's front end answers so.
    if server == "localcloud" and kind.startswith("application/xml"):
        return "" if reply.body.startswith(b"<?xml") else "no XML"
    try:
        said = reply.json()
    except ValueError:
        return "a refusal that is no JSON"
    if not isinstance(said, dict):
        return "a refusal that is no object"
    if server == "localgpus":
        return "" if said.keys() & {"error", "errors", "detail", "title", "msg"} else "a refusal in another shape"
    error = said.get("error")
    if isinstance(error, str) and error and server in ("functions", "front end") and _speaks_ollama(path):
        # What is refused before the path is known has OpenAI's shape there, too.
        return "" if said.keys() == {"error"} else "not Ollama's shape"
    if not isinstance(error, dict) or not isinstance(error.get("message"), str) or not error["message"]:
        return "a refusal in another shape"
    if server in ("functions", "front end", "llamacpp"):
        if said.get("type") == "error" and "/v1/messages" in path:
            return "" if set(error) == {"type", "message"} else "not Anthropic's shape"
        wanted = {"message", "type", "param", "code"}
        # llama-server says more of a prompt that is too long.
        fits = wanted <= set(error) if server == "llamacpp" else wanted == set(error)
        return "" if fits else "not OpenAI's shape"
    return ""


def _speaks_ollama(path: str) -> bool:
    routes = ("chat", "generate", "embed", "embeddings", "show", "tags", "ps", "version")
    return any(path.partition("?")[0].endswith(f"/api/{route}") for route in routes)


def in_the_log(server: Server, since: int = 0) -> Iterator[str]:
    """What a server should not have written."""
    for line in server.said(since).split(b"\n"):
        if b"Traceback (most recent call last)" in line:
            yield f"{server.name}: a traceback: {line[-400:]!r}"
        if CONTROL.search(line):
            yield f"{server.name}: a control character: {line[:300]!r}"
        if len(line) > LINE_BYTES_MAX:
            yield f"{server.name}: a line of {len(line)} bytes"
        if line and server.name in ("functions", "front end") and not line.startswith(b"{"):
            yield f"{server.name}: a line that is no JSON: {line[:300]!r}"


def of(door: Door, attack: str, wrong: str) -> Iterator[str]:
    """The complaint in a line, if there is one."""
    if wrong:
        yield f"{door} x {attack}: {wrong}"
