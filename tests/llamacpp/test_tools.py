"""Tool calls told apart from text, however the answer was cut."""

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from goblin_llamacpp.tools import CallArguments, CallStarted, Text, ToolCallReader

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par\\"}is", "days": [1, {"x": "]"}]}}\n</tool_call>'
PARTS = [
    "Hello ",
    "<tool",
    "<tool_call>",
    "</tool_call>",
    CALL,
    '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>',
    '<tool_call>{"name": "g", "arguments": "{\\"b\\": 2}"}</tool_call>',
    "<tool_call>not json</tool_call>",
    '<tool_call>{"name": "h", "arguments": {}}</tool_call>',
]


def read(pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    reader = ToolCallReader()
    text, calls = "", []
    for delta in [delta for piece in pieces for delta in reader.push(piece)] + reader.flush():
        match delta:
            case Text(words):
                text += words
            case CallStarted(index, name):
                assert index == len(calls)
                calls.append((name, ""))
            case CallArguments(index, words):
                assert index == len(calls) - 1
                calls[-1] = (calls[-1][0], calls[-1][1] + words)
    return text, calls


@given(st.lists(st.sampled_from(PARTS), max_size=5).map("".join), st.lists(st.integers(0, 500)))
def test_the_result_does_not_depend_on_the_cuts(answer, cuts):
    places = sorted({0, len(answer), *(c % (len(answer) + 1) for c in cuts)})
    pieces = [answer[a:b] for a, b in itertools.pairwise(places)]
    assert read(pieces) == read([answer])
    assert read(list(answer)) == read([answer])


@given(st.text(alphabet='<tol_ca>/ab{}"', max_size=40))
def test_without_a_call_the_text_is_the_answer(answer):
    if "<tool_call>" not in answer:
        assert read(list(answer)) == (answer, [])


def test_arguments_are_passed_on_while_they_are_written():
    reader = ToolCallReader()
    assert reader.push('<tool_call>{"name": "f", "argu') == []
    assert reader.push('ments": {"a":') == [CallStarted(0, "f"), CallArguments(0, '{"a":')]
    assert reader.push(' "x') == [CallArguments(0, ' "x')]
    assert reader.push('"}}</tool_call>!') == [CallArguments(0, '"}'), Text("!")]


def test_calls_in_any_shape_are_read():
    text, calls = read(["Well. ", *PARTS[4:7], "Bye"])
    assert text == "Well. Bye"
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [
        ("get_weather", {"city": 'Par"}is', "days": [1, {"x": "]"}]}),
        ("f", {"a": 1}),
        ("g", {"b": 2}),
    ]


def test_what_is_no_call_stays_text():
    assert read(["a<tool_call>oops</tool_call>b"]) == ("a<tool_call>oops</tool_call>b", [])
    assert read(["a<tool_call>oops"]) == ("a<tool_call>oops", [])
    assert read(["a<tool_c"]) == ("a<tool_c", [])
