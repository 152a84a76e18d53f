"""What the end of a task means for its job: done, given back or failed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

EX_DATAERR = 65
"""Exit code of a task that no other attempt can complete. Source: sysexits.h."""
SAID_MAX = 450


class Verdict(StrEnum):
    """The agent's last request to the controller."""

    FINISH = "finish"
    WITHDRAW = "withdraw"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The end of a task, as the agent observed it."""

    code: int
    """The task's exit code."""
    saved: int
    """The last step that the controller has verified; 0: none."""
    total: int | None
    """Number of steps, as the task reported it; None: unknown."""
    stopped: str | None
    """Why the agent asked the task to stop; None: it ended by itself."""
    killed: bool
    """Whether the agent killed it because it did not stop in time."""
    last_lines: str


def judge(ending: Ending) -> tuple[Verdict, str]:
    """Decide what to tell the controller, with the reason in words."""
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
    """Append the end of the task's output, as much as fits into `SAID_MAX` characters."""
    room = SAID_MAX - len(what) - 2
    return f"{what}: {last_lines[-room:]}" if last_lines.strip() else what
