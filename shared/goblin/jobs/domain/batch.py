"""OpenAI's batch file format: one request per line of input, one result per line of output.

Source: OpenAI's batch guide and `openai.types.batch_request`, read 2026-11-23. The limits of a file are OpenAI's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from goblin.core import decoding
from goblin.core.model_names import allows

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
DATASET_BYTES_MAX = 200 * 1024 * 1024
ITEMS_MAX = 50_000
LINE_BYTES_MAX = 1024 * 1024
MODELS_MAX = 100
"""Different models that one dataset may name: the attempt's key lists them."""
MODEL_LENGTH_MAX = 256
"""Characters of a model's name; no longer name can be asked."""
RESULT_BYTES_MAX = 4 * 1024 * 1024
"""Limit of one output line; more than any context that we serve."""


class BatchItem(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the dataset."""

    custom_id: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    method: str
    url: str
    body: dict[str, Any]


class BatchAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The endpoint's answer to one item."""

    status_code: Annotated[int, msgspec.Meta(ge=100, le=599)]
    request_id: str
    body: dict[str, Any]


class BatchFault(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why an item has no answer."""

    code: str
    message: str


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the output; exactly one of `response` and `error` is set."""

    id: str
    custom_id: str
    response: BatchAnswer | None
    error: BatchFault | None

    @property
    def succeeded(self) -> bool:
        """Whether the item was answered, and not with an error."""
        return self.response is not None and 200 <= self.response.status_code < 300


class MalformedItem(ValueError):
    """A dataset or output line that is not valid; the message names the line."""


def parse_item(line: bytes, number: int) -> BatchItem:
    """Parse one line of a dataset.

    Args:
        line: The line without its newline.
        number: Line number from 1, for the message.

    Raises:
        MalformedItem: The line is not a request that can be run.
    """
    item = decoding.decode(line, BatchItem, lambda why: MalformedItem(f"line {number}: {why}"))
    if item.method != "POST":
        raise MalformedItem(f"line {number}: method {item.method!r} is not POST")
    if item.url not in URLS:
        raise MalformedItem(f"line {number}: url {item.url!r} is not one of {', '.join(URLS)}")
    if item.body.get("stream"):
        raise MalformedItem(f"line {number}: a batch cannot stream")
    return item


@dataclass
class LineSplitter:
    """Cuts a stream of bytes into lines, holding at most one unfinished line."""

    limit: int
    number: int = 0
    """Number of the last line returned, from 1; blank lines count."""
    offset: int = 0
    """Bytes up to the end of the last line returned, with its newline."""
    _rest: bytes = b""

    def feed(self, chunk: bytes) -> list[tuple[int, int, bytes]]:
        """Return the lines that end in the chunk, without blank ones: each with its number and the offset after it.

        Raises:
            MalformedItem: A line is over the limit.
        """
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        found = [self._take(line, 1) for line in whole]
        if len(self._rest) > self.limit:
            raise MalformedItem(f"line {self.number + 1}: over {self.limit} bytes")
        return [line for line in found if line[2].strip()]

    def close(self) -> list[tuple[int, int, bytes]]:
        """Return the last line, if the stream does not end with a newline."""
        if not self._rest.strip():
            return []
        line, self._rest = self._rest, b""
        return [self._take(line, 0)]

    def _take(self, line: bytes, newline: int) -> tuple[int, int, bytes]:
        self.number += 1
        self.offset += len(line) + newline
        if len(line) > self.limit:
            raise MalformedItem(f"line {self.number}: over {self.limit} bytes")
        return self.number, self.offset, line


@dataclass
class DatasetCheck:
    """Check of a whole dataset, before any instance is rented for it."""

    default_model: str | None = None
    """Model of the items that name none."""
    allowed: Collection[str] | None = None
    """Models that the job's owner may ask, as `core.model_names` reads them; None: all."""
    items: int = 0
    models: set[str] = field(default_factory=set)
    """Models that the items name. A name that no request may have is left out: the gateway refuses that item."""
    _lines: LineSplitter = field(default_factory=lambda: LineSplitter(limit=LINE_BYTES_MAX))
    _seen: dict[bytes, int] = field(default_factory=dict)

    def feed(self, chunk: bytes) -> None:
        """Check the lines that end in the chunk.

        Raises:
            MalformedItem: A line cannot be run, repeats a custom_id, or asks a model that the owner may not ask.
        """
        for number, _, line in self._lines.feed(chunk):
            self._check(number, line)

    def close(self) -> None:
        """Check the last line.

        Raises:
            MalformedItem: As for `feed`, or the dataset has no items.
        """
        for number, _, line in self._lines.close():
            self._check(number, line)
        if not self.items:
            raise MalformedItem("the dataset has no items")

    def _check(self, number: int, line: bytes) -> None:
        item = parse_item(line, number)
        self.items += 1
        if self.items > ITEMS_MAX:
            raise MalformedItem(f"line {number}: more than {ITEMS_MAX} items")
        # A digest of fixed size: 50,000 ids of any length take a few megabytes.
        key = hashlib.blake2b(item.custom_id.encode(), digest_size=16).digest()
        if (first := self._seen.setdefault(key, number)) != number:
            raise MalformedItem(f"line {number}: custom_id {item.custom_id!r} is on line {first} already")
        self._note_model(number, item.body.get("model", self.default_model))

    def _note_model(self, number: int, model: object) -> None:
        # A star would allow more than the item asks.
        if not isinstance(model, str) or not 0 < len(model) <= MODEL_LENGTH_MAX or model.endswith("*"):
            return
        if not allows(self.allowed, model):
            raise MalformedItem(f"line {number}: the API key that asked for the job may not use the model {model!r}")
        self.models.add(model)
        if len(self.models) > MODELS_MAX:
            raise MalformedItem(f"line {number}: more than {MODELS_MAX} different models")
