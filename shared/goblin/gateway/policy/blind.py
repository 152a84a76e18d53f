"""Blind models: a conversation with pictures or files goes on at a model that cannot see them, which is told so.

An agent cannot take a picture out of its conversation again: were the request refused, every later one would be, too.
So where no endpoint of the model sees, each picture is replaced by a sentence that says what is missing and what to do
instead. Callers of OpenAI's chat wire get the error that OpenAI's API gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from goblin.core.endpoints import Capability
from goblin.gateway.domain.requests import ChatRequest, FilePart, ImagePart, InferenceRequest, TextPart

_IMAGE = (
    "[Image left out: the model `{model}` cannot see images. Go on without it: read what it shows as text with another "
    "tool, or say that you cannot see it.]"
)
_FILE = (
    "[File left out: the model `{model}` cannot read PDF files. Go on without it: turn the file into text with another "
    "tool, or say that you cannot read it.]"
)
_UNPAID = (
    "[File left out: no budget covers what reading it may cost. Go on without it: turn the file into text with another "
    "tool, or say that you cannot read it.]"
)
LEFT_OUT = ("files", "images")
"""What `left_out` calls them."""


def without_files(request: InferenceRequest) -> ChatRequest | None:
    """Return the request without files, for which no budget is left; None if it has none, or came in OpenAI's wire."""
    if not isinstance(request, ChatRequest) or (request.original is None and request.responses is None):
        return None
    return _without(request, {"files": _UNPAID}) if Capability.FILES in request.needs() else None


def without_pictures(request: InferenceRequest) -> Iterator[ChatRequest]:
    """Yield requests that ask less of an endpoint: first without files, then without images as well.

    Nothing is yielded for a request that has neither, or that came in OpenAI's chat wire.
    """
    if not isinstance(request, ChatRequest) or (request.original is None and request.responses is None):
        return
    needs = request.needs()
    if Capability.FILES in needs:
        request = _without(request, {"files": _FILE.format(model=request.model)})
        yield request
    if Capability.VISION in needs and any(True for _ in _images(request)):
        yield _without(request, {"images": _IMAGE.format(model=request.model)})


def _images(request: ChatRequest) -> Iterator[ImagePart]:
    for message in request.messages:
        if isinstance(message.content, tuple):
            yield from (part for part in message.content if isinstance(part, ImagePart))


_KINDS = {"files": ("file", "document"), "images": ("image_url", "image")}
"""The types of parts and of blocks that are files, or images."""


def _without(request: ChatRequest, words: Mapping[str, str]) -> ChatRequest:
    """Replace files or images by words."""
    notes = {kind: said for what, said in words.items() for kind in _KINDS[what]}
    messages = []
    for message in request.messages:
        content = message.content
        if isinstance(content, tuple):
            content = tuple(_seen(part, notes) for part in content)
        messages.append(replace(message, content=content))
    original = request.original
    if original is not None:
        turns = _read_aloud(original.body.get("messages"), notes)
        original = replace(original, body={**original.body, "messages": turns})
    return replace(
        request,
        messages=tuple(messages),
        body={**request.body, "messages": _read_aloud(request.body.get("messages"), notes)},
        original=original,
        responses=None,  # It has the pictures still.
        left_out=(*request.left_out, *words),
    )


def _seen(part: Any, notes: Mapping[str, str]) -> Any:
    if isinstance(part, ImagePart) and "image" in notes:
        return TextPart(text=notes["image"])
    if isinstance(part, FilePart) and "file" in notes:
        return TextPart(text=notes["file"])
    return part


def _read_aloud(value: Any, notes: Mapping[str, str]) -> Any:
    """Replace the parts and blocks that are left out, at any depth of content; arguments of calls stay as they are."""
    match value:
        case list() | tuple():
            return [_read_aloud(inner, notes) for inner in value]
        case {"type": str(kind)} if kind in notes and not _is_text(value):
            return {"type": "text", "text": notes[kind]}
        case {"content": content}:
            return {**value, "content": _read_aloud(content, notes)}
    return value


def _is_text(block: Mapping[str, Any]) -> bool:
    """Tell whether a block is a document of text, which every model can read."""
    source = block.get("source")
    if block.get("type") != "document":
        return False
    if not isinstance(source, Mapping) or source.get("type") not in ("text", "content", "base64"):
        return False
    return source.get("type") != "base64" or source.get("media_type") != "application/pdf"
