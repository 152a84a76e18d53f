"""Validates a request of OpenAI's Responses wire format and converts it to our chat request.

    instructions, input items ──▶ messages           text.format       ──▶ response_format
    function, custom tools    ──▶ function tools     reasoning.effort  ──▶ reasoning_effort
                                                     max_output_tokens ──▶ max_tokens

Fields and items that have no place in a chat are left out, and the answer names them: agents send them with every
request. Tools that only OpenAI runs keep only their type; `passed_fields` drops them. Refused is what would change the
conversation if it were left out: a response, an item, a prompt or a file that is kept at the server, because nothing is
kept here. Those refusals have OpenAI's words, which clients look for. Source: openai-python 3.57 and the Open Responses
specification, read 2026-12-01.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from goblin.core.errors import InvalidRequest, NotFound
from goblin.gateway.domain import requests
from goblin.gateway.domain.requests import ChatRequest
from goblin.web.responses_items import CUSTOM_INPUT, Conversation, Find, as_it_came, read_part

ENCRYPTED = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"


class Format(Struct, frozen=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "answer"
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextConfig(Struct, frozen=True, kw_only=True):
    format: Format | None = None
    verbosity: str | None = None


class ReasoningConfig(Struct, frozen=True, kw_only=True):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    """The older name of `summary`."""


class ResponsesRequest(Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/responses`."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input: str | list[dict[str, Any]]
    instructions: str | list[dict[str, Any]] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_tool_calls: int | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    metadata: (
        Annotated[dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)]
        | None
    ) = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: bool | None = None
    background: bool | None = None
    truncation: str | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    goblin: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request in both forms: the chat that answers it, and what the response repeats of it."""

    chat: ChatRequest
    echo: Mapping[str, Any]
    """Fields of the response object that repeat the request."""
    custom_tools: frozenset[str] = frozenset()
    """Names of the functions that stand for custom tools."""
    summarizes: bool = False
    """Whether reasoning is shown as its summary, as the caller asked, and not as its content."""

    @property
    def stream(self) -> bool:
        return bool(self.chat.stream)


def parse(data: bytes, find: Find) -> Asked:
    """Parse the body of `/v1/responses`.

    Args:
        data: The body.
        find: Finds what an `item_reference` stands for.

    Raises:
        InvalidRequest: The body is not valid. `param` names the field as OpenAI does: `input[0].role`.
        NotFound: It refers to something that is not kept here.
    """
    try:
        body = msgspec.json.decode(data)
        if not isinstance(body, dict):
            raise InvalidRequest("The body must be a JSON object.")
        asked = msgspec.convert(body, ResponsesRequest)
    except msgspec.ValidationError as error:
        raise requests.invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.") from error
    _refuse_state(asked)
    left_out = [name for name in body if name not in ResponsesRequest.__struct_fields__]
    left_out += ["background"] if asked.background else []
    left_out += ["truncation"] if asked.truncation not in (None, "disabled") else []
    left_out += [f"include.{name}" for name in asked.include or () if name not in (ENCRYPTED, LOGPROBS)]
    left_out += ["text.verbosity"] if asked.text is not None and asked.text.verbosity not in (None, "medium") else []
    tools = _tools(asked, left_out)
    messages = _messages(asked, left_out, find)
    wants_logprobs = bool(asked.top_logprobs) or LOGPROBS in (asked.include or ())
    chat: dict[str, Any] = {
        "model": asked.model,
        "messages": messages,
        "max_tokens": asked.max_output_tokens,
        "stream": asked.stream,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
        "logprobs": True if wants_logprobs else None,
        "top_logprobs": asked.top_logprobs if wants_logprobs else None,
        "reasoning_effort": asked.reasoning.effort if asked.reasoning else None,
        "response_format": _format(asked),
        "service_tier": asked.service_tier,
        "user": asked.user,
        "goblin": asked.goblin,
        **tools.fields,
    }
    sent = {name: value for name, value in chat.items() if value is not None}
    parsed = requests.parse(ChatRequest, msgspec.json.encode(sent))
    return Asked(
        chat=replace(parsed, left_out=tuple(left_out), responses=as_it_came(body, find)),
        echo=_echo(asked, tools),
        custom_tools=tools.custom,
        summarizes=asked.reasoning is not None
        and (asked.reasoning.summary or asked.reasoning.generate_summary) is not None,
    )


