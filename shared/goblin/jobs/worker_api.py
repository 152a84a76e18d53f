"""Worker API: what an attempt's agent may request with its token: work, a longer lease, uploads, its end.

The host is not trusted. The token proves that the caller is the current attempt; everything it reports is either
checked or can harm only its own attempt.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from goblin.core.errors import Conflict, Forbidden, InvalidReport, InvalidRequest, LeaseHeld, NotFound
from goblin.core.events import CheckpointSaved
from goblin.core.ports import SignedRequest
from goblin.core.redaction import redact
from goblin.jobs import attempt_logs, checkpoint_retention, checkpoints, invalid_reports, owners, training
from goblin.jobs.domain.checkpoints import Artifact, Checkpoint, Manifest, manifest_uri
from goblin.jobs.domain.instances import AttemptLease
from goblin.jobs.domain.job import ENDED, Job, JobKind, JobState, Progress
from goblin.jobs.domain.worker import Assignment, HeartbeatReply, InputFile, TrainingInputs, WorkerReport
from goblin.jobs.lifecycle import SHOWN_MAX, JobDeps, act, change, load
from goblin.jobs.policy import state_machine, worker_reports
from goblin.jobs.policy.state_machine import Transition, Trigger

TOKEN_PREFIX = "gob-attempt-"  # noqa: S105 - a prefix, so that a token found in a log is recognised
KEY_LIFE = timedelta(hours=1)
OVER = "attempt_over"
"""Code of the errors after which a host stops."""
SAID_MAX = 500
"""Characters of a host's reason that are stored in a job's history."""


def new_token(job_id: str, attempt: int, secret: str) -> str:
    """Build a fencing token. Its holder reads the job id from it."""
    return f"{TOKEN_PREFIX}{secret}.{attempt}.{job_id}"


def is_token(key: str) -> bool:
    """Whether a key is an attempt's token: it may send inference requests, and act for its own job."""
    return key.startswith(TOKEN_PREFIX)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptToken:
    """A token of the form of a job's attempt tokens, and how its requests are counted before it is looked up."""

    token: str
    job_id: str
    rate_per_minute: int | None = 600
    """A heartbeat comes every ten seconds; an upload is a few requests."""
    parallel_max: int | None = 16

    @property
    def pair(self) -> tuple[str, str]:
        """Job id and token: what every function of this module begins with."""
        return self.job_id, self.token

    @property
    def counted_as(self) -> str:
        """The token's digest: a forged one must not use up the limits of the attempt."""
        return f"attempt:{digest(self.token)}"


def recognise(token: str, job_id: str) -> AttemptToken:
    """Check the form of a token, without a lookup.

    Raises:
        Forbidden: It is an API key, or of another job.
    """
    if not is_token(token):
        raise Forbidden("Only the host of the job may do this. Send its attempt token, not an API key.")
    if token.removeprefix(TOKEN_PREFIX).split(".", 2)[2:] != [job_id]:
        raise _not_current(job_id)
    return AttemptToken(token=token, job_id=job_id)


def digest(token: str) -> str:
    """Hash a token; only the hash is stored."""
    return hashlib.sha256(token.encode()).hexdigest()


def authorise(job: Job, token: str) -> AttemptLease:
    """Return the lease that the token proves.

    Raises:
        Forbidden: The token is an older attempt's, or not one of this job.
    """
    expected = job.lease.token_sha256 if job.lease else ""
    if not hmac.compare_digest(digest(token), expected) or job.lease is None:
        raise _not_current(job.job_id)
    return job.lease


def _not_current(job_id: str) -> Forbidden:
    said = job_id[:SHOWN_MAX]
    return Forbidden(f"The token is not that of the current attempt of job {said}. Stop this attempt.", code=OVER)


def _live(job: Job, transition: Transition | None) -> Transition:
    if transition is None:
        raise Conflict(f"The attempt is over: the job is {job.state}. Stop it.", code=OVER)
    return transition


async def _attempt(job_id: str, token: str, deps: JobDeps) -> Job:
    """Read the job and verify that the caller is its current attempt.

    Raises:
        Forbidden: The token is not the current attempt's; a token of this job is recorded in its history. Also when
            there is no such job: a host must not learn which jobs there are.
    """
    try:
        job = (await load(deps, job_id)).job
    except NotFound:
        raise _not_current(job_id) from None
    try:
        authorise(job, token)
    except Forbidden:
        if is_token(token) and token.endswith(f".{job_id}"):
            await invalid_reports.record_foreign_token(job, deps)
        raise
    return job


