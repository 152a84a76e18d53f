"""The status page: plain HTML without scripts, external resources or secrets."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib import resources

import jinja2

from goblin import __version__
from goblin.gateway.domain.endpoint_health import EndpointHealth

HEADERS = {
    # Names of providers and models come from outside: nothing on the page may run or load anything.
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@cache
def _status() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(resources.files(__package__).joinpath("status.html").read_text("utf-8"))


def status(health: Mapping[str, EndpointHealth], *, now: datetime, base_url: str) -> str:
    """Render the status page.

    Args:
        health: The health of each endpoint as the router sees it, by name.
        now: Aware UTC.
        base_url: URL of this deployment, without a slash at the end.
    """
    models = sorted({model for one in health.values() for model in one.models})
    return _status().render(health=health, models=models, now=now, base_url=base_url, version=__version__)
