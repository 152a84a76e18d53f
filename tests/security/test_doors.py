"""Attacks x doors: every server of the project, every route and method of each, and every kind of malformed request.

A new function or route is in the table by itself. Each attack is refused in the API's own words, or read; none is 5xx,
none leaves a traceback or a control character in a log, and others are answered meanwhile.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from tests.security import attacks, judge, tokens
from tests.security.stand import AUDIENCE, EMAIL, FUNCTIONS, KEYS, Door, Stand, is_alive
from tests.security.wire import Reply, connected, head, read, read_all, request, send

pytestmark = [pytest.mark.xdist_group("doors"), pytest.mark.timeout(300)]
SERVERS = ("functions", "front end", "llamacpp", "localcloud", "localgpus")
PROBES = {
    "functions": "/health",
    "llamacpp": "/health",
    "localcloud": "/localcloud",
    "localgpus": "/market",
    "front end": "/",
}
"""What each server answers at once."""
WITHOUT_BODY = {
    "/claim": "the path and the token say all",
    "/inputs": "likewise",
    "/cancel": "likewise",
}
"""Doors that take a POST and do not read what comes with it, and why."""


@pytest.fixture(autouse=True)
def _logs(stand: Stand) -> Iterator[None]:
    """Check what each server wrote during a test, that it runs, and that it answers."""
    before = {server.name: len(server.said()) for server in stand.servers.values()}
    yield
    complaints = [line for server in stand.servers.values() for line in judge.in_the_log(server, before[server.name])]
    assert not complaints, "\n".join(complaints[:20])
    for server in stand.servers.values():
        assert is_alive(server), f"{server.name} has ended"


def ask(
    stand: Stand, door: Door, body: bytes | None = None, *, chosen: str | None = None, query: str = "", **headers: Any
) -> Reply:
    if door.method in ("GET", "HEAD") and body is None:
        said = dict(door.headers)
    else:
        said = {"content-type": "application/json", **door.signed(body or b"")}
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return request(stand.servers[door.server].address, door.method, door.target(chosen) + query, said | more, body)


def every(stand: Stand, server: str, *, bodies: bool = False) -> list[Door]:
    found = stand.doors(server)
    return [door for door in found if not bodies or door.method in ("POST", "PUT", "PATCH")]


def fail_with(complaints: list[str]) -> None:
    assert not complaints, f"{len(complaints)} complaints\n" + "\n".join(complaints[:40])


def test_every_function_and_every_server_is_in_the_table(stand: Stand) -> None:
    functions = {door.path.split("/")[2] for door in stand.doors("functions")}
    assert functions == {file.stem for file in FUNCTIONS.glob("[a-z]*.py")}
    assert all(len(stand.doors(server)) >= 3 for server in SERVERS)
    assert set(SERVERS) == set(stand.servers)


UNSERVED = ("/rerank", "/images/generations", "/audio/transcriptions", "/audio/translations")
"""Routes that no endpoint of these servers has."""


def test_what_an_attack_changes_is_a_request_that_is_answered(stand: Stand) -> None:
    """Else the attacks would end at the first check."""
    for door in every(stand, "functions", bodies=True):
        if door.path.endswith(UNSERVED):
            continue  # Their bodies are read before an endpoint is looked for, so the attacks do not end early.
        if "/v1/" in door.path or door.path.endswith(("/jobs/jobs", "/claim", "/heartbeat", "/inputs", "/vastai")):
            reply = ask(stand, door, json.dumps(attacks.body_for(door.path)).encode())
            assert reply.status in (200, 202, 204), f"{door}: {reply}"


@pytest.mark.parametrize("server", SERVERS)
def test_bodies_that_are_no_request(stand: Stand, server: str) -> None:
    found: list[str] = []
    for door in every(stand, server, bodies=True):
        # The local cloud keeps any bytes as an object; what is behind the front end gets no valid token here.
        refused = server in ("functions", "llamacpp") and not door.path.endswith(tuple(WITHOUT_BODY))
        scheduled = server == "functions" and door.path.count("/") == 3 and not is_event(door)
        for name, body in attacks.NO_JSON.items():
            reply = ask(stand, door, body)
            wrong = judge.complaint(server, reply, path=door.path, refused=refused and not scheduled)
            found += judge.of(door, name, wrong)
    fail_with(found)


def is_event(door: Door) -> bool:
    """Whether the function takes Pub/Sub's messages."""
    return "parse_event" in (FUNCTIONS / f"{door.path.split('/')[2]}.py").read_text()


