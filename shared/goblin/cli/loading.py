"""Load function files as functions-framework does on Google's machines."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from functions_framework import _function_registry, aio
from starlette.types import ASGIApp


def load(source: Path) -> ASGIApp:
    """Load one function file; its target has the file's name, or `on_` and that name for events.

    Raises:
        ImportError: The file does not register a function of that name.
    """
    name = source.stem
    spec = importlib.util.spec_from_file_location(f"functions.{name}", source)
    if spec is None or spec.loader is None:
        raise ImportError(f"Cannot load {source}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    registered = _function_registry.REGISTRY_MAP
    target = next((t for t in (name, f"on_{name}") if t in registered and hasattr(module, t)), None)
    if target is None:
        raise ImportError(f"{source.name} registers no function named {name} or on_{name}.")
    # `create_asgi_app` would run the file again for each call and change the environment.
    app: ASGIApp = aio.create_asgi_app_from_module(target, str(source), registered[target], module, None)
    return app


def load_all(folder: Path) -> dict[str, ASGIApp]:
    """Load every function file of the folder; return the apps by name."""
    return {file.stem: load(file) for file in sorted(folder.glob("*.py")) if not file.stem.startswith("_")}
