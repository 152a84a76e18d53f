"""A training job's data: the input before, the result at the end."""

from __future__ import annotations

from goblin.domain.checkpoints import Manifest
from goblin.domain.jobs import Dataset, Job
from goblin.job_ports import ObjectFacts
from goblin.services.batch import OWNER, Rejected
from goblin.services.jobs import JobDeps

INPUT_BYTES_MAX = 200 * 1024**3


async def check_inputs(job: Job, deps: JobDeps) -> Dataset | Rejected | None:
    """Look at the input as it is now: another object under its name is not read. None: the job has none."""
    uri = job.spec.dataset_uri
    if uri is None:
        return None
    facts = await deps.objects.stat(uri)
    if facts is None:
        return Rejected(reason=f"there is no {uri}")
    if facts.size > INPUT_BYTES_MAX:
        return Rejected(reason=f"{uri} has {facts.size} bytes; the limit is {INPUT_BYTES_MAX}")
    return Dataset(uri=uri, generation=facts.generation, size=facts.size, items=0)


async def write_output(job: Job, manifest: Manifest, deps: JobDeps) -> Rejected | None:
    """Copy the last checkpoint's files below the output, create-only; done already is done.

    Without an output the checkpoint is the result.
    """
    if job.spec.output_uri is None:
        return None
    owner = {OWNER: job.job_id}
    for file in manifest.files:
        source = ObjectFacts(uri=file.uri, generation=file.generation, size=file.size, crc32c=file.crc32c)
        uri = f"{job.spec.output_uri}/{file.name}"
        made = await deps.objects.compose([source], uri, metadata=owner) or await deps.objects.stat(uri)
        if (
            made is None
            or (made.size, made.crc32c) != (file.size, file.crc32c)
            or made.metadata.get(OWNER) != job.job_id
        ):
            return Rejected(reason=f"{uri} exists and is not this job's output")
    return None
