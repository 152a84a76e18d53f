"""Converts turns of Anthropic's wire format, with their content blocks, to messages of OpenAI's.

The conversation that comes out fulfils what OpenAI's wire demands: every tool call is answered by a tool message right
after it, no message is empty, names and ids are no longer than allowed. What has no place there is said in words, so
that the model knows of it: a page that was fetched, a file that stayed at Anthropic. A block of a type that nobody here
knows gives its text, if it has any. Source: the content blocks of anthropic-python 2.14, read 2026-12-01.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from goblin.core.errors import InvalidRequest

NAME_MAX = 64
"""Longest name of a function at OpenAI; Anthropic's has 128 characters."""
ID_MAX = 40
"""Longest id of a tool call at OpenAI."""
_WORD = re.compile(r"[a-zA-Z0-9_-]+")
_NO_RESULT = "[There is no result: the call was interrupted.]"
_THOUGHTS = frozenset({"thinking", "redacted_thinking"})
_NOTHING = frozenset({*_THOUGHTS, "fallback", "mcp_tool_listing", "tool_addition", "tool_removal"})
"""Blocks that only the model, or the API, that wrote them can read."""
_BILLING = "x-anthropic-billing-header:"
_DEPTH_MAX = 16


class Turn(Struct, frozen=True):
    role: Literal["user", "assistant", "system"]
    content: str | tuple[dict[str, Any], ...] | None = None


