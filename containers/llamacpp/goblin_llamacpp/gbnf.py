"""Checks on grammars before llama.cpp parses them, and conversion of JSON schemas to GBNF. Pure.

llama.cpp trusts its grammars. A repetition `{5,2}` never ends, deep brackets overflow its stack, and its check for left
recursion takes exponential time on rules that refer to each other twice. It accepts tokens written as `<[5]>` in places
where it then fails to match them, which ends the process. This module refuses all of these.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

GRAMMAR_CHARS_MAX = 64 * 1024
RULES_MAX = 2000
DEPTH_MAX = 64
REPEAT_MAX = 2000
"""llama.cpp's own limit on one repetition."""
EXPANSION_MAX = 100_000
"""Limit on nested repetitions, as the number of elements after they are written out."""
VISITS_MAX = 1_000_000
SCHEMA_NODES_MAX = 4000
BOUNDS = ("minItems", "maxItems", "minLength", "maxLength")

JSON_OBJECT = r"""
root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,3})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
"""Any JSON object, for `response_format: {"type": "json_object"}`."""


class GrammarTooMuch(ValueError):
    """The grammar or schema is wrong or exceeds a limit. The message says which."""


_TOKEN = re.compile(
    r"""
    (?P<space>(?:[ \t\r\n]|\#[^\n]*)+)
  | (?P<string>"(?:[^"\\]|\\.)*")
  | (?P<set>\[(?:[^\]\\]|\\.)*\])
  | (?P<define>::=)
  | (?P<name>[a-zA-Z0-9-]+)
  | (?P<repeat>\{\s*[0-9]{1,6}\s*(?:,\s*(?:[0-9]{1,6})?\s*)?\})
  | (?P<mark>[()|*+?.])
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(slots=True)
class _Rule:
    """The parts of a rule or a bracket that the checks need."""

    alternatives: list[list["str | _Rule"]] = field(default_factory=lambda: [[]])
    """Elements: the name of a rule, a bracket, or "" for anything that consumes a character."""
    weight: int = 0
    """Number of elements after repetitions are written out."""
    nullable_marks: set[tuple[int, int]] = field(default_factory=set)
    """(alternative, position) of the elements that `*`, `?` or `{0,…}` make optional."""


def check_grammar(text: str) -> None:
    """Refuse a grammar that could hang or end the process.

    Raises:
        GrammarTooMuch: The grammar is wrong or exceeds a limit; the message says why.
    """
    if len(text) > GRAMMAR_CHARS_MAX:
        raise GrammarTooMuch(f"The grammar has more than {GRAMMAR_CHARS_MAX} characters.")
    if "\0" in text:
        raise GrammarTooMuch("The grammar contains a NUL character.")
    rules = _read_rules(text)
    if "root" not in rules:
        raise GrammarTooMuch("The grammar has no rule `root`. Name its start rule `root`.")
    _check_references(rules)
    _check_left_recursion(rules)


