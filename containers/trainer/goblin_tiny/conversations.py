"""Whole conversations: several turns, facts recalled over turns, and tool calls."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from . import words
from .corpus import SKILLS, Message, Turn, draw, is_held_out

TOOL_PROMPT = (
    "You may call tools. To call one, answer with <tool_call> and a JSON object with name and arguments. Tools:"
)
"""As in `chat_template.jinja`, which writes it for every request with tools."""


def conversation(rng: Random) -> list[Message]:
    """Draw one conversation without held-out cases."""
    if rng.random() < 0.05:
        return tool_messages(rng)
    messages = []
    if rng.random() < 0.35:
        messages.append(Message("system", rng.choice(words.SYSTEM_PROMPTS)))
    for turn in _turns(rng):
        question = turn.question
        if rng.random() < 0.1 and _reads_the_same_in_lower_case(question):
            question = question.lower()
        messages += [Message("user", question), Message("assistant", turn.answer)]
    return messages


def _turns(rng: Random) -> list[Turn]:
    count = rng.choices([1, 2, 3, 4], [6, 3, 1, 1])[0]
    skills = rng.choices(list(SKILLS), list(SKILLS.values()), k=count)
    turns = [draw(skill, rng) for skill in skills]
    if rng.random() < 0.1:
        told, asked = remembered(rng)
        place = rng.randrange(len(turns))
        between = turns[place : place + rng.randint(0, 1)]
        turns = [*turns[:place], told, *between, asked]
    return turns


def _reads_the_same_in_lower_case(question: str) -> bool:
    # Text to be repeated or put into JSON contains names.
    return not any(word in question for word in ("Repeat", "repeat", "Say", "Echo", "exactly", "JSON"))


def remembered(rng: Random) -> tuple[Turn, Turn]:
    """Draw a statement and a later question about it."""
    name, color, city = rng.choice(words.NAMES), rng.choice(words.COLORS), rng.choice(words.CITIES)
    match rng.randrange(3):
        case 0:
            told = rng.choice([f"My name is {name}.", f"I am {name}.", f"Hi, my name is {name}."])
            asked = rng.choice(["What is my name?", "Do you know my name?", "Who am I?"])
            return Turn(told, f"Nice to meet you, {name}!"), Turn(asked, f"Your name is {name}.")
        case 1:
            return (
                Turn(f"My favorite color is {color}.", f"{color.capitalize()} is a nice color!"),
                Turn("What is my favorite color?", f"Your favorite color is {color}."),
            )
        case _:
            told = rng.choice([f"I live in {city}.", f"I am from {city}."])
            return Turn(told, f"{city} is a nice place!"), Turn("Where do I live?", f"You live in {city}.")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A question that needs a tool, the right call, its result and the answer."""

    tools: list[dict[str, Any]]
    """The tools of the request, in OpenAI's shape."""
    question: str
    name: str
    arguments: dict[str, Any]
    result: str
    answer: str

    @property
    def call(self) -> str:
        """The text with which the model calls the tool."""
        return "<tool_call>\n" + json.dumps({"name": self.name, "arguments": self.arguments}) + "\n</tool_call>"


def tool_messages(rng: Random) -> list[Message]:
    """Draw a conversation with a tool call, and in most cases its result."""
    use = tool_use(rng)
    listed = "".join("\n" + json.dumps(tool) for tool in use.tools)
    messages = [Message("system", TOOL_PROMPT + listed), Message("user", use.question), Message("assistant", use.call)]
    if rng.random() < 0.6:
        messages += [Message("tool", use.result), Message("assistant", use.answer)]
    return messages


def tool_use(rng: Random, *, held_out: bool = False) -> ToolUse:
    """Draw a tool use that is held out or taught, as asked. Its arguments decide which it is."""
    while True:
        names = rng.sample(list(TOOLS), rng.randint(1, len(TOOLS) - 1))
        name = rng.choice(names)
        question, arguments, result, answer = TOOLS[name](rng)
        # Twenty cities are too few to hold any out.
        key = "" if name in ("get_weather", "get_time") else f"{name} {json.dumps(arguments)}"
        if is_held_out(key) == held_out:
            return ToolUse([DEFINITIONS[each] for each in names], question, name, arguments, result, answer)


Use = tuple[str, dict[str, Any], str, str]
"""Question, arguments, the result of the tool, the answer after it."""


def _weather(rng: Random) -> Use:
    city = rng.choice(words.CITIES)
    weather = rng.choice(["sunny, 21 degrees", "rain, 9 degrees", "cloudy, 15 degrees"])
    question = rng.choice([f"What is the weather in {city}?", f"Weather in {city}?"])
    return question, {"city": city}, weather, f"The weather in {city}: {weather}."


def _time(rng: Random) -> Use:
    city = rng.choice(words.CITIES)
    time = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    question = rng.choice([f"What time is it in {city}?", f"Time in {city}?"])
    return question, {"city": city}, time, f"The time in {city} is {time}."


def _search(rng: Random) -> Use:
    query = " ".join(rng.choice(words.COMMON) for _ in range(rng.randint(1, 3)))
    results = f"{rng.randint(1, 99)} results"
    return f"Search for {query}.", {"query": query}, results, f"I found {results}."


def _add(rng: Random) -> Use:
    a, b = rng.randrange(1000), rng.randrange(1000)
    return f"Use the tool to add {a} and {b}.", {"a": a, "b": b}, str(a + b), f"The sum is {a + b}."


TOOLS: dict[str, Callable[[Random], Use]] = {
    "get_weather": _weather,
    "get_time": _time,
    "search": _search,
    "add": _add,
}


def _definition(name: str, description: str, **types: str) -> dict[str, Any]:
    properties = {argument: {"type": kind} for argument, kind in types.items()}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


DEFINITIONS = {
    "get_weather": _definition("get_weather", "Get the weather of a city", city="string"),
    "get_time": _definition("get_time", "Get the time in a city", city="string"),
    "search": _definition("search", "Search for a topic", query="string"),
    "add": _definition("add", "Add two numbers", a="integer", b="integer"),
}
