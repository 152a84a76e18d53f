"""Serve every function in one local process, each loaded by functions-framework as Google loads it.

In production each function is a service of its own; here they share a port. HTTP functions answer at the paths in
`cloud.json`. All functions answer at `/fn/<name>/`, where Pub/Sub pushes and Cloud Scheduler call.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from goblin.cli import paths as places
from goblin.cli.loading import load_all

DRAIN_S = 9
"""Cloud Run gives ten seconds between SIGTERM and SIGKILL."""


class Host:
    """ASGI app that sends each request to its function: `/fn/<name>/…` by name, else by the longest declared path."""

    def __init__(self, functions: Mapping[str, ASGIApp], paths: Mapping[str, str]) -> None:
        self._functions = functions
        self._paths = sorted(paths.items(), key=lambda item: -len(item[0]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if path.startswith("/fn/"):
            name, _, rest = path.removeprefix("/fn/").partition("/")
            scope = {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode()}
        else:
            name = next((n for prefix, n in self._paths if path == prefix or path.startswith(f"{prefix}/")), "")
            name = name or dict(self._paths).get("/", "")
        function = self._functions.get(name)
        if function is None:
            error = {"message": f"No function answers {path}.", "type": "invalid_request_error"}
            body = {"error": {**error, "param": None, "code": "not_found"}}
            await JSONResponse(body, status_code=404)(scope, receive, send)
            return
        await function(scope, receive, send)


def build(folder: Path, declaration: Path) -> Host:
    """Load the functions and map the declared paths to them."""
    functions = load_all(folder)
    http = json.loads(declaration.read_text())["http"]
    paths = {path: name for name, said in http.items() for path in said["paths"] if name in functions}
    return Host(functions, paths)


def main() -> None:
    """Serve the functions until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m goblin.cli.host")
    parser.add_argument("--port", type=int, required=True)
    said = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    uvicorn.run(
        build(places.functions_folder(), places.declaration()), host="127.0.0.1", port=said.port, lifespan="off",
        log_level="warning", access_log=False, timeout_graceful_shutdown=DRAIN_S,
    )  # fmt: skip


if __name__ == "__main__":
    main()