def _refuse_state(asked: ResponsesRequest) -> None:
    """Refuse what refers to something at the server."""
    if asked.previous_response_id is not None:
        raise InvalidRequest(
            f"Previous response with id '{asked.previous_response_id[:128]}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if asked.conversation is not None:
        named = asked.conversation if isinstance(asked.conversation, str) else asked.conversation.get("id")
        raise NotFound(f"Conversation with id '{str(named)[:128]}' not found.", param="conversation")
    if asked.prompt is not None:
        raise NotFound(f"Prompt with id '{str(asked.prompt.get('id'))[:128]}' not found.", param="prompt")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tools:
    fields: Mapping[str, Any]
    """`tools`, `tool_choice` and `parallel_tool_calls` of the chat, as far as there are tools."""
    echo: list[dict[str, Any]]
    choice: Any
    """`tool_choice` as the response repeats it."""
    custom: frozenset[str]


class FunctionTool(Struct, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomTool(Struct, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    format: dict[str, Any] | None = None


def _tools(asked: ResponsesRequest, left_out: list[str]) -> _Tools:
    functions: dict[str, dict[str, Any]] = {}
    echo: list[dict[str, Any]] = []
    custom: set[str] = set()
    others: list[dict[str, Any]] = []
    for number, tool in enumerate(asked.tools or ()):
        where = f"tools[{number}]"
        match tool.get("type"):
            case "function":
                # Some clients nest it, as the chat wire does.
                nested = tool.get("function")
                found = read_part(FunctionTool, nested if isinstance(nested, dict) else tool, where)
                functions[found.name] = _function(found.name, found.description, found.parameters, found.strict)
                echo.append({"type": "function", **msgspec.to_builtins(found)})
            case "custom":
                free = read_part(CustomTool, tool, where)
                custom.add(free.name)
                functions[free.name] = _function_for(free)
                echo.append({"type": "custom", **_given(msgspec.to_builtins(free))})
            case kind:
                others.append({"type": str(kind)})
    before = len(left_out)
    chosen, functions = _choice(asked, functions, left_out)
    repeated = "auto" if len(left_out) > before else asked.tool_choice or "auto"
    fields: dict[str, Any] = {}
    if functions or others:
        fields["tools"] = [{"type": "function", "function": function} for function in functions.values()] + others
    if functions:
        fields |= {"tool_choice": chosen, "parallel_tool_calls": asked.parallel_tool_calls}
    return _Tools(fields=fields, echo=echo, choice=repeated, custom=frozenset(custom))


def _function(
    name: str, description: str | None, parameters: dict[str, Any] | None, strict: bool | None
) -> dict[str, Any]:
    schema = parameters or {"type": "object", "properties": {}}
    return _given({"name": name, "description": description, "parameters": schema, "strict": strict})


def _function_for(tool: CustomTool) -> dict[str, Any]:
    """Build the function that stands for a custom tool: chat wires have no tool that takes plain text."""
    said = [tool.description] if tool.description else []
    if tool.format is not None and isinstance(grammar := tool.format.get("definition"), str):
        said.append(f"The input follows this grammar ({tool.format.get('syntax', 'lark')}):\n{grammar}")
    schema = {
        "type": "object",
        "properties": {CUSTOM_INPUT: {"type": "string", "description": "The whole input of the tool, as plain text."}},
        "required": [CUSTOM_INPUT],
        "additionalProperties": False,
    }
    return _function(tool.name, "\n\n".join(said) or None, schema, None)


def _choice(
    asked: ResponsesRequest, functions: dict[str, dict[str, Any]], left_out: list[str]
) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Convert `tool_choice`. Returns it with the functions that the model may call.

    A list of allowed tools becomes the list of tools: no other way binds every model.
    """
    match asked.tool_choice:
        case None | "auto" | "none" | "required":
            if asked.tool_choice == "required" and not functions:
                left_out.append("tool_choice")
            return asked.tool_choice, functions
        case {"type": "allowed_tools", "tools": list(allowed), **rest}:
            names = [tool.get("name") for tool in allowed if isinstance(tool, dict)]
            kept = {name: function for name, function in functions.items() if name in names}
            return ("required" if rest.get("mode") == "required" else "auto"), kept
        case {"type": "function" | "custom", "name": str(name)}:
            if name not in functions:
                raise InvalidRequest(f"Tool choice '{name[:64]}' not found in 'tools' parameter.", param="tool_choice")
            return {"type": "function", "function": {"name": name}}, functions
        case {"type": str(kind)} if kind not in ("function", "custom", "allowed_tools"):
            left_out.append("tool_choice")
            return None, functions
    raise InvalidRequest(
        "Invalid value: 'tool_choice'. Supported values are: 'none', 'auto', 'required', and objects with a 'type'.",
        param="tool_choice",
        code="invalid_value",
    )


def _messages(asked: ResponsesRequest, left_out: list[str], find: Find) -> list[dict[str, Any]]:
    talk = Conversation(find)
    if isinstance(asked.instructions, str):
        talk.system(asked.instructions)
    items = (
        [("instructions", number, item) for number, item in enumerate(asked.instructions or ())]
        if isinstance(asked.instructions, list)
        else []
    )
    if isinstance(asked.input, str):
        talk.read_all(items, left_out)
        talk.user(asked.input)
    else:
        items += [("input", number, item) for number, item in enumerate(asked.input)]
        talk.read_all(items, left_out)
    messages = talk.end()
    if not messages:
        raise InvalidRequest("Invalid 'input': it has no message.", param="input", code="invalid_value")
    return messages


def _format(asked: ResponsesRequest) -> dict[str, Any] | None:
    wanted = asked.text.format if asked.text else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "json_object"}
    fields = {"name": wanted.name, "schema": wanted.schema, "strict": wanted.strict, "description": wanted.description}
    return {"type": "json_schema", "json_schema": _given(fields)}


def _echo(asked: ResponsesRequest, tools: _Tools) -> dict[str, Any]:
    """Repeat the request as the response object does, with OpenAI's defaults."""
    wanted = (asked.text.format if asked.text else None) or Format()
    form: dict[str, Any] = {"type": wanted.type}
    if wanted.type == "json_schema":
        form |= {
            "name": wanted.name,
            "schema": wanted.schema or {},
            "strict": bool(wanted.strict),
            "description": wanted.description,
        }
    thinking = asked.reasoning or ReasoningConfig()
    return {
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": asked.max_tool_calls,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": True if asked.parallel_tool_calls is None else asked.parallel_tool_calls,
        "reasoning": {"effort": thinking.effort, "summary": thinking.summary or thinking.generate_summary},
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        "presence_penalty": asked.presence_penalty or 0.0,
        "frequency_penalty": asked.frequency_penalty or 0.0,
        "top_logprobs": asked.top_logprobs or 0,
        "text": {"format": form, "verbosity": (asked.text.verbosity if asked.text else None) or "medium"},
        "tool_choice": tools.choice,
        "tools": tools.echo,
        "truncation": "disabled",
        "service_tier": asked.service_tier if asked.service_tier not in (None, "auto") else "default",
        "user": asked.user,
        "safety_identifier": asked.safety_identifier,
        "prompt_cache_key": asked.prompt_cache_key,
        "previous_response_id": None,
        "background": False,
        "store": False,
    }


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
