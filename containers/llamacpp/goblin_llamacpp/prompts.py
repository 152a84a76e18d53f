"""Preparation of a checked request for the engine: tokens, sampling, grammar. Runs off the event loop."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llama_cpp.llama_grammar import json_schema_to_gbnf

from httpguard import whole_number

from . import gbnf
from .context import EngineSettings
from .errors import context_exceeded, invalid
from .generation import Generation
from .loaded import LoadedModel
from .sampling import Sampling, is_valid_grammar
from .schema import EMBED_INPUTS_MAX, ChatRequest, Common, CompletionRequest, EmbeddingRequest, Message, NamedTool, Tool
from .slots import Adapters
from .template import Part, TemplateRefused

SEED_RANGE = 2**32 - 1
"""Number of seeds. The last 32-bit value means "any seed" to llama.cpp, so it is excluded."""

SPECIALS_MAX = 10_000
ANSWER_SHARE, HEAD_SHARE = 8, 4
"""A prompt that is cut leaves an eighth of the context to the answer; a quarter of what it keeps is its beginning."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared request: everything that its `n` answers have in common."""

    prompt: list[int]
    sampling: Sampling
    max_new: int
    stop: tuple[str, ...]
    top_logprobs: int | None
    adapters: Adapters = ()
    reads_tools: bool = False
    """Whether `<tool_call>` in the answer is read as a tool call, not as text."""


def prepare_chat(request: ChatRequest, loaded: LoadedModel) -> Prepared:
    """Render and tokenise a chat. If the last message is the assistant's, it is continued, as llama-server does.

    Raises:
        ApiError: 400; the message and `param` name what is wrong.
    """
    tools = [] if request.tool_choice == "none" else request.tools or []
    if request.tools and not loaded.template.knows_tools:
        raise invalid("This model's chat template does not support `tools`.", param="tools", code="tools_not_supported")
    messages, begun = _begun(request.messages)
    grammar = _chat_grammar(request, tools)
    if begun and grammar is not None:
        raise invalid("A continued assistant message cannot have a grammar.", param="messages")
    try:
        parts = loaded.template.render(
            [_to_template(message) for message in messages],
            tools=[_tool_to_template(tool) for tool in tools],
            extra=request.chat_template_kwargs,
        )
        parts = loaded.template.continue_with(parts, begun)
    except TemplateRefused as error:
        raise invalid(str(error), param="messages") from None
    prompt, max_new = _fit(
        _tokenize_parts(parts, loaded), request.max_completion_tokens or request.max_tokens, loaded.engine.settings
    )
    return Prepared(
        prompt=prompt,
        sampling=_sampling(request, loaded, grammar),
        max_new=max_new,
        stop=request.stops(),
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        adapters=_adapters(request, loaded),
        reads_tools=bool(tools),
    )


def prepare_completion(request: CompletionRequest, loaded: LoadedModel) -> Prepared:
    """Tokenise a raw prompt. Control words in it act as control tokens.

    Raises:
        ApiError: 400; the message and `param` name what is wrong.
    """
    prompt, max_new = _fit(one_prompt(request.prompt, loaded), request.max_tokens, loaded.engine.settings)
    grammar = request.grammar
    if request.json_schema is not None:
        if grammar:
            raise invalid("Give either `grammar` or `json_schema`, not both.", param="grammar")
        grammar = _schema_grammar(request.json_schema, param="json_schema")
    return Prepared(
        prompt=prompt,
        sampling=_sampling(request, loaded, grammar),
        max_new=max_new,
        stop=request.stops(),
        top_logprobs=request.logprobs,
        adapters=_adapters(request, loaded),
    )


def to_generations(prepared: Prepared, request: Common, sink: Any, *, client: str) -> list[Generation]:
    """Create one generation per answer. The first has the requested seed, each further one the next seed."""
    user = request.safety_identifier or request.user
    return [
        Generation(
            prompt=prepared.prompt,
            sampling=_with_seed(prepared.sampling, prepared.sampling.seed + index),
            max_new=prepared.max_new,
            sink=sink,
            stop=prepared.stop,
            top_logprobs=prepared.top_logprobs,
            adapters=prepared.adapters,
            client=user or client,
            index=index,
        )
        for index in range(request.n or 1)
    ]


