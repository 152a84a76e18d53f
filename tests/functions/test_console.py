"""The page: what it shows, what it must never show, and that names from outside stay text."""

from datetime import UTC, datetime, timedelta

from goblin.gateway.domain.endpoint_health import EndpointHealth, Status
from goblin.web import pages

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def health(name: str, **details: object) -> EndpointHealth:
    return EndpointHealth(endpoint=name, provider="llamacpp", **{"status": Status.HEALTHY, **details})


def test_shows_each_endpoint_with_its_status_and_reason() -> None:
    page = pages.status(
        {
            "gcp_llamacpp": health("gcp_llamacpp", latency_ms=45, models=("m",), checked_at=NOW - timedelta(seconds=7)),
            "gcp_ollama": health("gcp_ollama", status=Status.UNHEALTHY, reason="no connection"),
        },
        now=NOW,
        base_url="http://here",
    )
    for said in ("gcp_llamacpp", "45 ms", "7 s ago", "gcp_ollama", "unhealthy", "no connection", "http://here/v1"):
        assert said in page


def test_says_what_to_do_when_nothing_is_configured() -> None:
    assert "LLAMACPP_URL" in pages.status({}, now=NOW, base_url="http://here")


def test_a_name_from_outside_stays_text() -> None:
    evil = "<script>alert(1)</script>"
    page = pages.status({"e": health("e", models=(evil,), reason=evil)}, now=NOW, base_url=evil)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
