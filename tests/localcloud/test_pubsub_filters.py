"""The filter language, as a table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcloud.pubsub.errors import Refused
from localcloud.pubsub.filters import FILTER_BYTES_MAX, parse_filter

MATCHING = [
    ("", {}, True),
    ("   ", {"a": "b"}, True),
    ("attributes:lang", {"lang": ""}, True),
    ("attributes:lang", {"Lang": "en"}, False),
    ('attributes:"my key"', {"my key": "x"}, True),
    ("attributes : lang", {"lang": "en"}, True),
    ('attributes.lang = "en"', {"lang": "en"}, True),
    ('attributes.lang="en"', {"lang": "EN"}, False),
    ('attributes.lang = "en"', {}, False),
    ('attributes."my.key" = "x"', {"my.key": "x"}, True),
    ('attributes.a-b = "x"', {"a-b": "x"}, True),
    ('attributes.lang != "en"', {"lang": "de"}, True),
    ('attributes.lang != "en"', {"lang": "en"}, False),
    ('attributes.lang != "en"', {}, True),
    ('hasPrefix(attributes.name, "co")', {"name": "com"}, True),
    ('hasPrefix(attributes.name, "co")', {"name": "aco"}, False),
    ('hasPrefix(attributes.name, "")', {}, False),
    ("NOT attributes:a", {}, True),
    ("NOT attributes:a", {"a": "1"}, False),
    ("-attributes:a", {"a": "1"}, False),
    ('attributes:a AND attributes.b = "2"', {"a": "1", "b": "2"}, True),
    ('attributes:a AND attributes.b = "2"', {"a": "1", "b": "3"}, False),
    ("attributes:a OR attributes:b OR attributes:c", {"c": ""}, True),
    ("attributes:a OR attributes:b", {"c": ""}, False),
    ("attributes:a AND NOT attributes:b", {"a": ""}, True),
    ("attributes:a AND -attributes:b", {"a": "", "b": ""}, False),
    ("attributes:a AND (attributes:b OR attributes:c)", {"a": "", "c": ""}, True),
    ("(attributes:a AND attributes:b) OR attributes:c", {"a": ""}, False),
    ("NOT (attributes:a OR attributes:b)", {"c": ""}, True),
    ("-(attributes:a AND attributes:b)", {"a": "", "b": ""}, False),
    (r'attributes.q = "say \"hi\""', {"q": 'say "hi"'}, True),
    (r'attributes.q = "a\\b"', {"q": r"a\b"}, True),
    ('attributes.q = "NOT AND ("', {"q": "NOT AND ("}, True),
    ('attributes.AND = "1"', {"AND": "1"}, True),
]


@pytest.mark.parametrize(("text", "attributes", "matches"), MATCHING)
def test_a_filter_matches_as_documented(text: str, attributes: dict[str, str], matches: bool) -> None:
    assert parse_filter(text)(attributes) is matches


NONSENSE = [
    "lang",
    "attributes",
    "attributes.",
    "attributes:",
    "attributes.lang",
    "attributes.lang = en",
    "attributes.lang = 'en'",
    'attributes.lang == "en"',
    'attributes.lang > "en"',
    'attributes.lang = "en',
    'attribute.lang = "en"',
    'data = "x"',
    'message.attributes.lang = "en"',
    "hasPrefix(attributes.name)",
    'hasPrefix("name", "co")',
    'hasSuffix(attributes.name, "co")',
    "attributes:a attributes:b",
    "attributes:a AND",
    "AND attributes:a",
    "attributes:a and attributes:b",
    "attributes:a AND attributes:b OR attributes:c",
    "attributes:a OR attributes:b AND attributes:c",
    "(attributes:a",
    "attributes:a)",
    "()",
    "NOT",
    "NOT NOT attributes:a",
    "attributes:a;",
    "attributes:1a",
    f"attributes:{'a' * FILTER_BYTES_MAX}",
    "(" * 40 + "attributes:a" + ")" * 40,
]


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_filter(text)
    assert refused.value.code.name == "INVALID_ARGUMENT"


words = st.sampled_from(
    ["attributes", ".", ":", "a", '"b"', "=", "!=", "AND", "OR", "NOT", "-", "(", ")", "hasPrefix", ","]
)


@given(st.lists(words, max_size=14))
def test_anything_either_parses_or_is_refused(pieces: list[str]) -> None:
    try:
        matches = parse_filter(" ".join(pieces))
    except Refused:
        return
    assert matches({"a": "b"}) in (True, False)


terms = st.recursive(
    st.sampled_from(["a", "b", "c"]).map(lambda key: (f"attributes:{key}", lambda m, key=key: key in m)),
    lambda inner: st.one_of(
        inner.map(lambda one: (f"NOT ({one[0]})", lambda m: not one[1](m))),
        st.tuples(inner, inner).map(
            lambda two: (f"({two[0][0]}) AND ({two[1][0]})", lambda m: two[0][1](m) and two[1][1](m))
        ),
        st.tuples(inner, inner).map(
            lambda two: (f"({two[0][0]}) OR ({two[1][0]})", lambda m: two[0][1](m) or two[1][1](m))
        ),
    ),
    max_leaves=5,
)


@given(terms, st.sets(st.sampled_from(["a", "b", "c"])))
def test_a_filter_means_what_its_logic_means(term: tuple, present: set[str]) -> None:
    text, truth = term
    if len(text.encode()) > FILTER_BYTES_MAX:
        return
    attributes = dict.fromkeys(present, "")
    assert parse_filter(text)(attributes) == truth(attributes)
