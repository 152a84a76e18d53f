"""Provider adapters: one folder per provider, found by its name, with `inference`, `compute`, `billing` as needed."""

from __future__ import annotations

from pathlib import Path


def having(part: str) -> list[str]:
    """List the providers that have a part, such as `inference` or `billing`, in alphabetical order."""
    return sorted(file.parent.name for folder in __path__ for file in Path(folder).glob(f"*/{part}.py"))
