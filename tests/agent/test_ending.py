"""What the end of a task means: a table."""

import pytest

from goblin_agent.ending import Ending, Verdict, judge


@pytest.mark.parametrize(
    ("facts", "verdict", "reason"),
    [
        ({}, "finish", "all is done at step 9"),
        ({"total": None}, "finish", "all is done at step 9"),
        ({"saved": 0}, "fail", "the task ended without a checkpoint: last words"),
        ({"saved": 5}, "withdraw", "the task ended at step 5 of 9: last words"),
        ({"code": 1}, "withdraw", "the task ended with exit code 1: last words"),
        ({"code": 137}, "withdraw", "the task ended with signal 9: last words"),
        ({"code": 1, "last_lines": " "}, "withdraw", "the task ended with exit code 1"),
        ({"code": 65, "saved": 0}, "fail", "the task cannot be done: last words"),
        ({"code": 65, "stopped": "taken"}, "fail", "the task cannot be done: last words"),
        ({"code": 65, "stopped": "taken", "killed": True}, "withdraw", "taken; the task did not save in time"),
        ({"stopped": "taken", "saved": 5}, "withdraw", "taken"),
        ({"stopped": "taken", "saved": 0}, "withdraw", "taken"),
        ({"stopped": "taken", "code": 1}, "withdraw", "taken"),
        ({"stopped": "taken", "code": 137, "killed": True}, "withdraw", "taken; the task did not save in time"),
        # Nobody knows whether it had come to its end.
        ({"stopped": "taken", "total": None}, "withdraw", "taken"),
        ({"stopped": "taken"}, "finish", "the last step was saved just before the stop"),
    ],
)
def test_the_end_of_a_task_has_a_meaning(facts: dict[str, object], verdict: str, reason: str) -> None:
    usual = {"code": 0, "saved": 9, "total": 9, "stopped": None, "killed": False, "last_lines": "last words"}
    assert judge(Ending(**{**usual, **facts})) == (Verdict(verdict), reason)


def test_of_many_last_words_the_last_are_told() -> None:
    ending = Ending(code=1, saved=0, total=None, stopped=None, killed=False, last_lines="x" * 5000 + "the cause")
    _, reason = judge(ending)
    assert len(reason) <= 450
    assert reason.endswith("the cause")
