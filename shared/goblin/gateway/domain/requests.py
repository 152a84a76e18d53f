"""Requests of callers: OpenAI's request bodies, validated; unknown fields are kept for the provider."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from goblin.core.endpoints import Capability, Endpoint
from goblin.core.errors import InvalidRequest
from goblin.gateway.domain.catalog import Strategy
from goblin.gateway.domain.forms import Form, parse_form

Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1)]
CHOICES_MAX = 128
"""The most answers of one request: `n` for each of its prompts."""


class ImageURL(Struct, frozen=True):
    """A link, which is passed on and never fetched by the gateway, or a `data:` URL."""

    url: str
    detail: str | None = None


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class ImagePart(Struct, frozen=True, tag_field="type", tag="image_url"):
    image_url: ImageURL


class AudioPart(Struct, frozen=True, tag_field="type", tag="input_audio"):
    input_audio: dict[str, Any]


class FilePart(Struct, frozen=True, tag_field="type", tag="file"):
    file: dict[str, Any]


class RefusalPart(Struct, frozen=True, tag_field="type", tag="refusal"):
    refusal: str


class FunctionCall(Struct, frozen=True):
    name: str
    arguments: str
    """JSON as text, as the model wrote it; it may not parse."""


class ToolCall(Struct, frozen=True):
    id: str
    function: FunctionCall
    type: str = "function"


class Message(Struct, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | tuple[TextPart | ImagePart | AudioPart | FilePart | RefusalPart, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The text of the message, without images and audio."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(
            part.text if isinstance(part, TextPart) else part.refusal
            for part in self.content
            if isinstance(part, TextPart | RefusalPart)
        )


class StreamOptions(Struct, frozen=True, kw_only=True):
    include_usage: bool = False


class JSONSchema(Struct, frozen=True, kw_only=True):
    name: str = "answer"
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Struct, frozen=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JSONSchema | None = None


class Preferences(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The caller's routing preferences: `extra_body={"goblin": {…}}` in the SDK."""

    strategy: Strategy | None = None
    provider: str | None = None
    """The name of an endpoint or of a provider."""
    max_cost_usd: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    """The most that the request may cost; endpoints whose price is unknown are left out."""
    deadline_ms: Annotated[int, Meta(ge=1)] | None = None
    """Deadline for the first token of a stream, or for a whole answer that is not streamed."""
    allow_external: bool | None = None
    """False keeps the request on our own machines."""
    cache: bool | None = None
    """True: a cached answer will do. False: it will not. None: only if the request is deterministic."""


def caller_runs(tool: Mapping[str, Any]) -> bool:
    """Tell whether a tool is one that the caller runs: a function, or OpenAI's `custom` with free text for arguments.

    Every other type is a tool of some vendor, which that vendor runs, or which needs that vendor's own wire format.
    """
    kind = tool.get("type")
    return kind in ("function", "custom") or (kind is None and isinstance(tool.get("function"), dict))


class Original(Struct, frozen=True, kw_only=True):
    """A request as it came in a provider's own wire format. An endpoint of that provider gets it as it is."""

    provider: str
    """The provider whose wire it is: `anthropic`."""
    body: dict[str, Any]
    headers: dict[str, str] = {}
    """Headers that say how to read the body, such as `anthropic-version` and `anthropic-beta`."""


