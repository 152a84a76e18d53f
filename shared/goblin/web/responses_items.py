"""Items of OpenAI's Responses wire as messages of a chat.

What the model said in a row (thoughts, text, calls) is one message, and the results of its calls follow at once. An
item of an unknown kind is left out and named. Thoughts are sealed when they go out and opened when they come back,
because many clients send back nothing else of them. Source: openai-python 3.57 and what clients sent, read 2026-12-01.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from goblin.core.errors import InvalidRequest, NotFound
from goblin.gateway.domain import requests

S = TypeVar("S", bound=Struct)

SEAL = "goblin:"
"""Begins our `encrypted_content`, which is the text of the reasoning itself: what others sealed, we cannot read."""
CUSTOM_INPUT = "input"
"""The one parameter of the function that stands for a custom tool, whose input is plain text."""
Find = Callable[[str], dict[str, Any] | None]
"""Finds an item by its id; None if it is not there."""


class MessageItem(Struct, frozen=True, kw_only=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[dict[str, Any]] | None = None


class FunctionCallItem(Struct, frozen=True, kw_only=True):
    call_id: str
    name: str
    arguments: str | dict[str, Any] = ""


class CustomCallItem(Struct, frozen=True, kw_only=True):
    call_id: str
    name: str
    input: str = ""


class OutputItem(Struct, frozen=True, kw_only=True):
    """The result of a call."""

    call_id: str
    output: str | list[dict[str, Any]]


class ReasoningText(Struct, frozen=True, kw_only=True):
    text: str = ""


class ReasoningItem(Struct, frozen=True, kw_only=True):
    summary: list[ReasoningText] | None = None
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None

    @property
    def said(self) -> str:
        """The thoughts: ours as we sealed them, else as the item shows them."""
        sealed = unsealed(self.encrypted_content)
        shown = "\n\n".join(part.text for part in self.content or self.summary or ())
        return sealed if sealed is not None else shown


ITEMS: Mapping[str, type[Struct]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "custom_tool_call": CustomCallItem,
    "function_call_output": OutputItem,
    "custom_tool_call_output": OutputItem,
    "reasoning": ReasoningItem,
}


def sealed(thoughts: str) -> str:
    """Build the `encrypted_content` of a reasoning item: callers send it back and never look inside."""
    return SEAL + base64.b64encode(thoughts.encode("utf-8", "surrogatepass")).decode()


def unsealed(content: str | None) -> str | None:
    """Read what `sealed` built; None for what others sealed. A forged one says no more than its item could."""
    if content is None or not content.startswith(SEAL):
        return None
    try:
        return base64.b64decode(content.removeprefix(SEAL), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def as_it_came(body: dict[str, Any], find: Find) -> dict[str, Any]:
    """Return the body for endpoints of this wire: named items are filled in, and what we sealed is opened."""
    items = body["input"]
    if not isinstance(items, list):
        return body
    found = [find(str(item.get("id"))) if _kind(item) == "item_reference" else item for item in items]
    return {**body, "input": [_opened(item) for item in found if item is not None]}


def _opened(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item as others can read it."""
    if _kind(item) != "reasoning":
        return item
    if (thoughts := unsealed(item.get("encrypted_content"))) is None:
        return item
    shown = {name: value for name, value in item.items() if name != "encrypted_content"}
    return {**shown, "content": [{"type": "reasoning_text", "text": thoughts}]}


def _kind(item: dict[str, Any]) -> str:
    """Return the type of an item, which is often left out."""
    return str(item.get("type") or ("message" if "role" in item else "item_reference"))