@pytest.mark.parametrize("server", SERVERS)
def test_odd_bodies(stand: Stand, server: str) -> None:
    found: list[str] = []
    for door in every(stand, server, bodies=True):
        for name, body in attacks.ODD_JSON.items():
            found += judge.of(door, name, judge.complaint(server, ask(stand, door, body), path=door.path))
    fail_with(found)


@pytest.mark.parametrize("server", SERVERS)
def test_encodings_and_bombs(stand: Stand, server: str) -> None:
    found: list[str] = []
    before = stand.servers[server].rss_mib()
    for door in every(stand, server, bodies=True):
        for name, (encoding, body) in attacks.bombs().items():
            reply = ask(stand, door, body, content_encoding=encoding)
            found += judge.of(door, name, judge.complaint(server, reply, path=door.path))
    fail_with(found)
    assert stand.servers[server].rss_mib() < before + 192, "what a door takes, a few times over"


@pytest.mark.parametrize("server", SERVERS)
def test_content_types(stand: Stand, server: str) -> None:
    found: list[str] = []
    for door in every(stand, server, bodies=True):
        for name, kind in attacks.ODD_TYPES.items():
            reply = ask(stand, door, b'{"model":"tiny"}', content_type=kind)
            found += judge.of(door, name, judge.complaint(server, reply, path=door.path))
    fail_with(found)


@pytest.mark.parametrize("server", SERVERS)
def test_paths_and_queries(stand: Stand, server: str) -> None:
    found: list[str] = []
    for door in every(stand, server):
        body = b"{}" if door.method in ("POST", "PUT", "PATCH") else None
        if "{" in door.path:
            for name, chosen in attacks.ODD_PATHS.items():
                reply = ask(stand, door, body, chosen=chosen)
                wrong = judge.complaint(server, reply, path=door.path, method=door.method)
                found += judge.of(door, f"path: {name}", wrong)
        for name, query in attacks.ODD_QUERIES.items():
            reply = ask(stand, door, body, query=query if "?" not in door.path else query.replace("?", "&", 1))
            wrong = judge.complaint(server, reply, path=door.path, method=door.method)
            found += judge.of(door, f"query: {name}", wrong)
    fail_with(found)


@pytest.mark.parametrize("server", SERVERS)
def test_headers(stand: Stand, server: str) -> None:
    found: list[str] = []
    for door in every(stand, server):
        body = b"{}" if door.method in ("POST", "PUT", "PATCH") else None
        for name, headers in attacks.ODD_HEADERS.items():
            reply = ask(stand, door, body, **headers)
            wrong = judge.complaint(server, reply, path=door.path, method=door.method)
            found += judge.of(door, name, wrong)
    fail_with(found)


@pytest.mark.parametrize("server", ["functions", "llamacpp", "localcloud", "localgpus"])
def test_odd_values_in_every_field(stand: Stand, server: str) -> None:
    found: list[str] = []
    for door in every(stand, server, bodies=True):
        if ask(stand, door, b"{}").status in (404, 405, 410, 501):
            continue  # Nothing reads it.
        for name, body in attacks.odd_bodies(attacks.body_for(door.path), of=3):
            found += judge.of(door, name, judge.complaint(server, ask(stand, door, body), path=door.path))
    fail_with(found)


EVENTS = {
    "job_requested": {**attacks.BODIES["/jobs"], "tenant": "t"},
    "checkpoint_saved": {"job_id": "j", "attempt": 1, "step": 1, "manifest_uri": "gs://doors-bucket/x"},
    "model_promoted": {
        "org": "o",
        "model": "m",
        "version": "1.0.0",
        "artifact_uri": "gs://doors-bucket/x",
        "sha256": "0" * 64,
        "seq": 1,
    },
    "budget_exceeded": {"account": "total", "window": "2026-11", "spent_usd_micros": 1, "limit_usd_micros": 1},
}


def pushed(payload: bytes, number: int) -> bytes:
    message = {"data": base64.b64encode(payload).decode(), "messageId": f"m{number}", "attributes": {}}
    return json.dumps({"message": message, "subscription": "s", "deliveryAttempt": 1}).encode()


