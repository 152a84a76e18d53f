"""What is sent to every door. Each table is name to bytes, so that a complaint says which."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

DEEP = (33, 957, 100_000)
"""Levels: one more than is allowed, one that a parser reads and a store does not, one that overflows a stack."""
BOMB_MIB = 48
"""More than any door takes, and so much that memory would show it."""


def nested(levels: int, *, kind: str = "array") -> bytes:
    return b"[" * levels + b"]" * levels if kind == "array" else b'{"a":' * levels + b"1" + b"}" * levels


NO_JSON: dict[str, bytes] = {
    **{f"{levels} arrays": nested(levels) for levels in DEEP},
    **{f"{levels} objects": nested(levels, kind="object") for levels in DEEP},
    **{f"{levels} arrays that never close": b"[" * levels for levels in DEEP},
    **{f"a field of {levels} levels": b'{"model":"tiny","parameters":' + nested(levels) + b"}" for levels in DEEP},
    **{
        f"a field of {levels} levels behind a string of brackets": b'{"model":"]]}}\\"","messages":'
        + nested(levels, kind="object")
        + b"}"
        for levels in DEEP
    },
    "bytes that are no UTF-8": b'{"model":"\xff\xfe"}',
    "an overlong NUL": b'{"model":"\xc0\x80"}',
    "a surrogate in UTF-8": b'{"model":"\xed\xa0\x80"}',
    "a cut UTF-8 sequence": b'{"model":"\xf0\x9f',
    "UTF-16": '{"model":"tiny"}'.encode("utf-16"),
    "UTF-32": '{"model":"tiny"}'.encode("utf-32"),
    "blank": b"  \r\n\t ",
    "null": b"null",
    "a number": b"1",
    "a string": b'"x"',
    "an array": b"[]",
    "an array of objects": b'[{"model":"tiny"}]',
    "half an object": b'{"model":"tiny",',
    "two objects": b'{"model":"tiny"}{"model":"tiny"}',
    "NaN": b'{"model":NaN}',
    "Infinity": b'{"model":-Infinity}',
    "a leading zero": b'{"model":01}',
    "a bare word": b'{"model":tiny}',
    "single quotes": b"{'model':'tiny'}",
    "a comment": b'{"model":"tiny" /* x */}',
    "a trailing comma": b'{"model":"tiny",}',
    "a raw newline in a string": b'{"model":"a\nb"}',
    "a raw NUL": b'{"model":"a\x00b"}',
    "a half escape": b'{"model":"\\ud8',
    "no JSON at all": b"<?xml version='1.0'?><a>&lol;</a>",
    "zeros": b"\x00" * 1000,
    "a form": b"model=tiny&messages=1",
}
"""Bodies that no door reads as its request: each is refused."""

ODD_JSON: dict[str, bytes] = {
    "nothing": b"",
    "an empty object": b"{}",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a lone surrogate": b'{"model":"\\ud800","job_id":"\\udfff"}',
    "duplicate keys": b'{"model":"tiny","model":"other","job_id":"a","job_id":"b"}',
    "an empty key": b'{"":1}',
    "__proto__": b'{"__proto__":{"x":1},"constructor":{}}',
    "10,000 keys": json.dumps({f"k{n}": n for n in range(10_000)}).encode(),
    "a number of 5,000 digits": b'{"step":' + b"9" * 5000 + b"}",
    "an exponent of ten digits": b'{"step":1e9999999999,"temperature":-1e-9999999999}',
    "a fraction of 5,000 digits": b'{"temperature":0.' + b"1" * 5000 + b"}",
    "a number beyond 64 bits": b'{"step":18446744073709551616,"max_tokens":-9223372036854775809}',
}
"""Bodies that a door may read, or refuse."""


@cache
def bombs() -> dict[str, tuple[str, bytes]]:
    """Name to encoding and packed body."""
    import sys

    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    plain = b"[" + b" " * (BOMB_MIB * 2**20) + b"]"
    packed = gzip.compress(plain, 1)
    return {
        "a gzip bomb": ("gzip", packed),
        "a zstd bomb": ("zstd", zstd.compress(plain)),
        "gzip in gzip": ("gzip, gzip", gzip.compress(packed, 1)),
        "gzip that is cut": ("gzip", packed[:100]),
        "gzip that is none": ("gzip", b"\x1f\x8b" + b"\xff" * 100),
        "gzip, empty": ("gzip", b""),
        "zstd that is none": ("zstd", b"\x28\xb5\x2f\xfd" + b"\xff" * 100),
        "zstd with a window of 2 GiB": ("zstd", b"\x28\xb5\x2f\xfd\x00\xa8" + b"\xff" * 100),
        "brotli": ("br", b"{}"),
        "deflate": ("deflate", b"{}"),
        "an unknown encoding": ("x-unknown", b"{}"),
        "an encoding of control characters": ("\x1b[31m", b"{}"),
        "an encoding of 30,000 letters": ("g" * 30_000, b"{}"),
    }


ODD_TYPES: dict[str, str | bytes] = {
    "no type": "",
    "a form": "application/x-www-form-urlencoded",
    "multipart": "multipart/form-data; boundary=x",
    "multipart without boundary": "multipart/form-data",
    "text": "text/plain",
    "XML": "application/xml",
    "UTF-16": "application/json; charset=utf-16",
    "an unknown charset": "application/json; charset=\x01nope",
    "a CloudEvent": "application/cloudevents+json",
    "a batch": "application/cloudevents-batch+json",
    "bytes": b"application/json\xff\xfe",
    "long": "application/" + "x" * 30_000,
}

ODD_VALUES: dict[str, bytes] = {
    "null": b"null",
    "true": b"true",
    "minus one": b"-1",
    "a fraction": b"0.5",
    "1e400": b"1e400",
    "1e-400": b"1e-400",
    "2**63": b"9223372036854775808",
    "5,000 digits": b"9" * 5000,
    "empty": b'""',
    "long": b'"' + b"a" * 70_000 + b'"',
    "NUL": b'"\\u0000"',
    "a lone surrogate": b'"\\ud800"',
    "line ends and escapes": b'"a\\r\\n\\u001b[31m\\u2028b"',
    "dots": b'"../../etc/passwd"',
    "a URL": b'"http://127.0.0.1:1/"',
    "no list": b"[]",
    "no object": b"{}",
    "a list of lists": b"[[],[[]]]",
    "a list of null": b"[null]",
    "31 levels": nested(28),
    "2,000 items": b"[" + b",".join([b"1"] * 2000) + b"]",
}

ODD_PATHS: dict[str, str] = {
    "NUL": "%00",
    "CRLF": "%0d%0aset-cookie:%20x=1",
    "an escape": "%1b%5b31m",
    "dots": "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "plain dots": "../../x",
    "double encoding": "%252e%252e%252f",
    "a backslash": "..%5c..%5cx",
    "an overlong dot": "%c0%ae",
    "no UTF-8": "%ff%fe",
    "a surrogate": "%ed%a0%80",
    "a bad escape": "%zz%",
    "dunder": "__all__",
    "a dot": ".",
    "a slash": "a%2Fb",
    "a semicolon": "x;y=z",
    "a full-width dot": "%ef%bc%8e",
    "right to left": "%e2%80%ae",
    "long": "a" * 3000,
    "very long": "a" * 50_000,
    "many digits": "9" * 5000,
    "negative": "-1",
    "a superscript": "%c2%b2",
    "raw bytes": "\udcff\udc80",
    "a raw tab": "a\tb",
    "a colon": "x:y",
    "quotes": "%22%27%3cscript%3e",
    "a percent": "%25",
}

ODD_QUERIES: dict[str, str] = {
    "no numbers": "?limit=1e400&attempt=%00&step=NaN&maxResults=-1&pageSize=x",
    "many digits": "?limit="
    + "9" * 5000
    + "&attempt="
    + "9" * 5000
    + "&maxResults="
    + "9" * 5000
    + "&pageSize="
    + "9" * 5000,
    "2,000 parameters": "?" + "&".join(f"a{n}=1" for n in range(2000)),
    "the same twice": "?limit=1&limit=2&attempt=1&attempt=2",
    "no UTF-8": "?limit=%ff&attempt=%ed%a0%80&prefix=%ff&pageToken=%ff",
    "line ends": "?limit=%0d%0a&x=%1b%5b31m",
    "a wrong token": "?pageToken=AAAA&startOffset=%00&generation=1e3&ifGenerationMatch=x&alt=media",
    "no end": "?&&&===&%",
    "raw bytes": "?a=\udcff",
}

ODD_HEADERS: dict[str, dict[str, str | bytes]] = {
    "an Expect": {"expect": "100-continue"},
    "an unknown Expect": {"expect": "200-maybe"},
    "an upgrade": {"connection": "upgrade, close", "upgrade": "h2c", "http2-settings": "AAMAAABkAAQAAP__"},
    "a websocket": {
        "connection": "Upgrade, close",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    },
    "bytes in a traceparent": {"traceparent": b"00-\xff\xfe-1b[31m-01", "x-cloud-trace-context": b"\xff/1"},
    "a strange strategy": {"x-goblin-strategy": b"\xff\x1b[31m"},
    "a range": {"range": "bytes=9999999999999999999-1,-,x", "if-match": b"\xff", "if-none-match": '"' * 1000},
    "forwarding": {
        "x-forwarded-for": "127.0.0.1, \x1b[31m",
        "x-forwarded-proto": "gopher",
        "x-forwarded-host": "evil.example",
        "forwarded": "for=unknown;by=evil",
        "x-real-ip": "::1",
        "x-original-url": "/admin",
        "x-http-method-override": "DELETE",
    },
    "a cookie": {"cookie": b"a=\xff; " * 1000},
    "a CloudEvent's headers": {
        "ce-id": "%ff%00",
        "ce-type": b"\xff",
        "ce-source": "%0a",
        "ce-time": "99999-01-01T00:00:00Z",
        "ce-specversion": "9",
    },
    "Pub/Sub's headers": {
        "x-goog-pubsub-message-id": "\x01",
        "x-goog-pubsub-publish-time": "never",
        "x-goog-pubsub-subscription-name": b"\xff",
        "x-goog-pubsub-delivery-attempt": "9" * 5000,
    },
    "Vast's headers": {"x-vast-timestamp": "9" * 5000, "x-vast-signature-256": b"sha256=\xff\xff"},
    "an Anthropic version": {"anthropic-version": b"\xff", "anthropic-beta": "," * 1000},
}

ODD_IDEMPOTENCY_KEYS: dict[str, str | bytes] = {
    "empty": "",
    "blank": "   ",
    "long": "k" * 20_000,
    "bytes": b"\xff\xfe",
    "a path": "../../x",
    "dunder": "__all__",
    "slashes": "a/b/c",
    "an escape": "\x1b[31m",
    "a tab": "a\tb",
    "quotes": "\"'",
    "UTF-8": "ключ",
}

ODD_KEYS: dict[str, str | bytes] = {
    "none": "",
    "no scheme": "gob-x",
    "Basic": "Basic Zm9vOmJhcg==",
    "an empty Bearer": "Bearer",
    "a blank Bearer": "Bearer    ",
    "wrong": "Bearer gob-wrong",
    "long": "Bearer " + "a" * 10_000,
    "very long": "Bearer " + "a" * 60_000,
    "bytes": b"Bearer \xff\xfe\x80",
    "UTF-8": "Bearer ключ",
    "an escape": "Bearer \x1b[31mred",
    "a tab": "Bearer a\tb",
    "two words": "Bearer a b",
    "a list": "Bearer a, Bearer b",
    "a path": "Bearer ../../keys",
    "an attempt's": "Bearer gob-attempt-x.1.j",
    "quotes": "Bearer \"'{}",
    "a surrogate pair of bytes": b"Bearer \xed\xa0\x80",
}


def smuggled(host: str, target: str) -> Iterator[tuple[str, bytes]]:
    """Requests whose length a proxy and a server may read differently; each hides `GET /hidden`."""
    hidden = b"GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n"
    start = f"POST {target} HTTP/1.1\r\nhost: {host}\r\n".encode()

    def with_head(*lines: bytes) -> bytes:
        return start + b"".join(line + b"\r\n" for line in lines) + b"\r\n"

    chunked = b"transfer-encoding: chunked"
    yield "both lengths", with_head(b"content-length: 5", chunked) + b"0\r\n\r\n" + hidden
    yield "both lengths, the other order", with_head(chunked, b"content-length: 5") + b"0\r\n\r\n" + hidden
    yield "two lengths", with_head(b"content-length: 0", b"content-length: %d" % len(hidden)) + hidden
    yield "a list of lengths", with_head(b"content-length: 0, 0") + hidden
    yield "a signed length", with_head(b"content-length: +0") + hidden
    yield "a negative length", with_head(b"content-length: -1") + hidden
    yield "a hexadecimal length", with_head(b"content-length: 0x0") + hidden
    yield "a length of 30 digits", with_head(b"content-length: " + b"9" * 30) + hidden
    yield "a length of words", with_head(b"content-length: many") + hidden
    yield "a space before the colon", with_head(b"content-length : 0") + hidden
    yield "a tab before the colon", with_head(b"transfer-encoding\t: chunked") + b"0\r\n\r\n" + hidden
    yield "an unknown transfer encoding", with_head(b"transfer-encoding: xchunked") + b"0\r\n\r\n" + hidden
    yield "chunked twice", with_head(chunked, chunked) + b"0\r\n\r\n" + hidden
    yield "chunked, then identity", with_head(b"transfer-encoding: chunked, identity") + b"0\r\n\r\n" + hidden
    yield "a folded header", with_head(b"x: a\r\n content-length: 0") + hidden
    yield "a folded length", with_head(b"content-length:\r\n 0") + hidden
    yield "bare line feeds", start.replace(b"\r\n", b"\n") + b"content-length: 0\n\n" + hidden
    yield "a bare line feed in a header", with_head(b"x: a\ncontent-length: 0") + hidden
    yield "a bare carriage return", with_head(b"x: a\rcontent-length: 0") + hidden
    yield "a NUL in a header", with_head(b"x: a\x00b", b"content-length: 0") + hidden
    yield "a NUL in a name", with_head(b"content-length\x00: 0") + hidden
    yield "no name", with_head(b": x", b"content-length: 0") + hidden
    yield "a chunk size that is signed", with_head(chunked) + b"-1\r\n\r\n" + hidden
    yield "a chunk size of 20 digits", with_head(chunked) + b"f" * 20 + b"\r\n" + hidden
    yield "a chunk size with 0x", with_head(chunked) + b"0x0\r\n\r\n" + hidden
    yield "a chunk size with an underscore", with_head(chunked) + b"0_0\r\n\r\n" + hidden
    yield "a chunk without line end", with_head(chunked) + b"1\r\nab\r\n0\r\n\r\n" + hidden
    yield "a chunk extension of 100 KiB", with_head(chunked) + b"0;" + b"x" * 100_000 + b"\r\n\r\n" + hidden
    yield "a trailer with a length", with_head(chunked) + b"0\r\ncontent-length: 5\r\n\r\n" + hidden


ODD_LINES: dict[str, bytes] = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nhost: a\r\n\r\n",
    "no version": b"GET / \r\nhost: a\r\n\r\n",
    "no target": b"GET  HTTP/1.1\r\nhost: a\r\n\r\n",
    "no method": b" / HTTP/1.1\r\nhost: a\r\n\r\n",
    "a made-up method": b"FROB / HTTP/1.1\r\nhost: a\r\n\r\n",
    "a lower-case method": b"get / HTTP/1.1\r\nhost: a\r\n\r\n",
    "a long method": b"G" * 5000 + b" / HTTP/1.1\r\nhost: a\r\n\r\n",
    "a NUL in the target": b"GET /a\x00b HTTP/1.1\r\nhost: a\r\n\r\n",
    "a line feed in the target": b"GET /a\nb HTTP/1.1\r\nhost: a\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n",
    "a fragment": b"GET /#x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "bytes in the target": b"GET /\xff\xfe HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "bytes in a name": b"GET / HTTP/1.1\r\nhost: a\r\n\xff\xfe: x\r\n\r\n",
    "a control character in a header": b"GET / HTTP/1.1\r\nhost: a\r\nx: \x1b[31m\x07\r\nconnection: close\r\n\r\n",
    "CONNECT": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: a\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer secret-of-trace\r\nconnection: close\r\n\r\n",
    "an absolute target": b"GET http://evil.example/health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "a target with a user": b"GET http://user:secret@127.0.0.1/x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "a file as target": b"GET file:///etc/passwd HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "two slashes": b"GET //evil.example/%2f.. HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "a cache's method": b"PURGE / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
}
"""Heads that are no request of ours."""


def odd_bodies(base: dict[str, Any], *, of: int = 1) -> Iterator[tuple[str, bytes]]:
    """Bodies in which one field has an odd value, of each field one in `of` values, so that all values are there."""
    for place, field in enumerate(base):
        for number, (name, value) in enumerate(ODD_VALUES.items()):
            if (number + place) % of == 0:
                yield f"{field} is {name}", body_with(base, field, value)


def body_with(base: dict[str, Any], name: str, value: bytes) -> bytes:
    """A body in which one field is exactly these bytes."""
    fields = {key: json.dumps(kept).encode() for key, kept in base.items()}
    fields[name] = value
    return b"{" + b",".join(json.dumps(key).encode() + b":" + kept for key, kept in fields.items()) + b"}"


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 1,
        "stream": False,
        "temperature": 0,
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
        "stop": "x",
        "n": 1,
        "seed": 1,
        "response_format": {"type": "text"},
        "metadata": {"a": "b"},
        "goblin": {},
    },
    "/v1/completions": {"model": "tiny", "prompt": "Hi", "max_tokens": 1, "stop": ["x"], "logprobs": 1, "echo": False},
    "/v1/embeddings": {"model": "tiny", "input": "Hi", "encoding_format": "float", "dimensions": 8},
    "/v1/messages": {
        "model": "tiny",
        "max_tokens": 1,
        "messages": [{"role": "user", "content": "Hi"}],
        "system": "x",
        "tools": [{"name": "add", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "disabled"},
        "metadata": {"user_id": "u"},
    },
    "/v1/responses": {"model": "tiny", "input": "Hi", "max_output_tokens": 1, "instructions": "x"},
    "/jobs": {
        "job_id": "k",
        "kind": "batch",
        "dataset_uri": "gs://doors-bucket/datasets/k.jsonl",
        "output_uri": "gs://doors-bucket/outputs/k.jsonl",
        "model": "tiny",
        "parameters": {"parallel": 1},
        "gpu_types": ["RTX_4090"],
        "deadline": "2027-01-01T00:00:00Z",
        "budget_usd": 1,
        "est_hours": 1,
        "priority": "low",
        "callback_topic": "topic",
        "image": "x",
    },
    "/heartbeat": {
        "step": 1,
        "total": 5,
        "loss": 0.5,
        "steps_per_s": 1,
        "gpu_share": 0.5,
        "gpu_errors": 0,
        "save_s": 1,
    },
    "/checkpoints": {
        "step": 1,
        "files": [{"name": "part.jsonl", "size": 1, "crc32c": "AAAAAA==", "sha256": "0" * 64}],
    },
    "/commit": {
        "previous_step": 0,
        "upload_id": "12345678",
        "files": [{"name": "part.jsonl", "size": 1, "crc32c": "AAAAAA==", "sha256": "0" * 64}],
        "loss": 1,
    },
    "/logs": {"number": 0, "size": 1, "crc32c": "AAAAAA=="},
    "/finish": {"step": 0},
    "/withdraw": {"reason": "x", "step": 0},
    "/fail": {"reason": "x", "step": 0},
    "/webhooks/vastai": {"event_id": "1", "notif_type": "client:x"},
    "/tokenize": {"content": "Hi", "add_special": True, "with_pieces": True},
    "/detokenize": {"tokens": [1]},
    "/models/load": {"path": "x.gguf", "sha256": "0" * 64, "alias": "x"},
    "/fn/": {
        "message": {"data": "e30=", "messageId": "1", "attributes": {"a": "b"}, "publishTime": "2026-11-25T12:00:00Z"},
        "subscription": "projects/p/subscriptions/s",
        "deliveryAttempt": 1,
    },
    "/secrets": {"replication": {"automatic": {}}, "labels": {"a": "b"}, "name": "x", "ttl": "60s"},
    ":enable": {"etag": "x"},
    ":addVersion": {"payload": {"data": "YQ=="}},
    "/storage/": {"name": "x", "metadata": {"a": "b"}, "sourceObjects": [{"name": "x"}], "contentType": "text/plain"},
    "/notificationConfigs": {
        "topic": "//pubsub.googleapis.com/projects/p/topics/t",
        "payload_format": "NONE",
        "event_types": [],
        "object_name_prefix": "x",
        "custom_attributes": {"a": "b"},
    },
    "/bundles/": {"gpu_name": {"eq": "RTX 4090"}, "num_gpus": {"eq": 1}, "order": [["dph_total", "asc"]], "limit": 5},
    "/asks/": {
        "image": "x",
        "disk": 10,
        "label": "x",
        "price": 0.5,
        "env": {"A": "b"},
        "onstart": "x",
        "runtype": "args",
    },
    "/bid_price/": {"price": 0.5},
    "/webhooks/": {"url": "http://127.0.0.1:1/", "name": "x", "types": ["x"]},
    "/instances/": {"state": "running", "label": "x"},
    "/pods": {
        "name": "x",
        "image": "x",
        "gpu": {"id": "x", "count": 1},
        "env": {"A": "b"},
        "ports": ["8080/http"],
        "disk": 10,
        "action": "stop",
    },
    "/market": {"label": "x", "machine_id": 1, "for_s": 1, "in_full": False, "down_gb": 1},
    "/market/close": {"within_s": 0},
    "/market/webhook": {"url": "http://127.0.0.1:1/", "secret": "s"},
    "/market/price": {"machine_id": 1},
}
"""A plausible body by a part of the door's path; the longest part counts."""


def body_for(path: str) -> dict[str, Any]:
    """A plausible body for a door; of a door that is new here, the names of all others."""
    fitting = [part for part in BODIES if part in path]
    if fitting:
        return BODIES[max(fitting, key=lambda part: (path.rfind(part), len(part)))]
    return {name: "x" for body in BODIES.values() for name in body}
