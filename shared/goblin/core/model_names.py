"""Lists of model names that limit what a key, or a job, may ask."""

from __future__ import annotations

from collections.abc import Collection


def allows(names: Collection[str] | None, model: str) -> bool:
    """Return whether a list allows a model. `org/*` means all that begin with `org/`; None allows every model."""
    if names is None:
        return True
    return any(model.startswith(name[:-1]) if name.endswith("*") else model == name for name in names)
