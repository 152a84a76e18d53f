"""The grammar and the rows made of it."""

import json
import re
from itertools import islice

import jinja2
import pytest

from goblin_tiny import batches, corpus, exam, words
from goblin_tiny.conversations import TOOL_PROMPT
from goblin_tiny.gguf_export import chat_template

SEED = 5


def some(count, seed=SEED, name="test"):
    return list(islice(batches.conversations(seed, name), count))


def test_the_corpus_is_what_it_was():
    # Change this only with the grammar; another Python must not change it.
    assert batches.corpus_sha256(1) == "ed35df7df627e169fd423d30bd3cafe4d2d62935bd4d2db0b125db41eef8abfb"


def test_the_same_seed_and_name_give_the_same_conversations_and_others_do_not():
    assert some(50) == some(50)
    assert some(50) != some(50, seed=SEED + 1)
    assert some(50) != some(50, name="another")


def test_calculations_are_right():
    wanted = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    checked = 0
    for message in (message for messages in some(2000) for message in messages):
        if message.role == "assistant" and (match := re.fullmatch(r"(\d+) ([-+*]) (\d+) = (\d+)", message.content)):
            a, sign, b, result = match.groups()
            assert wanted[sign](int(a), int(b)) == int(result)
            checked += 1
    assert checked > 200


def test_every_skill_is_taught():
    answers = [message.content for messages in some(3000) for message in messages if message.role == "assistant"]
    for beginning in ("Hello!", "The capital of", "The opposite of", "<tool_call>", "{", "Once upon", "Your name is"):
        assert any(answer.startswith(beginning) for answer in answers), beginning


def test_what_is_held_out_is_never_taught():
    taught = {message.content for messages in some(20_000) for message in messages}
    asked = [question for question in exam.questions(1, per_skill=60) if question.kind != "taught"]
    assert len(asked) > 300
    for question in asked:
        if question.skill == "answer from a tool":
            continue  # The question before the result is what the split decides, and "tool call" asks those.
        assert question.messages[-1]["content"] not in taught


def test_about_one_case_in_sixteen_is_held_out():
    held_out = sum(corpus.is_held_out(f"{a} + {b}") for a in range(100) for b in range(100))
    assert 0.05 < held_out / 10_000 < 0.075


def test_a_skill_without_held_out_cases_says_so():
    rng = batches.Random(1)
    with pytest.raises(LookupError, match="greeting"):
        corpus.draw(corpus.greeting, rng, held_out=True)


def test_messages_are_written_as_the_chat_template_writes_them(tokenizer):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = json.dumps
    template = environment.from_string(chat_template())
    with_tools = 0
    for messages in some(300):
        request = [{"role": message.role, "content": message.content} for message in messages]
        tools = None
        if request[0]["content"].startswith(TOOL_PROMPT):
            tools = [json.loads(line) for line in request.pop(0)["content"].splitlines()[1:]]
            called = json.loads(request[1]["content"].removeprefix("<tool_call>").removesuffix("</tool_call>"))
            # As a client sends a call back: no content, arguments as text.
            function = {"name": called["name"], "arguments": json.dumps(called["arguments"])}
            request[1] = {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}
            with_tools += 1
        trained = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages)
        assert template.render(messages=request, tools=tools) == trained
        ids, _ = batches.render(messages, tokenizer)
        assert tokenizer.decode(ids) == trained.replace("<|im_start|>", "").replace("<|im_end|>", "")
    assert with_tools > 5


def test_only_what_is_said_counts_in_the_loss(tokenizer):
    messages = [corpus.Message("user", "Hi"), corpus.Message("assistant", "Hello!")]
    ids, weights = batches.render(messages, tokenizer)
    said = [token for token, weight in zip(ids, weights, strict=True) if weight == 1.0]
    assert tokenizer.decode(said) == "Hello!"
    assert said[-1] == tokenizer.tokens.index("<|im_end|>")
    read = [token for token, weight in zip(ids, weights, strict=True) if weight == batches.OTHERS_WEIGHT]
    assert tokenizer.decode(read) == "Hi"


def test_a_steps_rows_depend_on_nothing_but_the_recipe_and_the_step(small, tokenizer):
    rows = batches.rows(small, 3, tokenizer)
    batches.rows(small, 4, tokenizer)
    assert batches.rows(small, 3, tokenizer) == rows
    assert batches.rows(small, 4, tokenizer) != rows
    assert [len(ids) for ids, _ in rows] == [small.row_tokens + 1] * small.rows
    ids, weights = rows[0]
    assert len(ids) == len(weights)


def test_the_last_rows_are_long(small, tokenizer):
    rows = batches.rows(small, small.steps - 1, tokenizer)
    assert [len(ids) for ids, _ in rows] == [4 * small.row_tokens + 1] * (small.rows // 4)


def test_capitals_and_opposites_are_facts_once():
    assert len(words.CAPITALS) == 34
    both = [*words.OPPOSITES, *words.OPPOSITES.values()]
    assert len(both) == len(set(both))