class ChatRequest(Struct, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[tuple[Message, ...], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    goblin: Preferences | None = None
    body: dict[str, Any] = msgspec.field(default_factory=dict)
    """The whole request as received: a provider with an OpenAI API gets it, with our changes."""
    original: Original | None = None
    """Set for a request that came in Anthropic's wire; the other fields are its translation."""
    responses: dict[str, Any] | None = None
    """The request as it came in OpenAI's Responses wire, for endpoints that speak it; the rest is its translation."""
    left_out: tuple[str, ...] = ()
    """Fields of another wire format that have no place here, by name."""
    untranslated: Any = None
    """The `InvalidRequest` for endpoints that do not speak the wire of `original`, where it has no translation."""

    @property
    def output_tokens_max(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def original_for(self, endpoint: Endpoint) -> Original | None:
        """Return the request as the caller sent it, if the endpoint speaks the caller's wire; None otherwise."""
        return self.original if self.original is not None and self.original.provider == endpoint.provider else None

    def needs(self) -> frozenset[Capability]:
        """Return the capabilities that an endpoint needs to serve the request."""
        needs = {Capability.CHAT}
        if self.tool_choice != "none" and any(caller_runs(tool) for tool in self.tools or ()):
            needs.add(Capability.TOOLS)
        if self.response_format is not None and self.response_format.type != "text":
            needs.add(Capability(self.response_format.type))
        if self.logprobs:
            needs.add(Capability.LOGPROBS)
        parts = [part for m in self.messages if isinstance(m.content, tuple) for part in m.content]
        if any(isinstance(part, ImagePart | FilePart) for part in parts):
            needs.add(Capability.VISION)
        if any(isinstance(part, FilePart) for part in parts):
            needs.add(Capability.FILES)
        if any(isinstance(part, AudioPart) for part in parts):
            needs.add(Capability.AUDIO)
        return frozenset(needs)

    def prompt_bytes(self) -> int:
        """Count what the model will read as text, in bytes of UTF-8."""
        total = sum(len(message.text.encode("utf-8", "surrogatepass")) for message in self.messages)
        for message in self.messages:
            for call in message.tool_calls or ():
                total += len(call.function.name) + len(call.function.arguments.encode("utf-8", "surrogatepass"))
        return total + (len(msgspec.json.encode(self.tools)) if self.tools else 0)


class CompletionRequest(Struct, frozen=True, kw_only=True):
    """`POST /v1/completions`: a text to continue."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    prompt: str | list[Any]
    """Text, texts, token ids, or lists of token ids."""
    suffix: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    goblin: Preferences | None = None
    body: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def output_tokens_max(self) -> int | None:
        return self.max_tokens

    def needs(self) -> frozenset[Capability]:
        needs = {Capability.COMPLETIONS}
        if self.logprobs is not None:
            needs.add(Capability.LOGPROBS)
        if (self.n or 1) > 1 and (self.body.get("best_of") or 1) != 1:
            needs.add(Capability.CHOICES)  # Otherwise `gateway.fan_out` sends several requests.
        return frozenset(needs)

    def prompt_bytes(self) -> int:
        return _text_bytes(self.prompt)


class WholeRequest(Struct, frozen=True, kw_only=True):
    """A request whose answer comes whole, and which generates no tokens."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    goblin: Preferences | None = None
    body: dict[str, Any] = msgspec.field(default_factory=dict)

    @property
    def output_tokens_max(self) -> int | None:
        return 0


class EmbeddingsRequest(WholeRequest, frozen=True, kw_only=True):
    """`POST /v1/embeddings`."""

    input: str | Annotated[list[Any], Meta(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None

    def needs(self) -> frozenset[Capability]:
        if isinstance(self.input, list) and any(not isinstance(one, str) for one in self.input):
            return frozenset({Capability.EMBEDDINGS, Capability.TOKEN_IDS})
        return frozenset({Capability.EMBEDDINGS})

    def prompt_bytes(self) -> int:
        return _text_bytes(self.input)


class RerankRequest(WholeRequest, frozen=True, kw_only=True):
    """`POST /v1/rerank`, in the shape that Jina, Cohere, vLLM and llama.cpp share."""

    path: ClassVar[str] = "rerank"
    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | dict[str, Any]], Meta(min_length=1, max_length=2048)]
    """Texts, or objects with a `text`."""
    top_n: Count | None = None
    return_documents: bool | None = None

    def needs(self) -> frozenset[Capability]:
        return frozenset({Capability.RERANK})

    def prompt_bytes(self) -> int:
        # Each document is read together with the query.
        return len(self.documents) * _text_bytes(self.query) + sum(map(_text_bytes, self.texts()))

    def texts(self) -> list[str]:
        return [one if isinstance(one, str) else str(one.get("text", "")) for one in self.documents]


class ImagesRequest(WholeRequest, frozen=True, kw_only=True):
    """`POST /v1/images/generations`."""

    path: ClassVar[str] = "images/generations"
    prompt: Annotated[str, Meta(min_length=1)]
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    stream: Literal[False] | None = None
    """Not streamed here."""

    def needs(self) -> frozenset[Capability]:
        return frozenset({Capability.IMAGES})

    def prompt_bytes(self) -> int:
        return _text_bytes(self.prompt)


class TranscriptionRequest(WholeRequest, frozen=True, kw_only=True):
    """`POST /v1/audio/transcriptions` or `/v1/audio/translations`: a form with a recording."""

    path: str
    form: Form

    def needs(self) -> frozenset[Capability]:
        return frozenset({Capability.TRANSCRIPTIONS})

    def prompt_bytes(self) -> int:
        return _text_bytes(self.form.text("prompt") or "")


def parse_transcription(data: bytes, path: str) -> TranscriptionRequest:
    """Parse the form of a recording. Raises `InvalidRequest`.

    Args:
        data: The body.
        path: `audio/transcriptions` or `audio/translations`.
    """
    form = parse_form(data)
    for name in ("file", "model"):
        if not any(part.name == name and part.content for part in form.parts):
            raise invalid(f"Object missing required field `{name}`")
    if (form.text("stream") or "false").lower() not in ("false", "0"):
        raise InvalidRequest(
            "Recordings are answered whole. Leave `stream` out.", param="stream", code="unsupported_value"
        )
    said: dict[str, Any] = {"model": form.text("model"), "path": path, "form": form}
    if (wish := form.text("goblin")) is not None:
        try:
            said["goblin"] = msgspec.json.decode(wish)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidRequest("Invalid 'goblin': it is not JSON.", param="goblin", code="invalid_value") from error
    try:
        return msgspec.convert(said, TranscriptionRequest)
    except msgspec.ValidationError as error:
        raise invalid(str(error)) from error


PassedRequest = RerankRequest | ImagesRequest | TranscriptionRequest
"""Requests that an endpoint with the same route gets as they came."""
InferenceRequest = ChatRequest | CompletionRequest | EmbeddingsRequest | PassedRequest
_R = TypeVar("_R", ChatRequest, CompletionRequest, EmbeddingsRequest, RerankRequest, ImagesRequest)


def _check_functions(tools: Sequence[Mapping[str, Any]]) -> None:
    """Check the shape of functions that the caller runs, whose schema is passed on as it is.

    An endpoint may answer a malformed one with a 500, and would be avoided for it, by others' requests too.
    """
    for number, tool in enumerate(tools):
        if tool.get("type") != "function":
            continue
        where, function = f"tools[{number}].function", tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest(f"`{where}` must be an object with a `name`.", param=where)
        if not isinstance(function.get("parameters", {}), dict | None):
            raise InvalidRequest(f"`{where}.parameters` must be an object.", param=f"{where}.parameters")


def parse(kind: type[_R], data: bytes) -> _R:
    """Parse and validate a request body.

    Raises:
        InvalidRequest: The body is not valid. `param` names the field as OpenAI does: `messages[0].role`.
    """
    try:
        body = msgspec.json.decode(data)
        if not isinstance(body, dict):
            raise InvalidRequest("The body must be a JSON object.")
        request = msgspec.convert(
            {**body, "body": body, "original": None, "responses": None, "left_out": (), "untranslated": None}, kind
        )
    except msgspec.ValidationError as error:
        raise invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not JSON: {error}.") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.") from error
    if isinstance(request, ChatRequest):
        _check_functions(request.tools or ())
    if isinstance(request, CompletionRequest):
        _check_texts(request.prompt, "prompt")
        _check_how_many(request)
    if isinstance(request, EmbeddingsRequest):
        _check_texts(request.input, "input")
    return request


def invalid(message: str) -> InvalidRequest:
    """Translate msgspec's message, `Expected … - at `$.messages[0].role``, into OpenAI's error: message, param, code.

    Source of the words and codes: answers of OpenAI's API as public reports quote them, read 2026-12-01.
    """
    if missing := re.search(r"missing required field `([^`]+)`(?: - at `\$\.?([^`]*)`)?", message):
        field, where = missing.groups()
        param = f"{where}.{field}" if where else field
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    what, _, where = message.partition(" - at `$.")
    param = where.rstrip("`").replace("[...]", "[]")
    said, code = _in_openais_words(what, param or "body")
    return InvalidRequest(f"{said}.", param=param or None, code=code)


_RANGE = re.compile(r"Expected `(int|float)` (>=|<=|>|<) (\S+)")
_LENGTH = re.compile(r"Expected `(str|array)` of length (>=|<=) (\d+)")
_TYPE = re.compile(r"Expected `([^`]+)`, got `(\w+)`")
_NUMBERS = {"int": "integer", "float": "decimal"}
_TYPES = {
    "str": "a string", "int": "an integer", "float": "a decimal", "bool": "a boolean", "array": "an array",
    "object": "an object", "null": "null",
}  # fmt: skip


def _in_openais_words(what: str, param: str) -> tuple[str, str]:
    """Return the sentence and the code for a value that msgspec refuses."""
    if found := _RANGE.match(what):
        kind, sign, limit = _NUMBERS[found[1]], found[2], found[3].removesuffix(".0")
        side = "below minimum" if sign.startswith(">") else "above maximum"
        code = f"{kind}_{'below_min' if sign.startswith('>') else 'above_max'}_value"
        return f"Invalid '{param}': {kind} {side} value. Expected a value {sign} {limit}", code
    if found := _LENGTH.match(what):
        kind, limit = {"str": "string", "array": "array"}[found[1]], found[3]
        if found[2] == ">=":
            return f"Invalid '{param}': empty {kind}. Expected at least {limit} in it", f"empty_{kind}"
        return f"Invalid '{param}': {kind} too long. Expected a length of at most {limit}", f"{kind}_above_max_length"
    if found := _TYPE.match(what):
        wanted = " or ".join(_TYPES.get(one, one) for one in found[1].split(" | ") if one != "null")
        got = _TYPES.get(found[2], found[2])
        return f"Invalid type for '{param}': expected {wanted}, but got {got} instead", "invalid_type"
    if what.startswith("Object contains unknown field"):
        return f"Invalid '{param}': {what}", "unknown_parameter"
    if what.startswith("Expected"):
        return f"Invalid type for '{param}': {what}", "invalid_type"
    return f"Invalid '{param}': {what}", "invalid_value"


def _check_texts(value: str | list[Any], param: str) -> None:
    """Check for a text, a list of texts, a list of token ids, or a list of such lists; not mixed and not empty."""
    if isinstance(value, str):
        return
    if value and (_all(value, str) or _all(value, int)):
        return
    if value and all(isinstance(inner, list) and inner and _all(inner, int) for inner in value):
        return
    raise InvalidRequest(
        f"Invalid '{param}': expected a string, a list of strings, a list of token ids, or a list of such lists.",
        param=param,
        code="invalid_type",
    )


def _check_how_many(request: CompletionRequest) -> None:
    prompts, n = len(prompts_of(request)), request.n or 1
    if prompts > CHOICES_MAX:
        raise InvalidRequest(
            f"Invalid 'prompt': array too long. Expected an array with maximum length {CHOICES_MAX}, but got an array "
            f"with length {prompts} instead.",
            param="prompt",
            code="array_above_max_length",
        )
    if prompts * n > CHOICES_MAX:
        raise InvalidRequest(
            f"Too many parallel completions requested. You submitted {prompts} prompts with n={n}, but you can "
            f"currently request up to at most a total of {CHOICES_MAX}.",
            param="n",
            code="invalid_value",
        )


def _all(values: list[Any], kind: type) -> bool:
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def prompts_of(request: InferenceRequest) -> list[Any]:
    """List what the model reads one by one: prompts, inputs, or the one chat. A list of token ids is one prompt."""
    value: Any = None
    if isinstance(request, CompletionRequest):
        value = request.prompt
    elif isinstance(request, EmbeddingsRequest):
        value = request.input
    # Not a mixture: `parse` has looked at every one.
    return value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]


def choices_of(request: InferenceRequest) -> int:
    """Count the answers that a request asks for: `n` to each of its prompts."""
    return 1 if isinstance(request, WholeRequest) else len(prompts_of(request)) * (request.n or 1)


def longest_prompt_bytes(request: InferenceRequest) -> int:
    """Count the bytes of the longest prompt: each has the model's context for itself."""
    if isinstance(request, RerankRequest):
        return _text_bytes(request.query) + max(map(_text_bytes, request.texts()))
    if not isinstance(request, CompletionRequest | EmbeddingsRequest):
        return request.prompt_bytes()
    return max(_text_bytes(prompt) for prompt in prompts_of(request))


def _text_bytes(value: str | list[Any]) -> int:
    """Count the UTF-8 bytes of a text; a token id counts as four."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    return sum(4 if isinstance(inner, int) else _text_bytes(inner) for inner in value)
