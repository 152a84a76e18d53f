"""One folder a provider, found by its name: inference, compute, billing and api, as the provider has them."""

from __future__ import annotations

from pathlib import Path


def having(part: str) -> list[str]:
    """The names of the providers that have a part, such as `inference` or `billing`, in alphabetical order."""
    return sorted(file.parent.name for folder in __path__ for file in Path(folder).glob(f"*/{part}.py"))