def test_events_of_every_kind_and_what_they_leave_behind(stand: Stand) -> None:
    """No event, however odd, makes listing, cancelling or the tick fail for the others."""
    found, numbers = [], itertools.count()
    doors = [door for door in every(stand, "functions", bodies=True) if door.path.count("/") == 3 and is_event(door)]
    assert {door.path.split("/")[2] for door in doors} >= set(EVENTS)
    for door in doors:
        base: dict[str, Any] = EVENTS.get(door.path.split("/")[2], {"name": "x"})
        payloads = {**attacks.NO_JSON, **attacks.ODD_JSON}
        payloads |= dict(attacks.odd_bodies(base, of=3))
        for field, levels in itertools.product(("parameters", *list(base)[:1]), attacks.DEEP):
            payloads[f"{field} of {levels} levels"] = attacks.body_with(base, field, attacks.nested(levels))
        for name, payload in payloads.items():
            reply = ask(stand, door, pushed(payload, next(numbers)))
            found += judge.of(door, name, judge.complaint("functions", reply, path=door.path))
    fail_with(found)
    tick = next(door for door in every(stand, "functions") if door.path == "/fn/reconcile/" and door.method == "POST")
    listing = next(door for door in every(stand, "functions") if door.path == "/fn/jobs/jobs" and door.method == "GET")
    assert ask(stand, tick, b"").status == 200
    listed = ask(stand, listing, query="?limit=200")
    assert listed.status == 200
    for job in listed.json()["data"]:
        for what, method in (("", "GET"), ("/cancel", "POST")):
            path = f"/fn/jobs/jobs/{job['job_id']}{what}"
            headers = {"authorization": f"Bearer {KEYS[0]}"}
            assert request(stand.servers["functions"].address, method, path, headers).status < 500


def test_keys(stand: Stand) -> None:
    found: list[str] = []
    public = ("/health", "/api/version", "/v1/health", "/health/live", "/health/ready", "/webhooks/vastai")
    for server in ("functions", "llamacpp"):
        for door in every(stand, server):
            if "authorization" not in door.headers or door.path.endswith(public):
                continue
            body = b"{}" if door.method == "POST" else None
            for name, key in attacks.ODD_KEYS.items():
                reply = ask(stand, door, body, authorization=key)
                wrong = judge.complaint(server, reply, path=door.path, refused=not is_open(door), method=door.method)
                found += judge.of(door, name, wrong)
                if reply.status in (200, 202, 204) and not is_open(door):
                    found.append(f"{door} lets in: {name}")
            # Which of two counts is the server's choice, but not a mix of both, and no error of its own.
            for first, second in (("Bearer gob-wrong", door.headers["authorization"]), ("", "Bearer gob-wrong")):
                two = f"{first}\r\nauthorization: {second}"
                reply = ask(stand, door, body, authorization=two)
                wrong = judge.complaint(server, reply, path=door.path, method=door.method)
                found += judge.of(door, "two keys", wrong)
    fail_with(found)


def is_open(door: Door) -> bool:
    """Whether IAM on Cloud Run, and not the function, admits callers: the console's page."""
    return door.path == "/fn/console/"


def test_idempotency_keys(stand: Stand) -> None:
    found: list[str] = []
    doors = [door for door in every(stand, "functions", bodies=True) if "/v1/" in door.path]
    for door in doors:
        body = json.dumps(attacks.body_for(door.path)).encode()
        for name, key in attacks.ODD_IDEMPOTENCY_KEYS.items():
            for _ in range(2):
                reply = ask(stand, door, body, idempotency_key=key)
                found += judge.of(door, name, judge.complaint("functions", reply, path=door.path))
    fail_with(found)