@asynccontextmanager
async def _believing(job: Job, deps: JobDeps) -> AsyncGenerator[None, None]:
    """Record an `InvalidReport` raised inside, then raise it again."""
    try:
        yield
    except InvalidReport as lie:
        await invalid_reports.record_invalid_report(job, lie.message, deps)
        raise


async def claim(job_id: str, token: str, deps: JobDeps) -> Assignment:
    """Start the attempt's work. Safe to repeat after a restart of the agent.

    Raises:
        Forbidden: The caller is not the current attempt.
        Conflict: The attempt is over.
        LeaseHeld: The job changed in between: try again.
    """
    seen = await _attempt(job_id, token, deps)
    if seen.spec.kind == JobKind.TRAINING:
        return await _claim_training(seen, token, deps)
    job = await _claim(seen, token, seen.checkpoint, deps)
    return Assignment(
        job_id=job_id, attempt=job.attempt, kind=job.spec.kind, step=job.saved_step, total=job.total,
        checkpoint_every=job.spec.checkpoint_every, heartbeat_s=deps.heartbeat_s,
        dataset=await _dataset(job, deps),
        dataset_offset=job.checkpoint.dataset_offset if job.checkpoint else 0,
        model=job.spec.model, parameters=job.spec.parameters,
    )  # fmt: skip


async def _claim_training(seen: Job, token: str, deps: JobDeps) -> Assignment:
    resume = await checkpoint_retention.resume_from(seen, deps)
    checkpoint, manifest = resume or (None, None)
    job = await _claim(seen, token, checkpoint, deps)
    return Assignment(
        job_id=job.job_id, attempt=job.attempt, kind=job.spec.kind, step=job.saved_step, total=job.total,
        checkpoint_every=job.spec.checkpoint_every, heartbeat_s=deps.heartbeat_s,
        dataset=None, dataset_offset=0,
        model=job.spec.model, parameters=job.spec.parameters, task=job.spec.task,
        inputs=await _inputs(job, token, manifest, deps), checkpoint_s=worker_reports.checkpoint_s(job),
    )  # fmt: skip


async def _claim(seen: Job, token: str, checkpoint: Checkpoint | None, deps: JobDeps) -> Job:
    """Write the checkpoint that the attempt starts from: the job's, or an older one if that one does not verify."""

    def decide(job: Job) -> Transition:
        now = deps.clock.now()
        lease = replace(authorise(job, token), until=now + timedelta(seconds=state_machine.LEASE_S))
        reason, changes = "", dict[str, Any]()
        if job.spec.kind == JobKind.TRAINING and job.checkpoint != seen.checkpoint:
            raise LeaseHeld(f"Job {job.job_id} has a newer checkpoint by now. Claim again.", retry_after_s=1)
        if checkpoint != seen.checkpoint:
            step = checkpoint.step if checkpoint else 0
            reason = f"checkpoint {job.saved_step} is torn; attempt {job.attempt} begins at step {step}"
            lease, changes = replace(lease, resumed_step=step), {"checkpoint": checkpoint, "step": step}
        elif job.state is not JobState.RUNNING:
            reason = f"attempt {job.attempt} begins at step {job.saved_step}"
        changes = {"step": job.saved_step, **changes}
        return _live(job, state_machine.apply(job, Trigger.CLAIMED, now=now, reason=reason, lease=lease, **changes))

    transition = await change(deps, seen.job_id, decide)
    if transition is None:
        raise AssertionError("a claim is decided or refused")
    return transition.job


async def inputs(job_id: str, token: str, deps: JobDeps) -> SignedRequest | TrainingInputs:
    """Sign the inputs again after the first requests expired: a batch's dataset, or a training's inputs."""
    job = await _attempt(job_id, token, deps)
    if job.spec.kind != JobKind.TRAINING:
        return await _dataset(job, deps)
    made = await checkpoints.read_manifest(job.checkpoint.manifest_uri, deps) if job.checkpoint else None
    return await _inputs(job, token, made[0] if made else None, deps)


async def _dataset(job: Job, deps: JobDeps) -> SignedRequest:
    if job.dataset is None:
        raise Conflict("The job has no dataset.")
    return await deps.objects.sign_get(job.dataset.uri, generation=job.dataset.generation)


