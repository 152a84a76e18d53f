import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goblin_tiny.tokenizer import BYTES, CONTROL_WORDS, Tokenizer, learn, split

WORDS = st.text(max_size=60)


@given(WORDS)
def test_words_joined_are_the_text(text):
    assert "".join(split(text)) == text


def test_words_carry_their_space_and_digits_stand_alone():
    assert list(split("I'll add 12  to it!\n")) == ["I", "'ll", " add", " ", "1", "2", " ", " to", " it", "!", "\n"]


@given(text=WORDS)
@settings(max_examples=200)
def test_any_text_comes_back(tokenizer, text):
    text = text.encode(errors="ignore").decode()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_never_becomes_a_control_word(tokenizer):
    assert min(tokenizer.encode("".join(CONTROL_WORDS))) >= len(CONTROL_WORDS)


def test_merges_are_the_most_frequent_pairs_and_ties_go_by_the_alphabet():
    tokenizer = learn(["ab ab ab", "cd cd"], vocabulary=len(CONTROL_WORDS) + len(BYTES) + 3)
    # `ab` stands three times; ` ab` and ` cd` twice, `cd` twice: "c" sorts before "Ġ".
    assert tokenizer.merges == [("a", "b"), ("c", "d"), ("Ġ", "ab")]
    assert [tokenizer.tokens[index] for index in tokenizer.encode("ab abcd")] == ["ab", "Ġab", "cd"]


def test_a_tie_is_not_decided_by_what_was_read_first():
    assert learn(["xab"], vocabulary=len(CONTROL_WORDS) + len(BYTES) + 1).merges == [("a", "b")]


def test_two_merges_with_the_same_result_are_one_token():
    tokenizer = Tokenizer([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")])
    assert tokenizer.tokens.count("abc") == 1
    assert len(tokenizer.tokens) == len(set(tokenizer.tokens))


def test_learning_twice_gives_the_same(small, tokenizer):
    from goblin_tiny import batches

    assert batches.learn_vocabulary(small).merges == tokenizer.merges
    assert len(tokenizer.tokens) == small.shape.vocabulary


def test_too_little_text_is_an_error():
    with pytest.raises(ValueError, match="pairs for 1 tokens only"):
        learn(["ab"], vocabulary=300)


def test_a_vocabulary_without_room_for_the_bytes_is_an_error():
    with pytest.raises(ValueError, match="no room"):
        learn(["ab"], vocabulary=100)
