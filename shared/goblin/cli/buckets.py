"""Files into the bucket, for commands."""

from __future__ import annotations

from pathlib import Path


def create(uri: str, file: Path) -> None:
    """Upload a file under a name that is free.

    Raises:
        PreconditionFailed: Something lies there; or any other of Google's errors.
    """
    from google.cloud import storage

    bucket, _, name = uri.removeprefix("gs://").partition("/")
    client = storage.Client()
    try:
        client.bucket(bucket).blob(name).upload_from_filename(str(file), if_generation_match=0)
    finally:
        client.close()
