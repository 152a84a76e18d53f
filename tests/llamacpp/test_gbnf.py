"""Grammars that llama.cpp must never see are refused, ordinary ones are not."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp.llama_grammar import json_schema_to_gbnf

from goblin_llamacpp.gbnf import (
    JSON_OBJECT,
    GrammarTooMuch,
    check_grammar,
    flatten_repetitions,
    rename_rules,
    schema_to_grammar,
)


@pytest.mark.parametrize(
    "grammar",
    [
        JSON_OBJECT,
        'root ::= "a" | "b" # comment\n',
        'root ::= list\nlist ::= item ("," item)*\nitem ::= [a-z]+ "(" list? ")"',
        'root ::= "\\"" [^"\\\\]{0,100} "\\""',
        'root ::= "a"{3} "b"{2,} .',
    ],
)
def test_ordinary_grammars_pass(grammar):
    check_grammar(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        "",
        'a ::= "b"',
        "root ::= missing",
        'root ::= root "a" | "b"',
        'root ::= a\na ::= b "x"\nb ::= "y"? a | "z"',
        'root ::= ("a"*)* ' + "(" * 100 + '"a"' + ")" * 100,
        'root ::= "a"{5,2}',
        'root ::= "a"{1,99999}',
        'root ::= (("a"{2000}){2000})',
        'root ::= "a" )',
        'root ::= ( "a"',
        'root ::= "a\0"',
        "root ::= *",
        'root ::= "open',
        "\n".join(f"r{i} ::= r{i + 1} | r{i + 1}" for i in range(60)) + '\nr60 ::= "a"\nroot ::= r0',
        "root ::= " + '"a" ' * 40_000,
    ],
)
def test_what_could_hang_or_crash_is_refused_quickly(grammar):
    started = time.monotonic()
    with pytest.raises(GrammarTooMuch):
        check_grammar(grammar)
    assert time.monotonic() - started < 2


@given(st.text(alphabet='ab"[]{}()|*+?:=\n ,0123\\', max_size=60))
def test_any_text_passes_or_is_refused(text):
    with contextlib.suppress(GrammarTooMuch):  # Anything else, or no end, would be a failure.
        check_grammar(f"root ::= {text}")


@pytest.mark.parametrize("most", [1, 2, 3, 100, 1999])
def test_bounded_strings_and_lists_stay_flat(most):
    for schema in (
        {"type": "string", "maxLength": most},
        {"type": "string", "minLength": 1, "maxLength": most},
        {"type": "array", "items": {"type": "string", "maxLength": 9}, "maxItems": most},
    ):
        grammar = schema_to_grammar(schema, json_schema_to_gbnf)
        assert grammar.count("(((((") == 0
        assert max(len(line) for line in grammar.splitlines()) < 500


def test_flattening_means_the_same():
    assert flatten_repetitions("r ::= (x (x (x)?)?)?") == "r ::= (x){0,3}"
    assert flatten_repetitions('r ::= (x ("," x ("," x)?)?)?') == 'r ::= (x ("," x){0,2})?'
    assert flatten_repetitions("r ::= (x)?") == "r ::= (x)?"


def test_rules_are_renamed_and_literals_are_not():
    assert rename_rules('root ::= item "item" [item]', lambda name: f"a-{name}") == 'a-root ::= a-item "item" [item]'