class Conversation:
    """Builds messages from items.

    What the model said in a row (reasoning, text, calls) is one message, and the results of its calls follow at once,
    wherever their items stand: chat wires know no other order.
    """

    def __init__(self, find: Find) -> None:
        self._find = find
        self._messages: list[dict[str, Any]] = []
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._outputs: dict[str, list[tuple[str, list[dict[str, Any]]]]] = {}

    def read_all(self, items: Iterable[tuple[str, int, dict[str, Any]]], left_out: list[str]) -> None:
        """Read all items: the results of calls first, because their calls need them."""
        found: list[tuple[str, Struct]] = []
        for field, number, item in items:
            where = f"{field}[{number}]"
            kind = _kind(item)
            if kind == "item_reference":
                if (there := self._find(str(item.get("id")))) is None:
                    _refuse_reference(item, left_out)
                    continue
                item, kind = there, there["type"]
            if kind not in ITEMS:
                left_out.append(f"{field}.{kind}")
            else:
                found.append((where, read_part(ITEMS[kind], item, where)))
        for where, read in found:
            if isinstance(read, OutputItem):
                self._outputs.setdefault(read.call_id, []).append(_result(read, where))
        for where, read in found:
            self._add(read, where)

    def _add(self, item: Struct, where: str) -> None:
        match item:
            case MessageItem(role="assistant"):
                self._texts.append("".join(_texts(item.content, where)))
            case MessageItem(role="user"):
                self.user(_user_content(item.content, where))
            case MessageItem():
                self.system("\n\n".join(_texts(item.content, where)))
            case ReasoningItem():
                self._thoughts.append(item.said)
            case FunctionCallItem(arguments=str(arguments)):
                self._call(item.call_id, item.name, arguments)
            case FunctionCallItem():
                self._call(item.call_id, item.name, msgspec.json.encode(item.arguments).decode())
            case CustomCallItem():
                self._call(item.call_id, item.name, msgspec.json.encode({CUSTOM_INPUT: item.input}).decode())
            case OutputItem():
                self._close()

    def system(self, text: str) -> None:
        """Add a system message. Those at the beginning are one: many chat templates allow only one, and only there."""
        self._close()
        if len(self._messages) == 1 and self._messages[0]["role"] == "system":
            self._messages[0]["content"] += f"\n\n{text}"
        else:
            self._messages.append({"role": "system", "content": text})

    def user(self, content: str | list[dict[str, Any]]) -> None:
        self._close()
        self._messages.append({"role": "user", "content": content})

    def end(self) -> list[dict[str, Any]]:
        """Return the messages."""
        self._close()
        if left := [call_id for call_id, outputs in self._outputs.items() if outputs]:
            raise InvalidRequest(
                f"No tool call found for function call output with call_id {left[0][:128]}.", param="input"
            )
        return self._messages

    def _call(self, call_id: str, name: str, arguments: str) -> None:
        function = {"name": name, "arguments": arguments}
        self._calls.append({"id": call_id, "type": "function", "function": function})

    def _close(self) -> None:
        """Write what the model said in a row, and the results of its calls. Thoughts alone are left out."""
        texts, thoughts, calls = self._texts, self._thoughts, self._calls
        self._texts, self._thoughts, self._calls = [], [], []
        if not texts and not calls:
            return
        message: dict[str, Any] = {"role": "assistant", "content": "\n\n".join(filter(None, texts)) or None}
        if not calls:
            message["content"] = message["content"] or ""
        if said := "\n\n".join(filter(None, thoughts)):
            message["reasoning_content"] = said
        self._messages.append(message | ({"tool_calls": calls} if calls else {}))
        shown: list[dict[str, Any]] = []
        for call in calls:
            outputs = self._outputs.get(call["id"])
            if not outputs:
                raise InvalidRequest(f"No tool output found for function call {call['id'][:128]}.", param="input")
            text, parts = outputs.pop(0)
            self._messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})
            shown += parts
        if shown:
            self._messages.append({"role": "user", "content": shown})


def _refuse_reference(item: dict[str, Any], left_out: list[str]) -> None:
    """Refuse an item that is not there. Earlier thoughts may be missing; earlier words may not."""
    named = str(item.get("id"))
    if named.startswith("rs_"):
        left_out.append("input.item_reference")
        return
    raise NotFound(
        f"Item with id '{named[:128]}' not found. Items are not persisted when `store` is set to false. Try again with"
        " `store` set to false in the client, so that it sends the item itself, or remove this item from your input.",
        param="input",
    )


def _result(item: OutputItem, where: str) -> tuple[str, list[dict[str, Any]]]:
    """Convert a result to a text, and the images and files that a tool message cannot hold."""
    if isinstance(item.output, str):
        return item.output, []
    parts = [_part(part, f"{where}.output[{number}]") for number, part in enumerate(item.output)]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    shown = [part for part in parts if part["type"] != "text"]
    return "\n\n".join(texts) or ("The result is in the next message." if shown else ""), shown


def _user_content(content: str | list[dict[str, Any]] | None, where: str) -> str | list[dict[str, Any]]:
    """Convert the parts of a user's message; texts alone are one text, which every server takes."""
    if not isinstance(content, list):
        return content or ""
    parts = [_part(part, f"{where}.content[{number}]") for number, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "\n\n".join(part["text"] for part in parts)
    return parts


def _texts(content: str | list[dict[str, Any]] | None, where: str) -> list[str]:
    if not isinstance(content, list):
        return [content or ""]
    parts = [_part(part, f"{where}.content[{number}]") for number, part in enumerate(content)]
    if any(part["type"] != "text" for part in parts):
        raise InvalidRequest(f"Invalid '{where}': only user messages have images and files.", param=where)
    return [part["text"] for part in parts]


def _part(part: dict[str, Any], where: str) -> dict[str, Any]:
    match part:
        case {"type": "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str(url)}:
            detail = part.get("detail")
            return {"type": "image_url", "image_url": {"url": url} | ({"detail": detail} if detail else {})}
        case {"type": "input_file", "file_data": str(data)}:
            name = part.get("filename")
            return {"type": "file", "file": {"filename": name if isinstance(name, str) else "file", "file_data": data}}
        case {"type": "input_audio", "input_audio": dict(audio)}:
            return {"type": "input_audio", "input_audio": audio}
        case {"type": "input_image" | "input_file", "file_id": str(file_id)}:
            raise NotFound(f"File with id '{file_id[:128]}' not found. Send the file itself.", param=where)
        case {"type": "input_file", "file_url": str()}:
            raise InvalidRequest("Files are not fetched. Send the file itself as `file_data`.", param=where)
    raise InvalidRequest(
        f"Invalid value: '{str(part.get('type'))[:64]}' at {where}. Supported values are: 'input_text', 'input_image',"
        " 'input_file', 'input_audio', 'output_text', and 'refusal', each with its content.",
        param=where,
        code="invalid_value",
    )


def read_part(kind: type[S], value: dict[str, Any], where: str) -> S:
    """Validate a part of the body; an error names its place in the whole."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        raise requests.invalid(f"{what} - at `$.{where}{path or '`'}") from error
