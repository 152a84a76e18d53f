"""Data of a batch job: check the dataset, verify each part of the output, compose the output at the end."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from goblin.core import decoding
from goblin.core.errors import Broken, Conflict, NotFound
from goblin.core.ports import ObjectFacts
from goblin.jobs import owners
from goblin.jobs.domain import batch
from goblin.jobs.domain.batch import BatchResult, LineSplitter, MalformedItem
from goblin.jobs.domain.checkpoints import Checkpoint, Manifest, StoredArtifact, folder
from goblin.jobs.domain.job import Dataset, Job
from goblin.jobs.lifecycle import JobDeps
from goblin.jobs.policy.owners import OWNER, TENANT

SOURCES_MAX = 32
"""Objects that Cloud Storage composes in one request at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedInput:
    """The reason why a job's input or output cannot be used."""

    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedPart:
    """What a part of the output brings its job to."""

    dataset_offset: int
    """Bytes of the dataset up to the end of the part's last item."""
    failed_items: int
    """Items up to there whose result is an error."""


async def check_dataset(job: Job, deps: JobDeps) -> Dataset | RejectedInput:
    """Read and check the whole dataset once, before any instance is rented for it."""
    uri, output_uri = job.spec.dataset_uri, job.spec.output_uri
    if uri is None or output_uri is None:
        return RejectedInput(reason="a batch job needs dataset_uri and output_uri")
    if await deps.objects.stat(output_uri) is not None:
        return RejectedInput(reason=f"{output_uri} exists; an output is never overwritten, choose another output_uri")
    facts = await owners.input_of(uri, job, deps)
    if facts is None:
        return RejectedInput(reason=f"{uri} does not exist; upload the dataset first")
    if facts.size > batch.DATASET_BYTES_MAX:
        return RejectedInput(reason=f"{uri} has {facts.size} bytes; the limit is {batch.DATASET_BYTES_MAX}")
    check = batch.DatasetCheck(default_model=job.spec.model, allowed=job.owner.models)
    try:
        async with aclosing(deps.objects.read(uri, generation=facts.generation)) as chunks:
            async for chunk in chunks:
                check.feed(chunk)
        check.close()
    except MalformedItem as error:
        return RejectedInput(reason=f"{uri}: {error}")
    except NotFound:
        return RejectedInput(reason=f"{uri} changed while it was read")
    return Dataset(
        uri=uri, generation=facts.generation, size=facts.size, items=check.items, models=tuple(sorted(check.models))
    )


async def verify_part(
    job: Job, part: ObjectFacts, sha256: str, previous: Checkpoint | None, step: int, deps: JobDeps
) -> VerifiedPart:
    """Compare a part of the output with the dataset: it must have one result for each item, in order.

    Raises:
        Conflict: The part does not have its digest, or does not hold the results of these items.
    """
    dataset = job.dataset
    if dataset is None:
        raise Conflict("the job has no dataset")
    done, offset, failed = (previous.step, previous.dataset_offset, previous.failed_items) if previous else (0, 0, 0)
    digest = hashlib.sha256()
    end = 0
    part_chunks = _hashed(deps.objects.read(part.uri, generation=part.generation), digest)
    rest = deps.objects.read(dataset.uri, generation=dataset.generation, start=offset)
    async with (
        aclosing(_lines(part_chunks, batch.RESULT_BYTES_MAX, terminated=True)) as results,
        aclosing(_lines(rest, batch.LINE_BYTES_MAX)) as items,
    ):
        async for number, _, line in results:
            result = _parse_result(line, number)
            item = await anext(items, None)
            if item is None:
                raise Conflict(f"{part.uri} has more results than the dataset has items")
            at, end, request = item
            try:
                wanted = batch.parse_item(request, at).custom_id
            except MalformedItem as error:
                # Not the host's fault: it was accepted by an older version of this program.
                raise Broken(f"{dataset.uri}: {error}.") from error
            if result.custom_id != wanted:
                raise Conflict(f"{part.uri} line {number}: custom_id is {result.custom_id!r}, expected {wanted!r}")
            done += 1
            failed += not result.succeeded
    if done != step:
        raise Conflict(f"{part.uri} ends at item {done}, expected {step}")
    if digest.hexdigest() != sha256:
        raise Conflict(f"{part.uri} does not have the announced sha256")
    return VerifiedPart(dataset_offset=offset + end, failed_items=failed)


def _parse_result(line: bytes, number: int) -> BatchResult:
    result = decoding.decode(line, BatchResult, lambda why: Conflict(f"result line {number}: {why}"))
    if (result.response is None) == (result.error is None):
        raise Conflict(f"result line {number}: it needs either a response or an error")
    return result


async def _hashed(chunks: AsyncGenerator[bytes, None], digest: hashlib._Hash) -> AsyncGenerator[bytes, None]:
    async with aclosing(chunks):
        async for chunk in chunks:
            digest.update(chunk)
            yield chunk


async def _lines(
    chunks: AsyncGenerator[bytes, None], limit: int, *, terminated: bool = False
) -> AsyncGenerator[tuple[int, int, bytes], None]:
    """Yield lines with their number and the offset after each; with `terminated` the last one needs a newline too."""
    lines = LineSplitter(limit=limit)
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                for line in lines.feed(chunk):
                    yield line
            for line in lines.close():
                if terminated:
                    raise MalformedItem(f"line {line[0]} does not end with a newline")
                yield line
    except MalformedItem as error:
        raise Conflict(str(error)) from error


async def write_output(job: Job, manifests: Sequence[Manifest], deps: JobDeps) -> RejectedInput | None:
    """Compose all parts into the output, create-only. Safe to repeat.

    Args:
        job: A job whose items are all checkpointed.
        manifests: Manifests of all its checkpoints, oldest first.
        deps: Where the parts are stored.

    Returns:
        Why there can be no output; None when the output is complete.
    """
    last, output_uri = job.checkpoint, job.spec.output_uri
    if last is None or output_uri is None:
        return RejectedInput(reason="there is no checkpoint to write an output from")
    parts = [_facts(file) for manifest in manifests for file in manifest.files]
    owner = {OWNER: job.job_id, "goblin-manifest-generation": str(last.generation)}
    between: list[ObjectFacts] = []
    level = 0
    try:
        while len(parts) > SOURCES_MAX:
            base = f"{folder(deps.bucket, job.job_id, last.step, last.attempt)}/compose/{level}"
            groups = [parts[i : i + SOURCES_MAX] for i in range(0, len(parts), SOURCES_MAX)]
            parts = [await _join(group, f"{base}-{i:06d}", owner, {}, deps) for i, group in enumerate(groups)]
            between += parts
            level += 1
        await _join(parts, output_uri, owner, {TENANT: job.owner.tenant}, deps)
    except Conflict as error:
        return RejectedInput(reason=error.message)
    for facts in between:
        await deps.objects.delete(facts)
    return None


def _facts(file: StoredArtifact) -> ObjectFacts:
    return ObjectFacts(uri=file.uri, generation=file.generation, size=file.size, crc32c=file.crc32c)


async def _join(
    sources: Sequence[ObjectFacts], uri: str, owner: dict[str, str], more: dict[str, str], deps: JobDeps
) -> ObjectFacts:
    """Compose the objects, or take the result of an earlier, interrupted try: `owner` in its metadata proves it."""
    size = sum(source.size for source in sources)
    made = await deps.objects.compose(sources, uri, metadata=owner | more) or await deps.objects.stat(uri)
    if made is None or made.size != size or any(made.metadata.get(key) != value for key, value in owner.items()):
        raise Conflict(f"{uri} exists and is not this job's output")
    return made
