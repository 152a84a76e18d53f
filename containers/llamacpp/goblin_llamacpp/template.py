"""The model's chat template, rendered so that control words in messages stay plain text.

A message may contain `<|im_end|>`. Tokenised together with the template's control words, it would end the turn. So each
control word in client input is replaced by a marker before rendering. After rendering, the prompt is split at the
markers, and those parts are tokenised as plain text.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Template for files without one, as in llama-server."""


class TemplateRefused(Exception):
    """The template does not compile, or cannot render these messages. The message has the template's own error."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the prompt. A `literal` part is client input that looks like a control word."""

    text: str
    literal: bool


class GenerationTag(jinja2.ext.Extension):
    """The tag `{% generation %}`, which marks text for training. In rendering it has no effect."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain set.

    def parse(self, parser: Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled chat template. Rendering is thread-safe."""

    def __init__(self, source: str | None, *, bos_text: str, eos_text: str, special_texts: Sequence[str] = ()) -> None:
        """Compile the template.

        Args:
            source: The template; None takes ChatML.
            bos_text: Text of the BOS token.
            eos_text: Text of the EOS token.
            special_texts: Control words of the vocabulary, longest first.

        Raises:
            TemplateRefused: The template does not compile.
        """
        self.source = source or CHATML
        self._words = {"bos_token": bos_text, "eos_token": eos_text}
        # Random, so that a message cannot contain a marker.
        self._nonce = f"\ue000{secrets.token_hex(8)}"
        self._specials = tuple(special_texts)
        self._special = re.compile("|".join(map(re.escape, special_texts))) if special_texts else None
        self._marker = re.compile(re.escape(self._nonce) + "([0-9]+)\ue001")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, GenerationTag]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(self.source)
        except jinja2.TemplateError as error:
            raise TemplateRefused(f"The model's chat template does not compile: {error}") from error

    @property
    def knows_tools(self) -> bool:
        """Whether the template shows tools to the model, and calls are written as `<tool_call>`."""
        return "tools" in self.source and "<tool_call>" in self.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> list[Part]:
        """Render the prompt for the assistant's next answer.

        Args:
            messages: Messages in the shape that templates expect.
            tools: Tools in the same form as in the request.
            extra: Further variables of the template.

        Raises:
            TemplateRefused: The template cannot render these messages.
        """
        try:
            text = self._template.render(
                {**self._mark(extra or {}), **self._words},
                messages=self._mark(messages),
                tools=self._mark(tools) if tools else None,
                add_generation_prompt=True,
            )
        except Exception as error:
            # The template is code from the model's file. Any exception means that it refuses these messages.
            raise TemplateRefused(f"The model's chat template refused the messages: {error}") from error
        return self._split(text)

    def continue_with(self, parts: list[Part], begun: str) -> list[Part]:
        """Return the prompt with the beginning of the answer appended."""
        more = self._split(self._mark(begun))
        if parts and more and not parts[-1].literal and not more[0].literal:
            # Join the two texts: some tokenizers put a space before each text, which would end up in the middle.
            parts, more[0] = parts[:-1], Part(parts[-1].text + more[0].text, literal=False)
        return parts + more

    def _mark(self, value: Any) -> Any:
        if isinstance(value, str):
            if self._special is None:
                return value
            return self._special.sub(lambda m: f"{self._nonce}{self._specials.index(m[0])}\ue001", value)
        if isinstance(value, Mapping):
            return {self._mark(key): self._mark(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._mark(item) for item in value]
        return value

    def _split(self, text: str) -> list[Part]:
        parts = []
        # `split` with one group alternates between text and the number of a marker.
        for position, piece in enumerate(self._marker.split(text)):
            if position % 2:
                parts.append(Part(self._specials[int(piece)], literal=True))
            elif piece:
                parts.append(Part(piece, literal=False))
        return parts


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes for HTML. Models were not trained on that.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 - templates may pass it by name.
    return datetime.now().strftime(format)  # noqa: DTZ005 - templates expect the machine's local date.
