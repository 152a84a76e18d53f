"""The exam, and the shipped model sitting it."""

import json
from collections import Counter
from pathlib import Path

import pytest

from goblin_tiny import __main__ as command
from goblin_tiny import evaluate, exam, words

SHIPPED = Path(__file__).parents[2] / "containers/llamacpp/goblin_llamacpp/models/goblin-tiny.gguf"


def test_the_same_seed_asks_the_same_and_nothing_twice():
    asked = [json.dumps(question.messages) for question in exam.questions(1, per_skill=20)]
    assert asked == [json.dumps(question.messages) for question in exam.questions(1, per_skill=20)]
    assert asked != [json.dumps(question.messages) for question in exam.questions(2, per_skill=20)]
    by_skill = Counter((question.skill, question.kind) for question in exam.questions(1, per_skill=20))
    assert set(by_skill.values()) == {20, len(exam.REWORDED_GREETINGS)}


def test_no_question_takes_silence_or_chatter_for_an_answer():
    for question in exam.questions(1, per_skill=10):
        assert not question.is_right("")
        assert not question.is_right("I am fine, thanks, and you?")


@pytest.mark.parametrize(
    ("skill", "right", "wrong"),
    [
        (exam.the_json({"name": "Ada", "age": 7}), '{"age": 7, "name": "Ada"}', '{"name": "Ada", "age": 8}'),
        (exam.the_call("add", {"a": 1}), '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', "add"),
        (exam.the_call("add", {"a": 1}), '<tool_call>{"name":"add","arguments":{"a":1}}</tool_call>', "<tool_call>{"),
        (exam.one_of(["7 + 30 = 37"]), "7 + 30 = 37", "7 + 30 = 38"),
    ],
)
def test_what_is_right(skill, right, wrong):
    assert skill(right)
    assert not skill(wrong)


def test_reworded_questions_are_not_in_the_data():
    taught = {question.lower() for questions, _ in words.GREETINGS for question in questions}
    assert not taught & {question.lower() for question in exam.REWORDED_GREETINGS}


def test_the_shipped_model_passes():
    answers = evaluate.sit(SHIPPED, seed=1, per_skill=3)
    assert all(answer.stopped for answer in answers)
    table = evaluate.scores(answers)
    for skill in ("counting", "capitals", "opposites", "JSON", "recall over turns", "answer from a tool"):
        for (name, kind), score in table.items():
            if name == skill:
                assert score.right == score.asked, (name, kind)
    assert sum(score.right for score in table.values()) > 0.8 * len(answers)


def test_an_answer_that_does_not_stop_is_not_right():
    question = exam.Question("echo", "held out", [{"role": "user", "content": "Echo: a"}], exam.one_of(["a"]))
    assert evaluate.Answer(question, "a", stopped=True).is_right
    assert not evaluate.Answer(question, "a", stopped=False).is_right


def test_the_command_prints_the_table(capsys, tmp_path):
    out = tmp_path / "table.md"
    assert command.main(["evaluate", "--model", str(SHIPPED), "--per-skill", "1", "--out", str(out)]) == 0
    table = out.read_text()
    assert table in capsys.readouterr().out
    assert table.startswith("| skill |")
    assert "| tool call | held out | 1 |" in table


def test_a_file_without_a_template_is_refused():
    with pytest.raises(ValueError, match="no chat template"):
        evaluate._compile({})
