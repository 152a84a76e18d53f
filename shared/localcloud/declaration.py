"""The declaration: composite indexes, time-to-live fields and schedules that the local cloud must know in advance.

It is the JSON file that Terraform reads for production. Topics are not in it: clients create them, as in production.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localcloud.firestore.indexes import CompositeIndex, Declared, Exemption
from localcloud.firestore.ttl import TtlField
from localcloud.scheduler import Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """The parts of the declaration that the server applies."""

    indexes: Sequence[Declared] = ()
    """Composite indexes, and what has no automatic ones: `unindexed` collections and TTL fields."""
    ttl: Sequence[TtlField] = ()
    schedules: Sequence[Schedule] = ()


def read(path: Path | None, *, functions_url: str | None, every_s: Mapping[str, int] | None = None) -> Declaration:
    """Read the declaration file.

    Args:
        path: The file. None declares nothing.
        functions_url: The base URL of the scheduled functions, each at `/fn/<name>/`. None runs no schedule.
        every_s: Schedules that run every so many seconds instead, counted from each full minute.

    Raises:
        ValueError: The file is malformed; the message names the file and the place.
    """
    if path is None:
        return Declaration()
    try:
        said = json.loads(path.read_text())
        every_s = every_s or {}
        if unknown := every_s.keys() - said.get("schedules", {}).keys():
            raise ValueError(f"{path}: there is no schedule {', '.join(sorted(unknown))}. Declare it first.")
        schedules = [
            Schedule(
                name=name,
                cron=f"*/{every_s[name]} * * * * *" if name in every_s else schedule["schedule"],
                url=f"{functions_url}/fn/{schedule['function']}/",
                audience=f"{functions_url}/fn/{schedule['function']}",
                attempt_deadline_s=schedule["attempt_deadline_s"],
            )
            for name, schedule in said.get("schedules", {}).items()
        ]
        ttl = [TtlField.parse(field) for field in said.get("ttl", [])]
        return Declaration(
            indexes=[
                *(CompositeIndex.parse(index) for index in said.get("indexes", [])),
                *(Exemption(collection) for collection in said.get("unindexed", [])),
                # Terraform gives TTL fields no index: an instant that grows limits how fast documents are written.
                *(Exemption(one.collection, one.field) for one in ttl),
            ],
            ttl=ttl,
            schedules=schedules if functions_url else (),
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: {type(error).__name__} {error}") from error
