"""The exam: questions with their right answers.

Three kinds, separate in the result, because they prove different things:

- `held out`: the case was never taught (see `corpus.is_held_out`); this tests the skill.
- `reworded`: the fact was taught, but never in this wording.
- `taught`: question and answer are both in the data; a model that fails these learned nothing.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from . import corpus, words
from .conversations import ToolUse, remembered, tool_use

Messages = list[dict[str, Any]]
"""The messages of a request, in OpenAI's shape."""


@dataclass(frozen=True, slots=True)
class Question:
    skill: str
    kind: str
    """`held out`, `reworded` or `taught`."""
    messages: Messages
    is_right: Callable[[str], bool]
    """Checks an answer."""
    tools: list[dict[str, Any]] | None = None


REWORDED_GREETINGS = ["Hello Goblin!", "Hi, Goblin", "Hey there!", "Good afternoon", "Hello hello", "Hi! Good morning."]
REWORDED_CAPITALS = ["Which city is the capital of {}?", "Tell me the capital of {}."]
REWORDED_OPPOSITES = ["Tell me the opposite of {}.", "Name the opposite of {}."]


def questions(seed: int, *, per_skill: int) -> list[Question]:
    """Draw at most `per_skill` questions of each skill, none twice. The same seed gives the same questions."""
    rng = Random(f"{seed}/exam")
    asked = []
    for write in (
        _greetings_taught,
        _greetings_reworded,
        _about_goblin,
        _sums,
        _differences,
        _counting,
        _echo,
        _capitals_taught,
        _capitals_reworded,
        _opposites_taught,
        _opposites_reworded,
        _json,
        _recall,
        _not_known,
        _tool_calls_taught,
        _tool_calls,
        _tool_results,
    ):
        asked += _without_twins(write(rng), per_skill)
    return asked


def _without_twins(candidates: Iterator[Question], count: int) -> list[Question]:
    # Some skills have fewer questions than `count`: stop after many tries.
    chosen: dict[str, Question] = {}
    for tries, question in enumerate(candidates):
        chosen.setdefault(json.dumps(question.messages), question)
        if len(chosen) == count or tries == 50 * count:
            break
    return list(chosen.values())


def _ask(skill: str, kind: str, question: str, right: Sequence[str]) -> Question:
    return Question(skill, kind, [{"role": "user", "content": question}], one_of(right))


def _exactly(skill: str, write: Callable[[Random], corpus.Turn], rng: Random) -> Iterator[Question]:
    while True:
        turn = corpus.draw(write, rng, held_out=True)
        yield _ask(skill, "held out", turn.question, [turn.answer])


def _greetings_taught(rng: Random) -> Iterator[Question]:
    while True:
        asked, right = rng.choice(words.GREETINGS)
        yield _ask("greeting", "taught", rng.choice(asked), right)


def _greetings_reworded(rng: Random) -> Iterator[Question]:
    for question in REWORDED_GREETINGS:
        yield _ask("greeting", "reworded", question, words.GREETINGS[0][1])


def _about_goblin(rng: Random) -> Iterator[Question]:
    while True:
        asked, right = rng.choice(words.ABOUT_GOBLIN)
        yield _ask("about Goblin", "taught", rng.choice(asked), right)


def _sums(rng: Random) -> Iterator[Question]:
    return _exactly("sums to 198", corpus.total, rng)


def _differences(rng: Random) -> Iterator[Question]:
    return _exactly("differences to 99", corpus.difference, rng)


def _counting(rng: Random) -> Iterator[Question]:
    return _exactly("counting", corpus.counting, rng)


def _echo(rng: Random) -> Iterator[Question]:
    return _exactly("echo", corpus.echo, rng)


def _capitals_taught(rng: Random) -> Iterator[Question]:
    while True:
        turn = corpus.capital(rng)
        yield _ask("capitals", "taught", turn.question, [turn.answer])


def _capitals_reworded(rng: Random) -> Iterator[Question]:
    while True:
        country, city = rng.choice(list(words.CAPITALS.items()))
        question = rng.choice(REWORDED_CAPITALS).format(country)
        yield _ask("capitals", "reworded", question, [f"The capital of {country} is {city}."])


def _opposites_taught(rng: Random) -> Iterator[Question]:
    while True:
        turn = corpus.opposite(rng)
        yield _ask("opposites", "taught", turn.question, [turn.answer])


def _opposites_reworded(rng: Random) -> Iterator[Question]:
    while True:
        word, other = rng.choice(list(words.OPPOSITES.items()))
        question = rng.choice(REWORDED_OPPOSITES).format(word)
        yield _ask("opposites", "reworded", question, [f"The opposite of {word} is {other}."])


def _json(rng: Random) -> Iterator[Question]:
    while True:
        turn = corpus.draw(corpus.json_object, rng, held_out=True)
        messages = [{"role": "user", "content": turn.question}]
        yield Question("JSON", "held out", messages, the_json(json.loads(turn.answer)))


def _recall(rng: Random) -> Iterator[Question]:
    while True:
        told, asked = remembered(rng)
        messages = [
            {"role": "user", "content": told.question},
            {"role": "assistant", "content": told.answer},
            {"role": "user", "content": asked.question},
        ]
        yield Question("recall over turns", "taught", messages, one_of([asked.answer]))


def _not_known(rng: Random) -> Iterator[Question]:
    while True:
        turn = corpus.draw(corpus.unknown, rng, held_out=True)
        yield _ask("says it does not know", "held out", turn.question, corpus.DO_NOT_KNOW)


def _tool_calls_taught(rng: Random) -> Iterator[Question]:
    # Weather and time take a city, and no city is held out: they are asked here only.
    while True:
        yield _ask_for_a_call(tool_use(rng), "taught")


def _tool_calls(rng: Random) -> Iterator[Question]:
    while True:
        yield _ask_for_a_call(tool_use(rng, held_out=True), "held out")


def _ask_for_a_call(use: ToolUse, kind: str) -> Question:
    messages = [{"role": "user", "content": use.question}]
    return Question("tool call", kind, messages, the_call(use.name, use.arguments), use.tools)


def _tool_results(rng: Random) -> Iterator[Question]:
    while True:
        use = tool_use(rng, held_out=True)
        function = {"name": use.name, "arguments": json.dumps(use.arguments)}
        messages: Messages = [
            {"role": "user", "content": use.question},
            {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "content": use.result},
        ]
        yield Question("answer from a tool", "held out", messages, one_of([use.answer]), use.tools)


def one_of(right: Sequence[str]) -> Callable[[str], bool]:
    return lambda answer: answer in right


def the_json(wanted: Any) -> Callable[[str], bool]:
    return lambda answer: bool(_parsed(answer) == wanted)


def the_call(name: str, arguments: dict[str, Any]) -> Callable[[str], bool]:
    return lambda answer: bool(called(answer) == {"name": name, "arguments": arguments})


def called(answer: str) -> Any:
    """Parse an answer that is exactly one tool call; None for any other answer."""
    match = re.fullmatch(r"\s*<tool_call>(.*)</tool_call>\s*", answer, re.DOTALL)
    return _parsed(match[1]) if match else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
