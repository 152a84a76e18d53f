"""Request bodies as types, and their validation with OpenAI-shaped errors. Pure.

Unknown fields are ignored, because OpenAI adds fields every month. Known fields that this server cannot honour are
refused.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from .errors import ApiError, invalid

STOPS_MAX, STOP_CHARS_MAX = 16, 512
CHOICES_MAX = 8
MESSAGES_MAX = 4096
TOP_LOGPROBS_MAX = 20
EMBED_INPUTS_MAX = 2048
LIGHT_CHARS = 4096

Body = TypeVar("Body")

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]


class StreamOptions(Struct):
    include_usage: bool | None = None


class Adapter(Struct):
    """One LoRA adapter of a request, in llama-server's form: `lora: [{"id": 0, "scale": 0.5}]`."""

    id: int | str
    scale: Annotated[float, Meta(ge=-8, le=8)] = 1.0


class Common(Struct, kw_only=True):
    """Fields that chat and plain completions share. In every field, null means absent."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=CHOICES_MAX)] | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    min_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    repeat_last_n: Annotated[int, Meta(ge=-1, le=2**20)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    ignore_eos: bool | None = None
    grammar: str | None = None
    lora: list[Adapter] | None = None
    user: str | None = None
    safety_identifier: str | None = None

    def stops(self) -> tuple[str, ...]:
        """Return the stop strings without duplicates.

        Raises:
            ApiError: 400, there are too many or one is empty or too long.
        """
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > STOPS_MAX:
            raise invalid(f"`stop` must have at most {STOPS_MAX} strings.", param="stop")
        if any(not 0 < len(stop) <= STOP_CHARS_MAX for stop in stops):
            raise invalid(f"Each string of `stop` must have 1 to {STOP_CHARS_MAX} characters.", param="stop")
        return tuple(dict.fromkeys(stops))

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ContentPart(Struct):
    type: str
    text: str | None = None


class FunctionCall(Struct):
    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(Struct):
    function: FunctionCall
    id: str = ""
    type: Literal["function"] = "function"


class Message(Struct, kw_only=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(Struct, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")]
    description: str | UnsetType = UNSET
    parameters: dict[str, Any] | UnsetType = UNSET
    strict: bool | None = None


class Tool(Struct, kw_only=True):
    type: Literal["function"]
    function: Function


class NamedFunction(Struct):
    name: str


class NamedTool(Struct):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Struct, kw_only=True):
    schema: dict[str, Any]
    name: str = ""
    strict: bool | None = None


class ResponseFormat(Struct, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None
    """Schema in llama-server's short form, instead of `json_schema.schema`."""


class ChatRequest(Common, kw_only=True):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None

    def __post_init__(self) -> None:
        if self.functions:
            raise invalid("`functions` is not supported. Use `tools`.", param="functions")
        if self.modalities and self.modalities != ["text"]:
            raise invalid("Only the modality `text` is supported.", param="modalities")
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("`top_logprobs` needs `logprobs` to be true.", param="top_logprobs")


class CompletionRequest(Common, kw_only=True):
    """Body of `POST /v1/completions`: one prompt, as text or as token ids."""

    prompt: str | list[str | int | list[int]]
    logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    json_schema: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.echo:
            raise invalid("`echo` is not supported.", param="echo")
        if self.suffix:
            raise invalid("`suffix` is not supported.", param="suffix")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise invalid("`best_of` is not supported. Use `n`.", param="best_of")


class EmbeddingRequest(Struct, kw_only=True):
    """Body of `POST /v1/embeddings`."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


class TokenizeRequest(Struct, kw_only=True):
    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(Struct, kw_only=True):
    tokens: list[int]


class LoadRequest(Struct, kw_only=True):
    """Body of `POST /models/load`: exactly one of `path` and `url`."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")]
    path: str | None = None
    url: str | None = None
    alias: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.url is None):
            raise invalid("Give either `path` or `url`, and not both.", param="path")


def is_light(request: ChatRequest | CompletionRequest) -> bool:
    """Tell whether preparing a request takes well under a millisecond: short text, no grammar, no tools."""
    if request.grammar:
        return False
    if isinstance(request, CompletionRequest):
        return request.json_schema is None and len(request.prompt) < LIGHT_CHARS
    if request.tools or request.response_format or len(request.messages) > 32:
        return False
    contents = [message.content or "" for message in request.messages]
    return all(isinstance(text, str) for text in contents) and sum(map(len, contents)) < LIGHT_CHARS


_AT = re.compile(r"^(?P<words>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<field>[^`]+)`")


def parse(body: bytes, type: type[Body]) -> Body:  # noqa: A002 - msgspec's own name.
    """Decode and check a request body.

    Raises:
        ApiError: 400; `param` is the path of the wrong field, such as `messages[0].role`.
    """
    try:
        return msgspec.json.decode(body, type=type)
    except ApiError:
        raise
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ApiError):
            raise error.__cause__ from None
        raise _explain(str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise invalid(f"The body is not valid JSON: {error}.", code="invalid_json") from None


def _explain(text: str) -> ApiError:
    found = _AT.match(text)
    words = found["words"] if found else text
    path = ((found["path"] if found else None) or "").removeprefix("$").removeprefix(".")
    if missing := _MISSING.search(words):
        path = f"{path}.{missing['field']}" if path else missing["field"]
        return invalid(f"Missing required parameter: `{path}`", param=path, code="missing_required_parameter")
    return invalid(f"Invalid `{path}`: {words}" if path else words, param=path or None, code="invalid_value")