def one_prompt(prompt: str | list[str | int | list[int]], loaded: LoadedModel) -> list[int]:
    """Tokenise a prompt given as text, as token ids, or as a list with one of these.

    Raises:
        ApiError: 400; the message and `param` name what is wrong.
    """
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]  # type: ignore[assignment]
    if isinstance(prompt, str):
        return tokenize_text(prompt, loaded, param="prompt")
    if any(not isinstance(token, int) for token in prompt):
        raise invalid("Only one prompt per request is supported.", param="prompt")
    return check_tokens(prompt, loaded, param="prompt")  # type: ignore[arg-type]


def embedding_inputs(request: EmbeddingRequest, loaded: LoadedModel) -> list[list[int]]:
    """Tokenise the texts of an embedding request, each within the embedder's context.

    Raises:
        ApiError: 400; the message and `param` name what is wrong.
    """
    if request.dimensions is not None and request.dimensions != loaded.model.n_embd:
        raise invalid(f"This model's embeddings have {loaded.model.n_embd} dimensions.", param="dimensions")
    given = request.input
    if isinstance(given, str) or (given and all(isinstance(item, int) for item in given)):
        given = [given]  # type: ignore[list-item]
    if not 0 < len(given) <= EMBED_INPUTS_MAX:
        raise invalid(f"`input` must have 1 to {EMBED_INPUTS_MAX} texts.", param="input")
    ctx = loaded.embedder.ctx
    inputs = []
    for item in given:
        if isinstance(item, int):
            raise invalid("`input` mixes token ids with texts. Send one or the other.", param="input")
        if isinstance(item, str):
            tokens = tokenize_text(item, loaded, param="input")
        else:
            tokens = check_tokens(item, loaded, param="input")
        if len(tokens) > ctx:
            raise context_exceeded(len(tokens), ctx)
        inputs.append(tokens)
    return inputs


def tokenize_text(text: str, loaded: LoadedModel, *, param: str) -> list[int]:
    refuse_hopeless(text, loaded)
    tokens = loaded.model.tokenize(text, add_special=True, parse_special=True)
    if not tokens:
        raise invalid(f"`{param}` is empty.", param=param)
    return tokens


def check_tokens(tokens: list[int], loaded: LoadedModel, *, param: str) -> list[int]:
    """Refuse token ids that are out of range: llama.cpp would end the process.

    Raises:
        ApiError: 400, naming `param`.
    """
    if not tokens:
        raise invalid(f"`{param}` is empty.", param=param)
    if any(not 0 <= token < loaded.model.n_vocab for token in tokens):
        raise invalid(f"Token ids must be from 0 to {loaded.model.n_vocab - 1}.", param=param)
    return tokens


def _begun(messages: list[Message]) -> tuple[list[Message], str]:
    """Split off the text with which the assistant has begun to answer, if the last message has one."""
    *before, last = messages
    if last.role != "assistant" or last.tool_calls or not (text := _text_of(last)):
        return messages, ""
    if before and before[-1].role == "assistant":
        raise invalid("Only one assistant message can be continued.", param="messages")
    return before, text


