"""The model's own chat template, and a prompt in which nobody's words become control tokens.

A message may say `<|im_end|>`; read with the template's control words it would end the turn. So each control
word in what a client sent is replaced by a marker before rendering, and after it the prompt is cut at the
markers: those parts are later tokenised as plain text.
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
"""For files without a template, as llama-server does."""


class TemplateRefused(Exception):
    """The template can not render these messages; its own words say why."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the prompt; `literal` parts are a client's words that look like control words."""

    text: str
    literal: bool


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks what training counts; for rendering it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain set.

    def parse(self, parser: Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template; rendering is thread-safe."""

    def __init__(self, source: str | None, *, bos_text: str, eos_text: str, special_texts: Sequence[str] = ()) -> None:
        """Raises TemplateRefused when the template does not compile."""
        self.source = source or CHATML
        self._words = {"bos_token": bos_text, "eos_token": eos_text}
        # Unguessable, so that a message can not contain a marker.
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
        """Whether it shows tools to the model and the model answers with `<tool_call>`."""
        return "tools" in self.source and "<tool_call>" in self.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> list[Part]:
        """The prompt for the assistant's next answer.

        Raises:
            TemplateRefused: As above.
        """
        try:
            text = self._template.render(
                {**self._mark(extra or {}), **self._words},
                messages=self._mark(messages),
                tools=self._mark(tools) if tools else None,
                add_generation_prompt=True,
            )
        except Exception as error:
            # The template is code from a file: whatever it raises is its answer to these messages.
            raise TemplateRefused(f"The model's chat template refused the messages: {error}") from error
        return self._split(text)

    def continue_with(self, parts: list[Part], begun: str) -> list[Part]:
        """The same prompt with the first words of the answer already written."""
        more = self._split(self._mark(begun))
        if parts and more and not parts[-1].literal and not more[0].literal:
            # One text, or tokenizers that put a space before each text would put one into the middle.
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
        # `split` with one group alternates: text, marker's number, text, …
        for position, piece in enumerate(self._marker.split(text)):
            if position % 2:
                parts.append(Part(self._specials[int(piece)], literal=True))
            elif piece:
                parts.append(Part(piece, literal=False))
        return parts


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes for HTML, which models were not trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 - templates may pass it by name.
    return datetime.now().strftime(format)  # noqa: DTZ005 - the machine's day is what templates mean.