class Conversation:
    """Collects turns as messages. Results of tools are put right behind their calls."""

    def __init__(self) -> None:
        self.left_out: list[str] = []
        """Types of blocks that are neither known nor have any text, by where they stand."""
        self._messages: list[dict[str, Any]] = []
        self._waiting: list[str] = []
        """Ids of the calls of the last assistant message that have no result yet, in their order."""
        self._behind: list[dict[str, Any]] = []
        """Messages that come after those results."""
        self._empty: tuple[str, str] | None = None
        """Where the first block is that nothing can be made of, and its type."""
        self._asked = False
        """Whether the conversation has more than instructions."""

    def system(self, text: str) -> None:
        """Add instructions, in their place."""
        if text.strip():
            self._put({"role": "system", "content": text})

    def add(self, number: int, turn: Turn) -> None:
        """Add a turn. Raises `InvalidRequest` if a block cannot be in a turn of its role."""
        blocks = _blocks(turn.content)
        where = f"messages[{number}].content"
        match turn.role:
            case "system":
                self.system(text_of(blocks, between="\n\n"))
            case "assistant":
                self._asked = True
                self._assistant(blocks, where)
            case "user":
                self._asked = True
                self._user(blocks, where)

    def whole(self) -> list[dict[str, Any]]:
        """Return all messages. Raises `InvalidRequest` if nothing is asked."""
        self._answer_the_rest()
        if not self._asked:
            raise InvalidRequest(
                "Invalid 'messages[0].role': a conversation needs a turn of the role 'user'.", param="messages[0].role"
            )
        if all(message["role"] == "system" for message in self._messages):
            where, kind = self._empty or ("messages[0].content", "")
            said = f"blocks of the type `{kind[:64]}` cannot be read here" if kind else "the conversation has no text"
            param = f"{where}.type" if kind else where
            raise InvalidRequest(f"Invalid '{param}': {said}.", param=param)
        return self._messages

    def _put(self, message: dict[str, Any]) -> None:
        (self._behind if self._waiting else self._messages).append(message)

    def _assistant(self, blocks: Sequence[Mapping[str, Any]], where: str) -> None:
        texts: list[str] = []
        calls: list[dict[str, Any]] = []
        for place, block in enumerate(blocks):
            kind = str(block.get("type"))
            if kind in ("image", "document", "tool_result"):
                raise InvalidRequest(f"A `{kind}` block is allowed only in user turns.", param=f"{where}[{place}].type")
            if kind == "tool_use":
                calls.append(_call(block, f"{where}[{place}]"))
            elif kind == "text":
                texts.append(_string(block.get("text")))
            else:
                texts.append(self._in_words(block, f"{where}[{place}]"))
        text = "".join(texts)
        if not text.strip() and not calls:
            return
        self._answer_the_rest()
        message: dict[str, Any] = {"role": "assistant", "content": text if text.strip() else None}
        self._messages.append(message | ({"tool_calls": calls} if calls else {}))
        self._waiting = [call["id"] for call in calls]

    def _user(self, blocks: Sequence[Mapping[str, Any]], where: str) -> None:
        parts: list[dict[str, Any]] = []
        for place, block in enumerate(blocks):
            here = f"{where}[{place}]"
            match block.get("type"):
                case "tool_use":
                    raise InvalidRequest("A `tool_use` block is allowed only in assistant turns.", param=f"{here}.type")
                case "tool_result":
                    parts += self._result(block, here)
                case _:
                    parts += self._parts(block, here)
        parts = [part for part in parts if part["type"] != "text" or part["text"].strip()]
        if not parts:
            return
        plain = len(parts) == 1 and parts[0]["type"] == "text"
        self._put({"role": "user", "content": parts[0]["text"] if plain else parts})

    def _result(self, block: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
        """Add a tool's result; return what cannot be in it: images and files, or the result of no call."""
        parts = [part for inner in _blocks(block.get("content")) for part in self._parts(inner, where)]
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        if block.get("is_error"):
            text = f"Error: {text}" if text.strip() else "Error."
        call_id = call_name(_string(block.get("tool_use_id")))
        others = [part for part in parts if part["type"] != "text"]
        if call_id not in self._waiting:
            return [{"type": "text", "text": f"[Result of an earlier tool call:] {text}"}, *others]
        self._waiting.remove(call_id)
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
        if not self._waiting:
            self._let_through()
        return others

    def _answer_the_rest(self) -> None:
        """Answer the calls that have no result: OpenAI refuses a conversation with an unanswered call."""
        self._messages += [
            {"role": "tool", "tool_call_id": call_id, "content": _NO_RESULT} for call_id in self._waiting
        ]
        self._waiting = []
        self._let_through()

    def _let_through(self) -> None:
        self._messages += self._behind
        self._behind = []

    def _parts(self, block: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
        """Convert a block of a user turn or of a tool's result."""
        match block.get("type"):
            case "text":
                return [_text(_string(block.get("text")))]
            case "image":
                return [_image(_mapping(block.get("source")))]
            case "document":
                return self._document(block, where)
        return [_text(self._in_words(block, where))]

    def _document(self, block: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
        """Convert a document: its text, or the PDF itself, with its title and context."""
        source, title = _mapping(block.get("source")), _string(block.get("title"))
        context = [_text(f"{said}\n") for said in (_string(block.get("context")),) if said.strip()]
        before = [_text(f"{title}\n"), *context] if title.strip() else context
        match source:
            case {"type": "text", "data": str(text)}:
                return [*before, _text(text)]
            case {"type": "content"}:
                inner = _blocks(source.get("content"))
                return [*before, *(part for one in inner for part in self._parts(one, where))]
            case {"type": "base64", "media_type": "application/pdf", "data": str(data)}:
                name = title if title.lower().endswith(".pdf") else f"{title or 'document'}.pdf"
                file = {"filename": name, "file_data": f"data:application/pdf;base64,{data}"}
                return [{"type": "file", "file": file}, *context]
            case {"type": "base64", "data": str(data)} if (found := _decoded(data)) is not None:
                return [*before, _text(found)]
        return [*before, _text(_omitted("document", source))]

    def _in_words(self, block: Mapping[str, Any], where: str) -> str:
        kind = str(block.get("type"))
        if kind in _NOTHING:
            return ""
        said = _words_of(block)
        if not said:
            self._empty = self._empty or (where, kind)
            self.left_out.append(f"content[{kind}]")
        return said


def text_of(content: object, *, between: str = "") -> str:
    """Join the text of content: a text, or blocks of which some have text.

    What Claude Code says to Anthropic's billing is left out: it changes with each request, and a server that keeps the
    beginning of a prompt would read all of it again.
    """
    texts = [_string(block.get("text")) for block in _blocks(content) if block.get("type") == "text"]
    return between.join(text for text in texts if text and not text.startswith(_BILLING))


def tool_name(name: str) -> str:
    """Return a tool's name as OpenAI takes it; one that is too long is cut, and told apart by a hash."""
    return _narrowed(name, NAME_MAX) or "unnamed"


def call_name(call_id: str) -> str:
    """Return a call's id as OpenAI takes it; the same for the call and its result."""
    return _narrowed(call_id, ID_MAX) or "call_0"


def _narrowed(word: str, longest: int) -> str:
    if len(word) <= longest and (not word or _WORD.fullmatch(word)):
        return word
    digest = hashlib.sha256(word.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{re.sub('[^a-zA-Z0-9_-]', '_', word)[: longest - 9]}_{digest}"


def _call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(block.get("id"), str) or not isinstance(block.get("name"), str):
        name = "name" if isinstance(block.get("id"), str) else "id"
        raise InvalidRequest(f"Missing required parameter: '{where}.{name}'.", param=f"{where}.{name}")
    given = block.get("input")
    arguments = msgspec.json.encode({} if given is None else given).decode()
    function = {"name": tool_name(block["name"]), "arguments": arguments}
    return {"id": call_name(block["id"]), "type": "function", "function": function}


def _image(source: Mapping[str, Any]) -> dict[str, Any]:
    match source:
        case {"type": "base64", "media_type": str(kind), "data": str(data)}:
            return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
        case {"type": "url", "url": str(url)}:
            return {"type": "image_url", "image_url": {"url": url}}
    return _text(_omitted("image", source))


def _omitted(what: str, source: Mapping[str, Any]) -> str:
    match source:
        case {"type": "url", "url": str(url)}:
            return f"[The {what} at {url} was not fetched: this model is not given links. Read it with a tool.]"
        case {"type": "file", "file_id": str(file_id)}:
            return f"[The {what} {file_id} is stored at Anthropic, where this model cannot read it. Send its content.]"
    return f"[The {what} cannot be read here. Send it in another form, for example as text.]"


def _decoded(data: str) -> str | None:
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def _words_of(value: object, depth: int = 0) -> str:
    """Say a block in words: what a server's tool was asked and found, and any text of blocks that are not known."""
    if depth > _DEPTH_MAX:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return "\n".join(said for said in (_words_of(inner, depth + 1) for inner in value) if said)
    if not isinstance(value, Mapping):
        return ""
    match value.get("type"):
        case "server_tool_use" | "mcp_tool_use":
            return f"[Used {_string(value.get('name'))}: {msgspec.json.encode(value.get('input')).decode()}]\n"
        case "container_upload":
            return "[A file was put into a container at Anthropic, where this model cannot read it.]"
        case "tool_reference":
            return f"[Tool: {_string(value.get('tool_name'))}]"
        case "search_result" | "web_search_result" | "web_fetch_result":
            head = " — ".join(_string(value.get(name)) for name in ("title", "source", "url") if value.get(name))
            return "\n".join(said for said in (head, _words_of(value.get("content"), depth + 1)) if said)
        case "document":
            source = _mapping(value.get("source"))
            said = source.get("data") if source.get("type") == "text" else source.get("content")
            return "\n".join(part for part in (_string(value.get("title")), _words_of(said, depth + 1)) if part)
    found = [_words_of(value[name], depth + 1) for name in _TELLING if name in value]
    return "\n".join(said for said in found if said)


_TELLING = ("text", "content", "stdout", "stderr", "tool_references", "error_code")
"""Fields with text, of results and of blocks that are not known."""


def _blocks(content: object) -> list[Mapping[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, Mapping):
        return [content]
    return [block for block in content if isinstance(block, Mapping)] if isinstance(content, Iterable) else []


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