def _to_template(message: Message) -> dict[str, Any]:
    """Convert a message to the shape that templates expect: text content, arguments as an object."""
    result: dict[str, Any] = {
        # Most templates are older than the role `developer`.
        "role": "system" if message.role == "developer" else message.role,
        "content": _text_of(message),
    }
    if message.name is not None:
        result["name"] = message.name
    if message.tool_call_id is not None:
        result["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        result["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return result


def _text_of(message: Message) -> str:
    if message.content is None:
        if message.role in ("assistant", "tool"):
            return ""
        raise invalid(f"A `{message.role}` message needs `content`.", param="messages")
    if isinstance(message.content, str):
        return message.content
    texts = []
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise invalid(f"Content of type `{part.type}` is not supported. Only `text` is.", param="messages")
        texts.append(part.text)
    return "".join(texts)


def _arguments(arguments: str | dict[str, Any]) -> Any:
    if isinstance(arguments, dict):
        return arguments
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _tool_to_template(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.function.name}
    if isinstance(tool.function.description, str):
        function["description"] = tool.function.description
    if isinstance(tool.function.parameters, dict):
        function["parameters"] = tool.function.parameters
    return {"type": "function", "function": function}


def _tokenize_parts(parts: list[Part], loaded: LoadedModel) -> list[int]:
    """Tokenise a rendered prompt: control words of the template act, those from clients are plain text."""
    model = loaded.model
    refuse_hopeless("".join(part.text for part in parts), loaded)
    # Most templates write the BOS token themselves. A second one would confuse the model.
    writes_bos = bool(parts and model.bos_text and parts[0].text.startswith(model.bos_text))
    tokens: list[int] = []
    for position, part in enumerate(parts):
        add_special = position == 0 and model.adds_bos and not writes_bos
        tokens += model.tokenize(part.text, add_special=add_special, parse_special=not part.literal)
    if not tokens:
        raise invalid("The rendered prompt is empty.", param="messages")
    return tokens


def refuse_hopeless(text: str, loaded: LoadedModel) -> None:
    """Refuse a text that cannot fit the context, without the cost of tokenising it.

    Raises:
        ApiError: 400, the text is too long or has too many control words.
    """
    check_specials(text, loaded)
    at_least = len(text.encode("utf-8", "replace")) // loaded.model.longest_piece_bytes
    if at_least > (most := loaded.engine.settings.prompt_max):
        raise context_exceeded(at_least, most)


def check_specials(text: str, loaded: LoadedModel) -> None:
    """Refuse a text with too many control words: llama.cpp's time grows with the square of their number.

    Raises:
        ApiError: 400, there are too many.
    """
    if loaded.model.count_specials(text) > SPECIALS_MAX:
        raise invalid(f"The text has more than {SPECIALS_MAX} control words.")


def _fit(prompt: list[int], wanted: int | None, sizes: EngineSettings) -> tuple[list[int], int]:
    """Fit a prompt into the context; return it, and how long the answer may be.

    Where the model has a window, a prompt that leaves no room loses its middle. Its beginning stays, as it says how to
    answer, and more of its end, which says what to answer.

    Raises:
        ApiError: 400, the prompt is too long.
    """
    answer = min(wanted or sizes.ctx, max(sizes.ctx // ANSWER_SHARE, 1))
    if sizes.window and sizes.ctx - len(prompt) < answer < sizes.ctx and len(prompt) <= sizes.window:
        kept = sizes.ctx - answer
        head = kept // HEAD_SHARE
        prompt = prompt[:head] + prompt[len(prompt) - (kept - head) :]
    room = sizes.ctx - len(prompt)
    if room < 1:
        raise context_exceeded(len(prompt), sizes.prompt_max)
    return prompt, min(wanted or room, room)


def _chat_grammar(request: ChatRequest, tools: list[Tool]) -> str | None:
    choice = request.tool_choice
    must_call = choice == "required" or isinstance(choice, NamedTool)
    given = request.response_format
    wants_json = given is not None and given.type != "text"
    if sum((must_call, wants_json, bool(request.grammar))) > 1:
        raise invalid(
            "Give only one of `grammar`, a JSON `response_format` and a forced `tool_choice`.",
            param="response_format",
        )
    if must_call:
        return _call_grammar(tools, choice)
    if given is None or not wants_json:
        return request.grammar or None
    schema = given.json_schema.schema if given.json_schema else given.schema
    if given.type == "json_schema" and schema is None:
        raise invalid("Missing required parameter: `response_format.json_schema`", param="response_format")
    return gbnf.JSON_OBJECT if schema is None else _schema_grammar(schema, param="response_format")


def _call_grammar(tools: list[Tool], choice: Any) -> str:
    """Return the grammar of one tool call, of any tool or of the named one."""
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    if not tools:
        raise invalid("`tool_choice` requires a tool that is not in `tools`.", param="tool_choice")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": _parameters(tool),
            },
            "required": ["name", "arguments"],
        }
        for tool in tools
    ]
    # References inside a tool's parameters are relative to them, so each tool gets its own set of rules.
    rules = []
    for number, call in enumerate(calls):
        definitions = call["properties"]["arguments"]  # type: ignore[index]
        for key in ("$defs", "definitions"):
            if isinstance(definitions, dict) and key in definitions:
                call[key] = definitions[key]
        rules.append(_prefixed(_schema_grammar(call, param="tools"), f"tool{number}-"))
    start = " | ".join(f"tool{number}-root" for number in range(len(calls)))
    return f'root ::= "<tool_call>\\n" ({start}) "\\n</tool_call>"\n' + "\n".join(rules)


