"""Serve every function in one local process, each loaded by functions-framework as Google loads it.

In production each function is a service of its own; here they share a port. HTTP functions answer at the paths in
`cloud.json`. All functions answer at `/fn/<name>/`, where Pub/Sub pushes and Cloud Scheduler call. Functions for them
stand behind Cloud Run's front end here too: it refuses callers that are not invited and removes the token's signature.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import httpx
import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from goblin.cli import paths as places
from goblin.cli.loading import load_all
from goblin.wiring.settings import BadConfiguration, Settings
from httpguard import LOOPBACK, Guard
from httpguard.protocol import Protocol
from localcloud.front_end import FrontEnd, Refused

log = logging.getLogger(__name__)

EVERY_OTHER = "/*"
CERTS_S_MAX = 5.0
DRAIN_S = 9
"""Cloud Run gives ten seconds between SIGTERM and SIGKILL."""


class Host:
    """ASGI app that sends each request to its function: `/fn/<name>/…` by name, else by the longest declared path.

    `/` is one page. `/*` is every path that no other function has: an unknown one is answered as at that function's own
    host in production.
    """

    def __init__(
        self,
        functions: Mapping[str, ASGIApp],
        paths: Mapping[str, str],
        *,
        front_end: FrontEnd | None = None,
        url: str = "",
    ) -> None:
        """Keep the functions.

        Args:
            functions: By file name.
            paths: Declared path to file name. These functions are public; the others are called at `/fn/<name>/`.
            front_end: Admits callers of functions that are not public; None: beside an emulator that sends no tokens.
            url: Where the functions are reached; a function's own URL is `{url}/fn/{name}`.
        """
        self._functions = functions
        self._rest = paths.get(EVERY_OTHER, "")
        declared = ((path, name) for path, name in paths.items() if path != EVERY_OTHER)
        self._paths = sorted(declared, key=lambda item: -len(item[0]))
        self._public = frozenset(paths.values())
        self._front_end = front_end
        self._url = url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if path.startswith("/fn/"):
            name, _, rest = path.removeprefix("/fn/").partition("/")
            scope = {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode()}
        else:
            under = (
                n for prefix, n in self._paths if path == prefix or (prefix != "/" and path.startswith(f"{prefix}/"))
            )
            name = next(under, self._rest)
        function = self._functions.get(name)
        if function is None:
            error = {"message": f"No function answers {path}.", "type": "invalid_request_error"}
            body = {"error": {**error, "param": None, "code": "not_found"}}
            await JSONResponse(body, status_code=404)(scope, receive, send)
            return
        if self._front_end is not None and name not in self._public:
            admitted = await self._front_end.admit(scope["headers"], audience=f"{self._url}/fn/{name}")
            if isinstance(admitted, Refused):
                log.warning("%s refused a caller: %s", name, admitted.reason)
                await admitted.response()(scope, receive, send)
                return
            scope = {**scope, "headers": admitted}
        await function(scope, receive, send)


def build(
    folder: Path, declaration: Path, *, only: Collection[str] = (), front_end: FrontEnd | None = None, url: str = ""
) -> Host:
    """Load the functions and map the declared paths to them.

    Args:
        folder: The functions' files.
        declaration: `cloud.json`.
        only: File names of the functions to serve; empty: all.
        front_end: As of `Host`.
        url: As of `Host`.
    """
    functions = {name: app for name, app in load_all(folder).items() if not only or name in only}
    http = json.loads(declaration.read_text())["http"]
    paths = {path: name for name, said in http.items() for path in said["paths"] if name in functions}
    return Host(functions, paths, front_end=front_end, url=url)


def _front_end() -> FrontEnd | None:
    """Build the check that Cloud Run makes in front of private functions, from what `goblin up` set."""
    certs_url, invoker = os.environ.get("GOBLIN_OIDC_CERTS_URL", ""), os.environ.get("GOBLIN_INVOKER_EMAIL", "")
    if os.environ.get("GOBLIN_VERIFY_CALLER") != "iam" or not certs_url:
        return None
    client = httpx.AsyncClient(trust_env=False, timeout=CERTS_S_MAX)
    kept: dict[str, str] = {}

    async def certificates() -> Mapping[str, str]:
        # The local cloud never rotates its keys, so one answer is enough.
        if not kept:
            kept.update((await client.get(certs_url)).raise_for_status().json())
        return kept

    return FrontEnd(certificates, invokers=[invoker])


def _origins() -> frozenset[str]:
    """Return the origins whose pages may call; none if they are misspelled, which each function reports."""
    try:
        return Settings.from_env().origins()
    except BadConfiguration:
        return frozenset()


def main() -> None:
    """Serve the functions until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m goblin.cli.host")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--only", default="", help="File names of the functions to serve, with commas. Default: all.")
    said = parser.parse_args()
    host = build(
        places.functions_folder(), places.declaration(), only=[name for name in said.only.split(",") if name],
        front_end=_front_end(), url=os.environ.get("GOBLIN_JOBS_URL") or os.environ.get("GOBLIN_URL", ""),
    )  # fmt: skip
    uvicorn.run(
        # A browser on this machine reaches the port too, but only the console's own page and listed origins may ask.
        Guard(host, hosts=LOOPBACK, origins=_origins()), host="127.0.0.1", port=said.port, lifespan="off",
        http=Protocol, ws="none",
        # No log format of uvicorn's own: the functions have set up the one that production has, in goblin.web.logs.
        log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=DRAIN_S,
    )  # fmt: skip


if __name__ == "__main__":
    main()