@pytest.mark.parametrize(("server", "audience"), [("functions", AUDIENCE), ("front end", "http://goblin/fn/{}")])
def test_tokens(stand: Stand, server: str, audience: str) -> None:
    """Of private functions, as they check a caller's token and as Cloud Run does it before them."""
    found: list[str] = []
    private = sorted({door.path.split("/")[2] for door in every(stand, "front end")})
    for function in private:
        address, path = stand.servers[server].address, f"/fn/{function}/"
        good = stand.token(audience=audience.format(function))
        reply = request(address, "POST", path, {"authorization": f"Bearer {good}", "content-type": "text/plain"}, b"x")
        assert reply.status not in (401, 403), f"a good token is let in: {reply}"
        for name, token in tokens.bad_tokens(stand.identity, audience=audience.format(function), email=EMAIL):
            said = b"Bearer " + (token if isinstance(token, bytes) else token.encode())
            reply = request(address, "POST", path, {"authorization": said}, b"{}")
            if reply.status not in (0, 400, 401, 403, 431):
                found.append(f"{server} {path} x {name}: status {reply.status}: {reply.body[:200]!r}")
    fail_with(found)


@pytest.mark.parametrize("server", SERVERS)
def test_heads_that_are_no_request(stand: Stand, server: str) -> None:
    found: list[str] = []
    address = stand.servers[server].address
    for name, data in attacks.ODD_LINES.items():
        data = data.replace(b"host: a", f"host: 127.0.0.1:{address[1]}".encode())
        reply = send(address, data)
        if wrong := judge.complaint(server, reply, refused=True):
            found.append(f"{server} x {name}: {wrong}")
        if b"secret" in reply.body:
            found.append(f"{server} x {name}: it repeats a credential: {reply.body!r}")
    huge = {
        "a header of 100 KiB": b"x: " + b"a" * 100_000,
        "1,000 headers": b"\r\n".join(b"x%d: y" % n for n in range(1000)),
        "a name of 100 KiB": b"x" * 100_000 + b": y",
    }
    for name, lines in huge.items():
        reply = send(address, f"GET / HTTP/1.1\r\nhost: 127.0.0.1:{address[1]}\r\n".encode() + lines + b"\r\n\r\n")
        if reply.status not in (0, 431):
            found.append(f"{server} x {name}: status {reply.status}")
    reply = send(address, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n")
    if reply.status not in (0, 414, 431):
        found.append(f"{server} x a target of 100 KiB: status {reply.status}")
    fail_with(found)


@pytest.mark.parametrize("server", SERVERS)
def test_smuggling(stand: Stand, server: str) -> None:
    """A request with two readings is not answered together with what it hides."""
    found: list[str] = []
    address = stand.servers[server].address
    host = f"127.0.0.1:{address[1]}"
    for door in (every(stand, server, bodies=True)[0], every(stand, server)[0]):
        for name, data in attacks.smuggled(host, door.target()):
            with connected(address) as sock:
                with suppress(OSError):
                    sock.sendall(data)
                    sock.shutdown(socket.SHUT_WR)
                said = read_all(sock)
            statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", said)]
            if len(statuses) > 1 and name not in PIPELINED:
                found.append(f"{door} x {name}: two answers, {statuses}")
            if any(status >= 500 and status != 501 for status in statuses):
                found.append(f"{door} x {name}: {statuses}: {said[:200]!r}")
    fail_with(found)


PIPELINED = {
    "a chunk extension of 100 KiB": "an extension may be ignored, and then the body ends where it says",
    "a trailer with a length": "a trailer says nothing of the length; it is left out",
}
"""What is one request and then another by any reading."""


@pytest.mark.parametrize("server", SERVERS)
def test_no_page_of_a_browser_reaches_a_local_port(stand: Stand, server: str) -> None:
    """Another host name is DNS rebinding; another origin is another site's page."""
    found: list[str] = []
    port = stand.servers[server].port
    hosts = (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        f"localhost.evil.example:{port}",
        "0.0.0.0",
        f"0x7f000001:{port}",
        "169.254.169.254",
        "[::ffff:127.0.0.1]",
        "localhost:80@evil.example",
        "127.0.0.1, evil.example",
        "",
        "a b",
        "localhost\udcff",
        "x" * 5000,
    )
    pages: list[dict[str, Any]] = [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": f"http://127.0.0.1:{port + 1}"},
        {"origin": f"http://localhost.evil.example:{port}"},
        {"origin": "file://"},
        {"origin": "chrome-extension://x"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
        {"origin": "http://evil.example", "access-control-request-method": "POST"},
    ]
    for door in every(stand, server):
        body = b"{}" if door.method in ("POST", "PUT", "PATCH") else None
        for host in hosts:
            reply = ask(stand, door, body, host=host)
            if reply.status not in (0, 400, 421):
                found.append(f"{door} x host {host[:60]!r}: status {reply.status}")
        for page in pages:
            reply = ask(stand, door, body, **page)
            if reply.status not in (0, 400, 403):
                found.append(f"{door} x {page}: status {reply.status}")
            if "access-control-allow-origin" in reply.headers:
                found.append(f"{door} x {page}: it allows {reply.headers['access-control-allow-origin']}")
        for own in (f"http://127.0.0.1:{port}", None):
            reply = ask(stand, door, body, **({"origin": own} if own else {}))
            if reply.status in (403, 421) and b"another site" in reply.body:
                found.append(f"{door} refuses itself: {own}")
    two = request(
        stand.servers[server].address, "GET", "/ HTTP/1.1\r\nhost: evil.example\r\nx: y", {"connection": "close"}
    )
    if two.status not in (0, 400, 421):
        found.append(f"{server} x two hosts: status {two.status}")
    fail_with(found)


def test_preflights_get_no_permission(stand: Stand) -> None:
    for server in SERVERS:
        reply = request(
            stand.servers[server].address,
            "OPTIONS",
            "/",
            {"origin": "http://evil.example", "access-control-request-method": "POST"},
        )
        assert reply.status >= 400, server
        assert not any(name.startswith("access-control") for name in reply.headers), server


def test_a_header_of_100_mib_is_not_gathered(stand: Stand) -> None:
    for server in stand.servers.values():
        before, sent = server.rss_mib(), 0
        with connected(server.address) as sock, suppress(OSError):
            sock.sendall(b"GET / HTTP/1.1\r\nx: ")
            while sent < 100 * 2**20:
                sent += sock.send(b"a" * 2**18)
        assert sent < 32 * 2**20, f"{server.name}: what the sockets themselves hold"
        assert server.rss_mib() < before + 32, server.name


def test_lengths_that_are_lies(stand: Stand) -> None:
    """A body that is shorter or longer than it was said to be harms nobody but its sender."""
    for server in SERVERS:
        door = every(stand, server, bodies=True)[0]
        address = stand.servers[server].address
        for length, body in ((100, b"{}"), (1, b"{}{}{}"), (10**12, b"{}"), (0, b"{}")):
            said = {"host": f"127.0.0.1:{address[1]}", **door.headers, "content-length": str(length)}
            with connected(address) as sock:
                sock.sendall(head("POST", door.target(), said) + body)
                sock.shutdown(socket.SHUT_WR)
                answers = re.findall(rb"HTTP/1\.1 (\d{3})", read_all(sock))
            assert all(int(status) < 500 or status == b"501" for status in answers), (server, length, answers)


def test_others_are_answered_while_requests_never_end(stand: Stand) -> None:
    """Half request lines at every server, and 512 bodies of two keys that never end; each is ended by the server."""
    gateway = stand.servers["functions"]
    target = "/fn/gateway/v1/chat/completions"
    with ExitStack() as stack:
        halves = [
            (server.name, stack.enter_context(connected(server.address)))
            for server in stand.servers.values()
            for _ in range(40)
        ]
        for number, (_, sock) in enumerate(halves):
            sock.sendall((b"G", b"POST / HT", b"GET / HTTP/1.1\r\nhost: a\r\nx: ")[number % 3])
        endless = [stack.enter_context(connected(gateway.address)) for _ in range(512)]
        for number, sock in enumerate(endless):
            said = {"host": "127.0.0.1", "authorization": f"Bearer {KEYS[number % 2]}", "content-length": "1000"}
            sock.sendall(head("POST", target, said) + b'{"model":')
        body = json.dumps(attacks.BODIES["/v1/chat/completions"]).encode()
        for key in KEYS:
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            assert request(gateway.address, "POST", target, headers, body).status == 200, "another body is read"
            assert request(gateway.address, "GET", "/fn/gateway/v1/models", headers).status == 200
        for server in stand.servers.values():
            assert request(server.address, "GET", PROBES[server.name], {}).status in (200, 404), server.name
        for name, sock in halves:
            assert read(sock).status in (0, 408), name
        for sock in endless:
            assert read(sock).status in (0, 408)
    assert gateway.rss_mib() < 512