def _parameters(tool: Tool) -> Mapping[str, Any]:
    parameters = tool.function.parameters
    if not isinstance(parameters, dict) or not parameters:
        return {"type": "object", "properties": {}}
    return parameters


def _prefixed(grammar: str, prefix: str) -> str:
    """Add a prefix to every rule name, so that several grammars can be joined."""
    return gbnf.rename_rules(grammar, lambda name: prefix + name)


def _schema_grammar(schema: Mapping[str, Any], *, param: str) -> str:
    try:
        return gbnf.schema_to_grammar(dict(schema), json_schema_to_gbnf)
    except gbnf.GrammarTooMuch as error:
        raise invalid(str(error), param=param, code="invalid_schema") from None


def _sampling(request: Common, loaded: LoadedModel, grammar: str | None) -> Sampling:
    if grammar is not None:
        _check_grammar(grammar, loaded)
    base = Sampling()
    seed = secrets.randbelow(SEED_RANGE) if request.seed in (None, -1) else int(request.seed or 0)
    penalised = bool(request.presence_penalty or request.frequency_penalty)
    last_n = request.repeat_last_n
    if last_n is None:
        # OpenAI's penalties count the whole answer, llama.cpp's own only the last tokens.
        last_n = -1 if penalised else base.repeat_last_n
    return Sampling(
        temperature=_or(request.temperature, base.temperature),
        top_k=_or(request.top_k, base.top_k),
        top_p=_or(request.top_p, base.top_p),
        min_p=_or(request.min_p, base.min_p),
        repeat_penalty=_or(request.repeat_penalty, base.repeat_penalty),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repeat_last_n=loaded.engine.settings.ctx if last_n < 0 else min(last_n, loaded.engine.settings.ctx),
        seed=seed % SEED_RANGE,
        logit_bias=_logit_bias(request, loaded),
        grammar=grammar,
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _check_grammar(grammar: str, loaded: LoadedModel) -> None:
    try:
        gbnf.check_grammar(grammar)
    except gbnf.GrammarTooMuch as error:
        raise invalid(str(error), param="grammar", code="invalid_grammar") from None
    if not is_valid_grammar(loaded.model, grammar):
        raise invalid("The grammar is not valid GBNF.", param="grammar", code="invalid_grammar")


def _adapters(request: Common, loaded: LoadedModel) -> Adapters:
    """Resolve the adapters of a request by name or number. An adapter with scale 0 is left out."""
    names = list(loaded.model.adapters)
    asked: dict[str, float] = {}
    for adapter in request.lora or []:
        known = adapter.id in names if isinstance(adapter.id, str) else 0 <= adapter.id < len(names)
        if not known:
            raise invalid(f"This server has no adapter `{adapter.id}`.", param="lora")
        name = adapter.id if isinstance(adapter.id, str) else names[adapter.id]
        asked[name] = adapter.scale
    return tuple(sorted((name, scale) for name, scale in asked.items() if scale))


def _logit_bias(request: Common, loaded: LoadedModel) -> tuple[tuple[int, float], ...]:
    biases: dict[int, float] = {}
    for key, value in (request.logit_bias or {}).items():
        token = whole_number(key, loaded.model.n_vocab - 1)
        if token is None:
            raise invalid(f"`{key}` is not a token id of this model.", param="logit_bias")
        # In OpenAI's API, -100 bans a token.
        biases[token] = float("-inf") if value <= -100 else value
    if request.ignore_eos:
        biases |= dict.fromkeys(loaded.model.eog_tokens, float("-inf"))
    if len(biases) >= loaded.model.n_vocab and all(value == float("-inf") for value in biases.values()):
        raise invalid("`logit_bias` bans every token. Leave at least one.", param="logit_bias")
    return tuple(sorted(biases.items()))


def _with_seed(sampling: Sampling, seed: int) -> Sampling:
    return replace(sampling, seed=seed % SEED_RANGE)
