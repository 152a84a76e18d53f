"""`goblin jobs`, against a server that answers as `/jobs` does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from goblin.cli import job_logs, job_show, job_watch
from goblin.cli.main import main
from goblin.core import events
from goblin.core.events import JobRequested
from goblin.jobs.domain.job import Job, JobState, Progress, Reason
from goblin.jobs.domain.market import Candidate, ExpectedRun, NoPlacement, Offer, Placement
from goblin.web import jobs_schema
from tests.fakes.serving import closed_port, serve

NOW = datetime.now(UTC)
ESCAPE = "\x1b"
OFFER = Offer(
    offer_id="31", provider="vastai", pool="RTX_4090", spot=True, gpu="RTX_4090", price_usd_micros_per_hour=240_000,
    gpu_memory_mib=24_564, place="Norway",
)  # fmt: skip
RUN = ExpectedRun(
    price_usd_micros_per_hour=250_000, cost_usd_micros=2_150_000, duration_s=29_000, interval_s=600, losses=1.5
)
CANDIDATES = (
    Candidate(offer_id="31", provider="vastai", spot=True, all_in_usd_micros_per_hour=261_000, run=RUN),
    Candidate(
        offer_id="31", provider="vastai", spot=False, all_in_usd_micros_per_hour=412_000,
        run=replace(RUN, cost_usd_micros=3_300_000, duration_s=28_800, losses=0.01), rejected="dearer to the end",
    ),
    Candidate(offer_id="x1", provider="runpod", spot=False, rejected="above the price cap of $0.80"),
)  # fmt: skip
PLACED = Placement(
    offer=OFFER, bid_usd_micros_per_hour=250_000, run=RUN, reason="least expected cost", candidates=CANDIDATES
)


def job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "job_id": "t-1", "spec": JobRequested(job_id="t-1", kind="training", gpu_types=("RTX_4090",)),
        "spec_sha256": "", "state": JobState.RUNNING, "requested_at": NOW, "updated_at": NOW, "attempt": 2,
        "told_total": 400, "step": 120, "preemptions": 1, "spent_usd_micros": 12_300, "placement": PLACED,
        "progress": Progress(at=NOW, step=120, loss=0.2345, steps_per_s=2.0),
        "reasons": (Reason(at=NOW, state=JobState.RUNNING, text="attempt 2 begins at step 100"),),
    }  # fmt: skip
    return Job(**{**fields, **changes})


def told(shown: Job) -> Any:
    return json.loads(msgspec.json.encode(jobs_schema.job(shown, now=NOW)))


@dataclass
class FakeGoblin:
    """Answers with the jobs it is given, one after the other, the last one again and again."""

    answers: list[Job | int] = field(default_factory=lambda: [job()])
    """A number is a status code."""
    posted: list[Any] = field(default_factory=list)
    refusal: str = ""
    logs: list[tuple[int, str]] = field(default_factory=list)
    """Attempts and texts, one after the other."""
    whole: bool = True

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/jobs", self._submit, methods=["POST"]),
                Route("/jobs", self._list),
                Route("/jobs/{job_id}", self._show),
                Route("/jobs/{job_id}/cancel", self._show, methods=["POST"]),
                Route("/jobs/{job_id}/logs", self._log),
            ]
        )

    def _next(self) -> Job | int:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def _submit(self, request: Request) -> Response:
        if self.refusal:
            return _json({"error": {"message": self.refusal}}, 400)
        spec = events.decode(JobRequested, await request.body())
        self.posted.append(spec)
        fresh = Job(
            job_id=spec.job_id, spec=spec, spec_sha256="", state=JobState.QUEUED, requested_at=NOW, updated_at=NOW,
            reasons=(Reason(at=NOW, state=JobState.QUEUED, text="waits for a free place"),),
        )  # fmt: skip
        return _json(jobs_schema.job(fresh), 202)

    async def _list(self, _: Request) -> Response:
        return _json({"data": [jobs_schema.job(one, now=NOW) for one in self.answers if isinstance(one, Job)]})

    async def _show(self, _: Request) -> Response:
        said = self._next()
        if isinstance(said, int):
            return _json({"error": {"message": "the store is down"}}, said)
        return _json(jobs_schema.job(said, now=NOW))

    async def _log(self, request: Request) -> Response:
        attempt, text = self.logs.pop(0) if len(self.logs) > 1 else self.logs[0]
        asked = request.query_params.get("attempt")
        return _json(jobs_schema.log(int(asked) if asked else attempt, text, whole=self.whole))


def _json(said: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(said), status, media_type="application/json")


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakeGoblin, str]]:
    fake = FakeGoblin()
    with serve(fake.app) as url:
        yield fake, url


@pytest.fixture
def fake(served: tuple[FakeGoblin, str], monkeypatch: pytest.MonkeyPatch) -> FakeGoblin:
    found, url = served
    found.__dict__.update(FakeGoblin().__dict__)
    for name, value in (("GOBLIN_URL", url), ("GOBLIN_API_KEY", "key"), ("GOBLIN_BUCKET", "bkt")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("VASTAI_MAX_COST_PER_HOUR", raising=False)
    # A person's eyes need the pause, a test does not.
    monkeypatch.setattr(job_watch, "LOOK_S", 0.0)
    monkeypatch.setattr(job_logs, "LOOK_S", 0.0)
    return found


@pytest.fixture
def goblin(fake: FakeGoblin) -> Callable[..., Result]:
    return lambda *words, **more: CliRunner().invoke(main, ["jobs", *words], **more)


def submitted(goblin: Callable[..., Result], fake: FakeGoblin, *words: str) -> JobRequested:
    done = goblin("submit", *words)
    assert done.exit_code == 0, done.output
    spec: JobRequested = fake.posted[-1]
    return spec


def test_the_words_of_a_training_job_are_the_events_fields(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    spec = submitted(
        goblin, fake, "--type", "training", "--gpu", "RTX_4090", "--gpu", "nvidia h100 sxm", "--gpus", "2", "--hours",
        "8", "--max-cost", "0.80", "--budget", "$12.50", "--min-vram", "24", "--priority", "high", "--retries", "2",
        "--checkpoint-minutes", "7.5", "--callback-topic", "mine", "--image", "me/mine:1", "--task", "lora",
        "--param", "lr=0.001", "--param", "layers=[2, 3]", "--param", "name=large", "--param", "x=NaN",
    )  # fmt: skip
    assert (spec.kind, spec.gpu_types, spec.gpu_count) == ("training", ("RTX_4090", "H100_SXM"), 2)
    assert (str(spec.max_price_per_hour), str(spec.budget_usd), spec.est_hours) == ("0.80", "12.50", 8)
    assert spec.gpu_memory_mib_min == 22_888, "a card sold as 24 GB says that it has 24,564 MiB"
    assert (spec.priority, spec.retries, spec.checkpoint_minutes) == ("high", 2, 7.5)
    assert (spec.callback_topic, spec.image, spec.task) == ("mine", "me/mine:1", "lora")
    assert msgspec.json.decode(spec.parameters) == {"lr": 0.001, "layers": [2, 3], "name": "large", "x": "NaN"}
    assert (spec.dataset_uri, spec.output_uri) == (None, f"gs://bkt/outputs/{spec.job_id}")


def test_what_is_not_said_is_left_to_the_events_defaults(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    spec = submitted(goblin, fake, "--type", "training", "--job-id", "bare", "gs://bkt/d.jsonl")
    given = {"dataset_uri": "gs://bkt/d.jsonl", "output_uri": "gs://bkt/outputs/bare"}
    assert spec == msgspec.convert({"job_id": "bare", "kind": "training", **given}, JobRequested)


def test_a_batch_is_what_it_was(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    spec = submitted(goblin, fake, "gs://bkt/in/d.jsonl", "--job-id", "b", "--checkpoint-every", "5", "--model", "m")
    assert (spec.kind, spec.checkpoint_every, spec.model, msgspec.json.decode(spec.parameters)) == (
        "batch",
        5,
        "m",
        {"parallel": 4},
    )
    assert spec.output_uri == "gs://bkt/outputs/b.jsonl"


@pytest.mark.parametrize(("word", "hours"), [("+10h", 10), ("+90m", 1.5), ("+2d", 48), ("+0.5h", 0.5)])
def test_a_deadline_may_be_so_far_from_now(
    goblin: Callable[..., Result], fake: FakeGoblin, word: str, hours: float
) -> None:
    spec = submitted(goblin, fake, "--type", "training", "--hours", "1", "--deadline", word)
    assert spec.deadline is not None
    assert abs(spec.deadline - datetime.now(UTC) - timedelta(hours=hours)) < timedelta(seconds=60)


def test_a_deadline_may_be_an_instant(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    at = (NOW + timedelta(days=3)).replace(microsecond=0)
    for word in (at.isoformat(), at.astimezone().replace(tzinfo=None).isoformat()):
        spec = submitted(goblin, fake, "--type", "training", "--hours", "1", "--deadline", word)
        assert spec.deadline == at


def test_the_price_cap_of_the_environment_holds(
    goblin: Callable[..., Result], fake: FakeGoblin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VASTAI_MAX_COST_PER_HOUR", "0.55")
    assert str(submitted(goblin, fake, "--type", "training").max_price_per_hour) == "0.55"
    assert str(submitted(goblin, fake, "--type", "training", "--max-cost", "2").max_price_per_hour) == "2"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "A batch needs DATASET"),
        (["--type", "cooking"], "'cooking' is not one of 'batch', 'training'"),
        (["--type", "training", "--deadline", "+10h"], "--deadline needs --hours"),
        (["--type", "training", "--hours", "1", "--deadline", "soon"], "write +10h, or 2026-12-01T18:00"),
        (["--type", "training", "--hours", "1", "--deadline", "2020-01-01"], "is in the past"),
        (["--type", "training", "--hours", "1", "--deadline", "+9999999d"], "write +10h"),
        (["--type", "training", "--hours", "1", "--deadline", "+999999d"], "within a year"),
        (["--type", "training", "--hours", "0"], "0 is not in the range"),
        (["--type", "training", "--max-cost", "free"], "write it as 0.80"),
        (["--type", "training", "--budget", "NaN"], "not above 0"),
        (["--type", "training", "--budget", "-1"], "not above 0"),
        (["--type", "training", "--param", "lr"], "write it as lr=0.001"),
        (["--type", "training", "--gpu", "RTX 4090;"], "write it as RTX_4090"),
        (["--type", "training", "--gpus", "17"], "17 is not in the range"),
        (["--type", "training", "--nonsense"], "No such option '--nonsense'"),
    ],
)
def test_bad_words_are_one_line_that_says_what_to_do(
    goblin: Callable[..., Result], fake: FakeGoblin, words: list[str], says: str
) -> None:
    refused = goblin("submit", *words)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("goblin: ")
    assert says in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert fake.posted == []


def test_what_the_controller_refuses_is_its_own_line(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    fake.refusal = "no price under $0.80 meets the deadline; $1.20 would"
    refused = goblin("submit", "--type", "training")
    assert (refused.exit_code, refused.stderr) == (1, f"goblin: {fake.refusal}\n")


def test_the_list_says_how_far_and_how_dear(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    fake.answers = [job(), job(job_id="t-2", state=JobState.QUEUED, step=0, told_total=None, spent_usd_micros=0)]
    first, second = goblin("list").stdout.splitlines()[1:]
    for word in ("t-1", "training", "running", "120 of 400 (30 %)", "$0.0123"):
        assert word in first
    for word in ("t-2", "queued", "-", "$0.00"):
        assert word in second


def test_show_says_why_here_cheapest_first(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    said = goblin("show", "t-1").stdout
    for word in (
        "120 of 400 (30 %), 2/s, loss 0.2345, 2 min left", "1 x RTX_4090 on spot in Norway",
        "once preempted", "$0.0123 spent at $0.2610/h", "why here  least expected cost", "attempt 2 begins at step 100",
    ):  # fmt: skip
        assert word in said
    rows = [line.split("  ") for line in said.splitlines() if "vastai 31" in line or " x1" in line]
    assert [" ".join(filter(None, map(str.strip, row))) for row in rows] == [
        "> vastai 31 spot $0.2610/h $2.15 8 h 03 min 1.50",
        "vastai 31 on demand $0.4120/h $3.30 8 h 00 min 0.01 dearer to the end",
        "runpod x1 on demand - - - - above the price cap of $0.80",
    ]


def test_show_says_why_nowhere_and_what_it_would_take(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    nothing = NoPlacement(
        reason="all are above the cap", candidates=CANDIDATES[2:], price_usd_micros_per_hour_min=900_000
    )
    fake.answers = [job(state=JobState.QUEUED, placement=None, no_placement=nothing, attempt=0, progress=None)]
    said = goblin("show", "t-1").stdout
    assert "why nowhere  all are above the cap" in said
    assert "it could run for $0.9000 an hour: raise --max-cost" in said
    assert "above the price cap of $0.80" in said
    assert "all are above the cap" in goblin("list").stdout


def test_a_hosts_words_do_not_reach_the_terminals_ear(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    nasty = f"{ESCAPE}[2Jgone [bold]loud[/bold]\r\x07"
    fake.answers = [job(reasons=(Reason(at=NOW, state=JobState.FAILED, text=nasty),), state=JobState.FAILED)]
    for words in (("show", "t-1"), ("list",), ("watch", "t-1")):
        said = goblin(*words).stdout
        assert ESCAPE not in said
        assert "\x07" not in said
        assert "[bold]loud[/bold]" in said


def test_watch_in_a_pipe_is_a_line_for_each_change_of_state(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    fake.answers = [
        job(attempt=1, preemptions=0, step=20), job(attempt=1, preemptions=0, step=21), 503,
        job(state=JobState.PREEMPTED, attempt=1, reasons=(Reason(at=NOW, state=JobState.PREEMPTED, text="outbid"),)),
        job(), job(state=JobState.SUCCEEDED, step=400),
    ]  # fmt: skip
    done = goblin("watch", "t-1")
    assert done.exit_code == 0
    lines = [line.partition(" ")[2] for line in done.stdout.splitlines()]
    assert len(lines) == 5, "progress alone has no line of its own so soon"
    assert lines[0].startswith("running 20 of 400 (5 %), 2/s, loss 0.2345, 3 min left; $0.0123 spent at $0.2610/h")
    assert "preempted 120 of 400 (30 %)" in lines[1]
    assert lines[1].endswith("; attempt 1, 1 preemption; outbid")
    assert "attempt 2, 1 preemption" in lines[2]
    assert lines[4] == "succeeded: attempt 2 begins at step 100; $0.0123 spent"


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, JobState.REFUSED])
def test_the_exit_code_of_watch_says_that_it_did_not_succeed(
    goblin: Callable[..., Result], fake: FakeGoblin, state: JobState
) -> None:
    fake.answers = [job(), job(state=state)]
    done = goblin("watch", "t-1", "--json")
    assert done.exit_code == 1
    assert [json.loads(line)["state"] for line in done.stdout.splitlines()] == ["running", state]


def test_a_goblin_that_stays_silent_ends_the_watch(
    goblin: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_watch, "SILENCE_S_MAX", 0.0)
    monkeypatch.setenv("GOBLIN_URL", closed_port())
    refused = goblin("watch", "t-1")
    assert refused.exit_code == 1
    assert "does not answer" in refused.stderr


@pytest.mark.parametrize("columns", [30, 60, 200])
@pytest.mark.parametrize("total", [400, None])
def test_the_picture_fits_a_terminal_of_any_width(columns: int, total: int | None) -> None:
    shown = told(job(told_total=total))
    console = Console(width=columns, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(job_watch.picture(shown, console))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(len(line) <= columns for line in text.splitlines())
    words = text.split()
    for word in ("t-1", "running", "120", "2/s", "$0.0123", "1"):
        assert word in words or f"{word}," in words


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_list_fits_a_terminal_of_any_width(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=columns, file=io.StringIO(), force_terminal=True, color_system=None)
    monkeypatch.setattr("goblin.cli.terminal.console", lambda: console)
    console.print(job_show.listed([told(job(job_id="a-rather-long-name-of-a-job"))]))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(len(line) <= columns for line in text.splitlines())
    assert "120 of 400 (30 %)" in text
    assert "…" not in text


def test_no_colour_where_none_is_wanted(fake: FakeGoblin) -> None:
    told_in_colour = CliRunner().invoke(main, ["jobs", "list"], env={"FORCE_COLOR": "1", "COLUMNS": "100"}, color=True)
    assert ESCAPE in told_in_colour.stdout
    without = {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "100"}
    assert f"{ESCAPE}[3" not in CliRunner().invoke(main, ["jobs", "list"], env=without, color=True).stdout
    assert ESCAPE not in CliRunner().invoke(main, ["jobs", "list"]).stdout


def test_a_cancelled_job_says_so(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    fake.answers = [job(state=JobState.CANCELLED)]
    assert goblin("cancel", "t-1").stdout == "t-1 is cancelled\n"
    assert json.loads(goblin("cancel", "t-1", "--json").stdout)["state"] == "cancelled"


def test_a_log_is_shown_with_nothing_that_moves_a_cursor(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    fake.logs = [(2, f"step 1\rstep 2\n{ESCAPE}[2Jdone\n")]
    shown = goblin("logs", "t-1")
    assert shown.stdout == "step 1\nstep 2\n [2Jdone\n"
    assert shown.stderr == ""
    fake.whole = False
    assert "the beginning is in the bucket" in goblin("logs", "t-1").stderr
    assert json.loads(goblin("logs", "t-1", "--attempt", "1", "--json").stdout)["attempt"] == 1


def test_a_log_is_followed_over_attempts_and_each_line_is_said_once(
    goblin: Callable[..., Result], fake: FakeGoblin
) -> None:
    fake.answers = [job(attempt=1), job(attempt=1), 503, job(), job(), job(state=JobState.SUCCEEDED)]
    fake.logs = [(1, "a\n"), (1, "a\nb\n"), (2, "c\n"), (2, "c\nd\n"), (2, "c\nd\n")]
    followed = goblin("logs", "t-1", "--follow")
    assert followed.exit_code == 0
    assert followed.stdout == "a\nb\nc\nd\n"
    assert [line[:13] for line in followed.stderr.splitlines()] == ["--- attempt 1", "--- attempt 2"]


def test_one_attempt_is_followed_until_it_is_over(goblin: Callable[..., Result], fake: FakeGoblin) -> None:
    fake.answers = [job(attempt=1), job(attempt=2)]
    fake.logs = [(1, "a\n")]
    assert goblin("logs", "t-1", "--follow", "--attempt", "1").stdout == "a\n"


@pytest.mark.parametrize(
    ("seen", "now", "new"),
    [
        ("", "a", "a"),
        ("a\n", "a\nb\n", "b\n"),
        ("x" * 9000 + "\nlast\n", "x" * 5000 + "\nlast\nnext\n", "next\n"),
        ("one\n", "two\n", "two\n"),
        ("same", "same", ""),
    ],
    ids=["first", "more", "slid", "another", "nothing"],
)
def test_only_what_is_new_of_a_log_is_news(seen: str, now: str, new: str) -> None:
    assert job_logs.news(seen, now) == new
