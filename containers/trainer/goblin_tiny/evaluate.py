"""Runs the exam on a GGUF file in llama.cpp: greedy, one question at a time, with the file's own chat template."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import llama_cpp
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .exam import Question, questions


@dataclass(frozen=True, slots=True)
class Answer:
    question: Question
    text: str
    stopped: bool
    """Whether the model ended the answer itself, before the token limit."""

    @property
    def is_right(self) -> bool:
        return self.stopped and self.question.is_right(self.text)


@dataclass(slots=True)
class Score:
    asked: int = 0
    right: int = 0
    stopped: int = 0


class Candidate:
    """The model under examination."""

    def __init__(self, path: Path) -> None:
        """Load the model. Raises ValueError if llama.cpp cannot load the file or it has no chat template."""
        self._llama = llama_cpp.Llama(str(path), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
        self._template = _compile(self._llama.metadata)

    def prompt(self, question: Question) -> list[int]:
        text = self._template.render(messages=question.messages, tools=question.tools, add_generation_prompt=True)
        tokens: list[int] = self._llama.tokenize(text.encode(), add_bos=False, special=True)
        return tokens

    def answer(self, question: Question, *, max_tokens: int = 256) -> Answer:
        completion: Any = self._llama.create_completion(
            self.prompt(question), temperature=0.0, max_tokens=max_tokens, repeat_penalty=1.0
        )
        choice = completion["choices"][0]
        return Answer(question, choice["text"], choice["finish_reason"] == "stop")

    def close(self) -> None:
        self._llama.close()


def sit(
    path: Path, *, seed: int = 1, per_skill: int = 40, tell: Callable[[Answer], None] = lambda answer: None
) -> list[Answer]:
    """Ask a model every question. `tell` is called with each answer as it arrives."""
    candidate = Candidate(path)
    try:
        answers = []
        for question in questions(seed, per_skill=per_skill):
            answers.append(candidate.answer(question))
            tell(answers[-1])
        return answers
    finally:
        candidate.close()


def scores(answers: Iterable[Answer]) -> dict[tuple[str, str], Score]:
    """Count the answers by skill and kind, in the order asked."""
    table: dict[tuple[str, str], Score] = {}
    for answer in answers:
        score = table.setdefault((answer.question.skill, answer.question.kind), Score())
        score.asked += 1
        score.right += answer.is_right
        score.stopped += answer.stopped
    return table


def markdown(table: dict[tuple[str, str], Score]) -> str:
    lines = ["| skill | questions are | asked | right | stopped by itself |", "|---|---|---:|---:|---:|"]
    for (skill, kind), score in table.items():
        right, stopped = 100 * score.right / score.asked, 100 * score.stopped / score.asked
        lines.append(f"| {skill} | {kind} | {score.asked} | {right:.1f} % | {stopped:.1f} % |")
    asked, right = sum(s.asked for s in table.values()), sum(s.right for s in table.values())
    stopped = sum(s.stopped for s in table.values())
    lines.append(f"| all | | {asked} | {100 * right / asked:.1f} % | {100 * stopped / asked:.1f} % |")
    return "\n".join(lines)


def _compile(metadata: dict[str, str]) -> jinja2.Template:
    source = metadata.get("tokenizer.chat_template")
    if source is None:
        raise ValueError("The file has no chat template, which the exam needs. Export the model again.")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    # Jinja's own filter escapes for HTML.
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(source)
