"""What the end of a task means for its job: a table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

EX_DATAERR = 65
"""What a task exits with when no other attempt could mend it. Source: sysexits.h."""
SAID_MAX = 450


class Verdict(StrEnum):
    """What the controller is told."""

    FINISH = "finish"
    WITHDRAW = "withdraw"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The end of a task, as this machine saw it."""

    code: int
    """Its exit code."""
    saved: int
    """The last step that the controller has verified; 0: none."""
    total: int | None
    """Steps in all, as the task said."""
    stopped: str | None
    """Why it was asked to stop; None: it ended by itself."""
    killed: bool
    """It did not stop in time."""
    last_lines: str


def judge(ending: Ending) -> tuple[Verdict, str]:
    """What follows, and the reason in words."""
    all_saved = ending.saved > 0 and (ending.total is None or ending.saved >= ending.total)
    if ending.code == EX_DATAERR and not ending.killed:
        return Verdict.FAIL, _said("the task cannot be done", ending.last_lines)
    if ending.stopped is not None:
        if ending.code == 0 and ending.total is not None and all_saved:
            return Verdict.FINISH, "the last step was saved just before the stop"
        late = "; the task did not save in time" if ending.killed else ""
        return Verdict.WITHDRAW, f"{ending.stopped}{late}"
    if ending.code != 0:
        return Verdict.WITHDRAW, _said(f"the task ended with {_code(ending.code)}", ending.last_lines)
    if ending.saved == 0:
        return Verdict.FAIL, _said("the task ended without a checkpoint", ending.last_lines)
    if not all_saved:
        said = f"the task ended at step {ending.saved} of {ending.total}"
        return Verdict.WITHDRAW, _said(said, ending.last_lines)
    return Verdict.FINISH, f"all is done at step {ending.saved}"


def _code(code: int) -> str:
    return f"signal {code - 128}" if 128 < code < 160 else f"exit code {code}"


def _said(what: str, last_lines: str) -> str:
    """The end of what it wrote is what matters."""
    room = SAID_MAX - len(what) - 2
    return f"{what}: {last_lines[-room:]}" if last_lines.strip() else what
