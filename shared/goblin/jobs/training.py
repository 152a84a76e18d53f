"""Data of a training job: check the input before the start, copy the result at the end."""

from __future__ import annotations

import re

from goblin.core.ports import ObjectFacts
from goblin.jobs import owners
from goblin.jobs.batch import RejectedInput
from goblin.jobs.domain.checkpoints import FILE_NAME, Manifest
from goblin.jobs.domain.job import Dataset, Job
from goblin.jobs.lifecycle import JobDeps
from goblin.jobs.policy.owners import OWNER, TENANT

INPUT_BYTES_MAX = 200 * 1024**3
DISK_SHARE_MAX = 0.9
"""Share of the instance's disk that the input may fill: a checkpoint must fit beside it."""
_NAME = re.compile(FILE_NAME)


async def check_inputs(job: Job, deps: JobDeps) -> Dataset | RejectedInput | None:
    """Check the input and pin its generation: a later object under the same name is not read. None: no input."""
    uri, output_uri = job.spec.dataset_uri, job.spec.output_uri
    if output_uri is not None and await deps.objects.list_from(f"{output_uri}/", f"{output_uri}/"):
        return RejectedInput(
            reason=f"{output_uri}/ is not empty; an output is never overwritten, choose another output_uri"
        )
    if uri is None:
        return None
    facts = await owners.input_of(uri, job, deps)
    if facts is None:
        return RejectedInput(reason=f"{uri} does not exist; upload the dataset first")
    most = min(INPUT_BYTES_MAX, int(job.spec.disk_gib * 1024**3 * DISK_SHARE_MAX))
    if not 0 < facts.size <= most:
        return RejectedInput(
            reason=f"{uri} has {facts.size} bytes; with {job.spec.disk_gib} GiB of disk it may have 1 to {most}"
        )
    return Dataset(uri=uri, generation=facts.generation, size=facts.size, items=0)


def input_name(uri: str) -> str:
    """Return the file name of the input on the host: the last part of its URI, made safe; else `dataset`."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", uri.rpartition("/")[2])[-100:]
    return name if _NAME.match(name) else "dataset"


async def write_output(job: Job, manifest: Manifest, deps: JobDeps) -> RejectedInput | None:
    """Copy the last checkpoint's files below the output, create-only. Safe to repeat.

    A job without an output keeps the checkpoint as its result.
    """
    if job.spec.output_uri is None:
        return None
    owner = {OWNER: job.job_id, TENANT: job.owner.tenant}
    for file in manifest.files:
        source = ObjectFacts(uri=file.uri, generation=file.generation, size=file.size, crc32c=file.crc32c)
        uri = f"{job.spec.output_uri}/{file.name}"
        made = await deps.objects.compose([source], uri, metadata=owner) or await deps.objects.stat(uri)
        if (
            made is None
            or (made.size, made.crc32c) != (file.size, file.crc32c)
            or made.metadata.get(OWNER) != job.job_id
        ):
            return RejectedInput(reason=f"{uri} exists and is not this job's output")
    return None