async def _inputs(job: Job, token: str, manifest: Manifest | None, deps: JobDeps) -> TrainingInputs:
    """Sign reads of the input, as it was when the job was accepted, and of the checkpoint's files."""
    files = []
    if job.dataset is not None:
        dataset = job.dataset
        facts = await deps.objects.stat(dataset.uri)
        if facts is None or facts.generation != dataset.generation:
            reason = f"{dataset.uri} is gone or was replaced since the job was accepted"
            await _end(job.job_id, token, Trigger.BROKEN, reason, deps)
            raise Conflict(reason, code=OVER)
        request = await deps.objects.sign_get(dataset.uri, generation=dataset.generation)
        name = training.input_name(dataset.uri)
        files.append(InputFile(name=name, size=facts.size, crc32c=facts.crc32c, sha256=None, grant=request))
    saved = [
        InputFile(
            name=file.name, size=file.size, crc32c=file.crc32c, sha256=file.sha256 or None,
            grant=await deps.objects.sign_get(file.uri, generation=file.generation),
        )
        for file in (manifest.files if manifest else ())
    ]  # fmt: skip
    return TrainingInputs(files=tuple(files), checkpoint=tuple(saved))


async def heartbeat(
    job_id: str, token: str, step: int, deps: JobDeps, *, told: WorkerReport | None = None
) -> HeartbeatReply:
    """Extend the attempt lease and store the worker report.

    Args:
        job_id: The job.
        token: The attempt's token.
        step: Steps or items done, as the agent reports.
        deps: Dependencies of the services.
        told: The rest of the report; None: there is none.

    Raises:
        Forbidden: The caller is not the current attempt.
        Conflict: The attempt is over: stop.
        InvalidReport: A number in the report is impossible.
    """
    seen, told = await _attempt(job_id, token, deps), told or WorkerReport()
    renewed = False

    def decide(job: Job) -> Transition:
        nonlocal renewed
        now = deps.clock.now()
        lease = authorise(job, token)
        until = now + timedelta(seconds=state_machine.LEASE_S)
        changes: dict[str, Any] = {"step": max(job.step, step)}
        if job.spec.kind == JobKind.BATCH:
            renewed = lease.key_until is None or lease.key_until - now < KEY_LIFE / 2
            lease = replace(lease, until=until, key_until=now + KEY_LIFE if renewed else lease.key_until)
            changes["step"] = min(changes["step"], job.dataset.items if job.dataset else step)
        else:
            lease = replace(lease, until=until)
            changes["told_total"] = told.total or job.told_total
            changes["progress"] = Progress(
                at=now, step=step, loss=told.loss, steps_per_s=told.steps_per_s, gpu_share=told.gpu_share,
                gpu_errors=told.gpu_errors, save_s=told.save_s,
            )  # fmt: skip
        transition = _live(job, state_machine.apply(job, Trigger.BEAT, now=now, lease=lease, **changes))
        if (lie := worker_reports.why_impossible(job, step, told)) is not None:
            raise InvalidReport(lie)
        return transition

    async with _believing(seen, deps):
        transition = await change(deps, job_id, decide)
    if transition is None:
        raise AssertionError("a heartbeat is decided or refused")
    job = transition.job
    if renewed and job.lease and job.lease.key_until:
        await owners.open_key(job, job.lease.token_sha256, job.lease.key_until, deps)
    return HeartbeatReply(
        state=job.state, stop=job.stop.reason if job.stop else None, checkpoint_s=worker_reports.checkpoint_s(job)
    )


async def begin_checkpoint(
    job_id: str, token: str, step: int, files: Sequence[Artifact], deps: JobDeps
) -> tuple[str, Mapping[str, SignedRequest]]:
    """Sign the uploads of a step's files; see `checkpoints.begin`."""
    job = await _attempt(job_id, token, deps)
    async with _believing(job, deps):
        return await checkpoints.begin(job, step, files, deps)


async def commit_checkpoint(
    job_id: str, token: str, step: int, previous_step: int, upload_id: str, files: Sequence[Artifact], deps: JobDeps,
    *, loss: float | None = None,
) -> Checkpoint:  # fmt: skip
    """Verify and publish a checkpoint; see `checkpoints.commit`. For a training, delete old ones then."""
    job = await _attempt(job_id, token, deps)
    async with _believing(job, deps):
        saved = await checkpoints.commit(job, step, previous_step, upload_id, files, deps, loss=loss)
    if job.spec.kind == JobKind.TRAINING:
        await checkpoint_retention.prune(job, step, deps)
    return saved