def schema_to_grammar(schema: dict[str, Any], to_gbnf: Any) -> str:
    """Convert a JSON schema to GBNF and check the result.

    Args:
        schema: The schema as a JSON object.
        to_gbnf: The converter of llama-cpp-python, from a schema's JSON text to GBNF.

    Raises:
        GrammarTooMuch: The schema exceeds a limit, or uses a feature that the converter does not know.
    """
    _check_schema(schema, depth=0, budget=[SCHEMA_NODES_MAX])
    try:
        grammar = to_gbnf(json.dumps(schema))
    except (AssertionError, KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        # The converter raises any of these for a schema that it does not support.
        raise GrammarTooMuch(f"The JSON schema is not supported: {error or type(error).__name__}.") from error
    grammar = flatten_repetitions(str(grammar))
    check_grammar(grammar)
    return grammar


_NESTED = re.compile(r"(?P<opens>(?:\((?P<item>[^()]+) )(?:\((?P=item) )*\((?P=item))(?P<closes>(?:\)\?)+)")


def flatten_repetitions(grammar: str) -> str:
    """Rewrite `(x (x (x)?)?)?`, the converter's form of "at most three", as `(x){0,3}`.

    The nested form is as deep as the number, and llama.cpp would walk it recursively.
    """

    def flat(match: re.Match[str]) -> str:
        count = match["opens"].count("(")
        closes = len(match["closes"]) // 2
        if closes < count:
            return match[0]
        return f"({match['item']}){{0,{count}}}" + ")?" * (closes - count)

    return _NESTED.sub(flat, grammar)


def _check_schema(node: Any, *, depth: int, budget: list[int]) -> None:
    budget[0] -= 1
    if budget[0] < 0:
        raise GrammarTooMuch(f"The JSON schema has more than {SCHEMA_NODES_MAX} nodes.")
    if depth > DEPTH_MAX:
        raise GrammarTooMuch(f"The JSON schema is nested more than {DEPTH_MAX} levels deep.")
    if isinstance(node, list):
        for item in node:
            _check_schema(item, depth=depth + 1, budget=budget)
    elif isinstance(node, dict):
        for key, value in node.items():
            # A property may also be named `minItems`. Then its value is a schema.
            if key in BOUNDS and not isinstance(value, dict | list):
                _check_bound(key, value)
            else:
                _check_schema(value, depth=depth + 1, budget=budget)
        for low, high in (("minItems", "maxItems"), ("minLength", "maxLength")):
            least, most = node.get(low), node.get(high)
            if isinstance(least, int) and isinstance(most, int) and least > most:
                raise GrammarTooMuch(f"In the JSON schema, `{low}` is greater than `{high}`.")


def _check_bound(key: str, value: Any) -> None:
    if value is not None and (type(value) is not int or not 0 <= value <= REPEAT_MAX):
        raise GrammarTooMuch(f"In the JSON schema, `{key}` must be a whole number from 0 to {REPEAT_MAX}.")


def _read_rules(text: str) -> dict[str, _Rule]:
    tokens = [(kind, value) for kind, value in _tokens(text) if kind != "space"]
    rules: dict[str, _Rule] = {}
    position = 0
    while position < len(tokens):
        if tokens[position][0] != "name" or tokens[position + 1 : position + 2] != [("define", "::=")]:
            raise GrammarTooMuch(f"The grammar must have `name ::=` where it has {tokens[position][1]!r}.")
        name = tokens[position][1]
        rules[name], position = _read_alternatives(tokens, position + 2, depth=0)
        if len(rules) > RULES_MAX:
            raise GrammarTooMuch(f"The grammar has more than {RULES_MAX} rules.")
    return rules


def _tokens(text: str) -> list[tuple[str, str]]:
    found, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise GrammarTooMuch(f"The grammar has a syntax error at {text[position : position + 20]!r}.")
        found.append((str(match.lastgroup), match[0]))
        position = match.end()
    return found


def _read_alternatives(tokens: list[tuple[str, str]], position: int, *, depth: int) -> tuple[_Rule, int]:
    if depth > DEPTH_MAX:
        raise GrammarTooMuch(f"The grammar's brackets are nested more than {DEPTH_MAX} levels deep.")
    rule, last = _Rule(), 0
    while position < len(tokens):
        kind, value = tokens[position]
        here = rule.alternatives[-1]
        if kind == "name" and tokens[position + 1 : position + 2] == [("define", "::=")]:
            break
        if value == ")" and kind == "mark":
            if depth == 0:
                raise GrammarTooMuch("The grammar has a `)` without a `(`.")
            return rule, position + 1
        position += 1
        if value == "|":
            rule.alternatives.append([])
            last = 0
        elif value == "(" and kind == "mark":
            inner, position = _read_alternatives(tokens, position, depth=depth + 1)
            here.append(inner)
            last = max(inner.weight, 1)
            rule.weight += last
        elif kind == "repeat" or (kind == "mark" and value in "*+?"):
            if not here:
                raise GrammarTooMuch(f"The grammar has nothing to repeat before `{value}`.")
            low, times = _repetition(value)
            if low == 0:
                rule.nullable_marks.add((len(rule.alternatives) - 1, len(here) - 1))
            rule.weight += last * (times - 1)
            last *= max(times, 1)
        elif value != '""':  # An empty string matches nothing, so it is skipped.
            here.append(value if kind == "name" else "")
            last = 1 if kind != "string" else max(len(value) - 2, 1)
            rule.weight += last
        if rule.weight > EXPANSION_MAX:
            raise GrammarTooMuch("The grammar's repetitions are too large.")
    if depth:
        raise GrammarTooMuch("The grammar has a `(` without a `)`.")
    return rule, position


def _repetition(value: str) -> tuple[int, int]:
    """Return the least number of repetitions, and how often the element is written out."""
    if value in "*?":
        return 0, 2
    if value == "+":
        return 1, 2
    low, _, high = value[1:-1].partition(",")
    least = int(low)
    most = int(high) if high.strip() else (least if "," not in value else least + 1)
    if most < least or most > REPEAT_MAX:
        raise GrammarTooMuch(f"The repetition `{value}` must have bounds from 0 to {REPEAT_MAX}, the smaller first.")
    return least, most


def _check_references(rules: dict[str, _Rule]) -> None:
    def visit(rule: _Rule) -> None:
        for element in (element for alternative in rule.alternatives for element in alternative):
            if isinstance(element, _Rule):
                visit(element)
            elif element and element not in rules:
                raise GrammarTooMuch(f"The grammar uses the rule `{element}`, but does not define it.")

    for rule in rules.values():
        visit(rule)


def _check_left_recursion(rules: dict[str, _Rule]) -> None:
    """Refuse rules that can start with themselves, and rules with too many ways to start.

    llama.cpp walks every way in which a rule can start, again for each mention. `visits` is the length of that walk.
    """
    nullable = _nullable(rules)
    visits: dict[int, int] = {}
    path: set[int] = set()

    def walk(rule: _Rule, depth: int) -> int:
        if id(rule) in visits:
            return visits[id(rule)]
        if id(rule) in path:
            raise GrammarTooMuch("The grammar is left-recursive: a rule can start with itself.")
        if depth > 400:
            raise GrammarTooMuch("The grammar's rules refer to each other too deeply.")
        path.add(id(rule))
        total = 1
        for row, alternative in enumerate(rule.alternatives):
            for column, element in enumerate(alternative):
                target = rules.get(element) if isinstance(element, str) else element
                if target is not None:
                    total += walk(target, depth + 1)
                    if total > VISITS_MAX:
                        raise GrammarTooMuch("The grammar is too ambiguous. Simplify it.")
                if not ((row, column) in rule.nullable_marks or (target is not None and id(target) in nullable)):
                    break
        path.discard(id(rule))
        visits[id(rule)] = total
        return total

    for rule in rules.values():
        walk(rule, 0)


def _nullable(rules: dict[str, _Rule]) -> set[int]:
    """Return the ids of the rules and brackets that can match the empty text; the smallest such set."""
    every: list[_Rule] = []

    def collect(rule: _Rule) -> None:
        every.append(rule)
        for alternative in rule.alternatives:
            for element in alternative:
                if isinstance(element, _Rule):
                    collect(element)

    for rule in rules.values():
        collect(rule)

    found: set[int] = set()

    def empties(rule: _Rule) -> bool:
        return any(
            all(
                (row, column) in rule.nullable_marks
                or (isinstance(element, _Rule) and id(element) in found)
                or (isinstance(element, str) and element in rules and id(rules[element]) in found)
                for column, element in enumerate(alternative)
            )
            for row, alternative in enumerate(rule.alternatives)
        )

    grew = True
    while grew:
        new = {id(rule) for rule in every if id(rule) not in found and empties(rule)}
        found |= new
        grew = bool(new)
    return found


def rename_rules(grammar: str, rename: Callable[[str], str]) -> str:
    """Return the grammar with every rule renamed."""
    return "".join(rename(value) if kind == "name" else value for kind, value in _tokens(grammar))
