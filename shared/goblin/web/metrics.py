"""Metrics for operators' dashboards, in Prometheus text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

# The `_created` gauge of each series, which says when it was first seen, would double what is scraped.
disable_created_metrics()  # type: ignore[no-untyped-call]

MEDIA_TYPE = CONTENT_TYPE_LATEST
# From a warm small model to a cold start of a large one.
_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_LABELS = ("provider", "model", "outcome")


class PrometheusMeter:
    """Metrics of this process; the scraper adds up the processes."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "inference_requests", "Inference requests that have ended.", _LABELS, registry=self._registry
        )
        self._latency = Histogram(
            "inference_latency_seconds",
            "From arrival to the last token.",
            _LABELS,
            registry=self._registry,
            buckets=_BUCKETS_S,
        )
        self._errors = Counter("provider_errors", "Attempts that an endpoint failed.", _LABELS, registry=self._registry)

    def request(self, *, provider: str, model: str, outcome: str, duration_s: float) -> None:
        self._requests.labels(provider, model, outcome).inc()
        self._latency.labels(provider, model, outcome).observe(duration_s)

    def provider_error(self, *, provider: str, model: str, outcome: str) -> None:
        self._errors.labels(provider, model, outcome).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)
