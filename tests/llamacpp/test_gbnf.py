"""Grammars that llama.cpp must never see are refused, ordinary ones are not."""

import contextlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
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
from goblin_llamacpp.model import Model
from goblin_llamacpp.sampling import GrammarRefused, NoTokenAllowed, Sampler, Sampling

from .conftest import MODEL


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
        'root ::= "a" !<[6]>',
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


pieces = st.sampled_from(['"a"', '"b c"', "[a-z]", "[^x]", ".", "r", '"\\x00"', "[é]", "[b-a]", "[]", "[^]", "<[5]>"])
repeats = st.sampled_from(["", "", "*", "+", "?", "{2}", "{0,3}", "{2,}", "{0}", "{1,2000}"])
runs = st.lists(st.tuples(pieces, repeats), max_size=4).map(lambda run: " ".join(a + b for a, b in run))
bodies = st.lists(runs, min_size=1, max_size=3).map(lambda alternatives: "(" + " | ".join(alternatives) + ")*")


@given(bodies, bodies, st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_what_passes_does_not_end_the_process(model, root, other, seed):
    """A grammar that llama.cpp can not follow would abort here, and with it the whole run."""
    grammar = f"root ::= {root}\nr ::= {other}"
    try:
        check_grammar(grammar)
        sampler = Sampler(model, Sampling(temperature=1, grammar=grammar, seed=seed % 2**31))
    except (GrammarTooMuch, GrammarRefused):
        return
    rng = np.random.default_rng(seed)
    try:
        for _ in range(8):
            token = sampler.sample_within_grammar(rng.normal(size=model.n_vocab).astype(np.float32) * 3)
            if token in model.eog_tokens:
                break
    except NoTokenAllowed:
        pass
    finally:
        sampler.close()


@pytest.fixture(scope="module")
def model():
    return Model(MODEL)