async def log_piece(job_id: str, token: str, number: int, *, size: int, crc32c: str, deps: JobDeps) -> SignedRequest:
    """Sign the upload of one piece of the attempt's log; see `attempt_logs.sign_piece`."""
    job = await _attempt(job_id, token, deps)
    if job.state is not JobState.RUNNING:
        raise Conflict(f"The attempt is over: the job is {job.state}. Stop it.", code=OVER)
    return await attempt_logs.sign_piece(job_id, job.attempt, number, size=size, crc32c=crc32c, deps=deps)


async def finish(job_id: str, token: str, deps: JobDeps, *, step: int = 0) -> Job:
    """Finish the job: all work is done and checkpointed. Safe to repeat.

    Args:
        job_id: The job.
        token: The attempt's token.
        deps: Dependencies of the services.
        step: Last step of a training, which must be checkpointed; a batch's is its dataset's last item.

    Raises:
        Forbidden: The caller is not the current attempt.
        Conflict: The attempt is over, or the last step is not checkpointed.
    """
    job = await _attempt(job_id, token, deps)
    if job.state in (JobState.FINISHING, JobState.SUCCEEDED):
        return job
    batch = job.spec.kind == JobKind.BATCH
    total = (job.dataset.items if job.dataset else 0) if batch else max(step, job.saved_step, 1)
    await _catch_up(job, total, deps)

    def decide(job: Job) -> Transition:
        authorise(job, token)
        if job.saved_step < total:
            raise Conflict(
                f"Step {total} is not checkpointed; the last checkpoint is step {job.saved_step}. Save it first."
            )
        reason = f"all {total} items are done" if batch else f"the training is done at step {total}"
        changes: dict[str, Any] = {} if batch else {"told_total": total, "step": total}
        return _live(job, state_machine.apply(job, Trigger.FINISHED, now=deps.clock.now(), reason=reason, **changes))

    transition = await change(deps, job_id, decide)
    return transition.job if transition else job


async def _catch_up(job: Job, step: int, deps: JobDeps) -> None:
    """Take over the attempt's checkpoint of this step if its manifest exists: its event may still be under way.

    The manifest is the proof, so the host's word is not relied on.
    """
    uri = manifest_uri(deps.bucket, job.job_id, step, job.attempt)
    if job.saved_step < step and await deps.objects.stat(uri) is not None:
        event = CheckpointSaved(job_id=job.job_id, attempt=job.attempt, step=step, manifest_uri=uri)
        await checkpoints.note(event, deps)


async def withdraw(job_id: str, token: str, said: str, deps: JobDeps, *, step: int = 0) -> Job:
    """End the attempt because its host is being taken away; the job is placed again at once. Safe to repeat.

    Args:
        job_id: The job.
        token: The attempt's token.
        said: The reason, in the host's words.
        deps: Dependencies of the services.
        step: The step that the host committed last; the next attempt starts there.
    """
    job = await _attempt(job_id, token, deps)
    await _catch_up(job, step, deps)
    return await _end(job_id, token, Trigger.WITHDRAWN, said or "the host was taken away", deps)


async def fail(job_id: str, token: str, said: str, deps: JobDeps) -> Job:
    """Fail the job: the attempt met an error that no other attempt can fix. Safe to repeat."""
    if not said:
        raise InvalidRequest("A failure needs a reason.", param="reason")
    await _attempt(job_id, token, deps)
    return await _end(job_id, token, Trigger.BROKEN, said, deps)


async def _end(job_id: str, token: str, trigger: Trigger, said: str, deps: JobDeps) -> Job:
    ended: list[Job] = []

    def decide(job: Job) -> Transition | None:
        authorise(job, token)
        if job.state is JobState.PREEMPTED or job.state in ENDED:
            ended.append(job)
            return None
        return _live(job, state_machine.apply(job, trigger, now=deps.clock.now(), reason=redact(said)[:SAID_MAX]))

    transition = await change(deps, job_id, decide)
    if transition is None:
        return ended[-1]
    await act(transition, deps)
    return transition.job
