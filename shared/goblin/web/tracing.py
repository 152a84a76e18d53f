"""OpenTelemetry: a trace of each request and its attempts, and the `gen_ai.*` metrics, through standard exporters.

Off unless `OTEL_TRACES_EXPORTER` or `OTEL_METRICS_EXPORTER` names an exporter; imported only then. Everything is
recorded after a request has ended, so that it costs no time while the request runs. No prompts or answers are sent.

Source: the GenAI semantic conventions of opentelemetry-semantic-conventions 0.66b2, read 2026-11-25.
"""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from goblin.core.errors import Broken
from goblin.gateway.ports import AttemptRecord, Receipt

SCOPE = "goblin.gateway"
NS_PER_MS = 1_000_000
_OPERATIONS = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}
_TOKENS = tuple(4**n for n in range(14))
_SECONDS = tuple(0.01 * 2**n for n in range(14))
_WELL = ("ok", "left", "lost", "replayed")
"""Outcomes that are not errors."""


def connect(*, traces: str, metrics: str, service: str) -> Telemetry:
    """Set up exporters by their OpenTelemetry names: `otlp`, `console`, `none`.

    Args:
        traces: Name of the exporter for traces; empty or `none` for no traces.
        metrics: Name of the exporter for metrics; empty or `none` for no metrics.
        service: The value of `service.name`.

    Raises:
        Broken: There is no such exporter.
    """
    resource = Resource.create({"service.name": service})
    tracers = SdkTracerProvider(resource=resource)
    if traces not in ("", "none"):
        exporter = _exporter("opentelemetry_traces_exporter", traces)
        tracers.add_span_processor(BatchSpanProcessor(exporter()))
    readers: list[MetricReader] = []
    if metrics not in ("", "none"):
        made = _exporter("opentelemetry_metrics_exporter", metrics)()
        readers.append(made if isinstance(made, MetricReader) else PeriodicExportingMetricReader(made))
    return Telemetry(tracers, SdkMeterProvider(metric_readers=readers, resource=resource))


def _exporter(group: str, name: str) -> Any:
    for found in entry_points(group=group, name=name):
        return found.load()
    raise Broken(f"There is no OpenTelemetry exporter {name!r}. For otlp, pip install 'gpu-goblin[telemetry]'.")


class Telemetry:
    """OpenTelemetry as a `Tracer`."""

    def __init__(self, tracers: TracerProvider, meters: MeterProvider) -> None:
        self._tracer = tracers.get_tracer(SCOPE)
        self._parents = TraceContextTextMapPropagator()
        meter = meters.get_meter(SCOPE)
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Tokens of a request, input and output.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._attempt_s = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="One attempt at one endpoint.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._request_s = meter.create_histogram(
            "gen_ai.server.request.duration",
            unit="s",
            description="From arrival to the last token.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._first_token_s = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            unit="s",
            description="From the start of an attempt to its first token.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )

    def request(self, record: Receipt, *, traceparent: str | None, model_label: str) -> None:
        self._trace(record, traceparent)
        self._measure(record, model_label)

    def _trace(self, record: Receipt, traceparent: str | None) -> None:
        parent = self._parents.extract({"traceparent": traceparent} if traceparent else {})
        began = _ns(record.created_at)
        span = self._tracer.start_span(
            f"{_operation(record)} {record.model}",
            context=parent,
            kind=SpanKind.SERVER,
            start_time=began,
            attributes={
                "gen_ai.operation.name": _operation(record),
                "gen_ai.request.model": record.model,
                "gen_ai.request.stream": record.stream,
                "gen_ai.usage.input_tokens": record.prompt_tokens,
                "gen_ai.usage.output_tokens": record.completion_tokens,
                "goblin.request_id": record.request_id,
                "goblin.key": record.key_name,
                "goblin.strategy": record.strategy,
                "goblin.endpoint": record.provider or "none",
                "goblin.attempts": len(record.attempts),
                "goblin.usage_estimated": record.usage_estimated,
            },
        )
        _mark(span, record.outcome)
        inside = trace.set_span_in_context(span, parent)
        for attempt in record.attempts:
            self._trace_attempt(record, attempt, inside, began)
        span.end(began + record.duration_ms * NS_PER_MS)

    def _trace_attempt(self, record: Receipt, attempt: AttemptRecord, inside: Any, began: int) -> None:
        start = began + attempt.began_ms * NS_PER_MS
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": _operation(record),
            "gen_ai.request.model": record.model,
            "gen_ai.provider.name": attempt.endpoint,
            "goblin.reason": attempt.reason,
        }
        if attempt.first_token_ms is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = attempt.first_token_ms / 1000
        span = self._tracer.start_span(
            f"{_operation(record)} {record.model}",
            context=inside,
            kind=SpanKind.CLIENT,
            start_time=start,
            attributes=attributes,
        )
        _mark(span, attempt.outcome)
        span.end(start + (attempt.duration_ms or 0) * NS_PER_MS)

    def _measure(self, record: Receipt, model: str) -> None:
        common: dict[str, str] = {"gen_ai.operation.name": _operation(record), "gen_ai.request.model": model}
        served = common | {"gen_ai.provider.name": record.provider or "none"}
        for kind, count in (("input", record.prompt_tokens), ("output", record.completion_tokens)):
            if count:
                self._tokens.record(count, served | {"gen_ai.token.type": kind})
        failed = {} if record.outcome in _WELL else {"error.type": "error"}
        self._request_s.record(record.duration_ms / 1000, served | failed)
        for attempt in record.attempts:
            asked = common | {"gen_ai.provider.name": attempt.endpoint}
            # An attempt's outcome is one of our faults, so there are few series; a request's may be a provider's text.
            error = {} if attempt.outcome in _WELL else {"error.type": attempt.outcome}
            self._attempt_s.record((attempt.duration_ms or 0) / 1000, asked | error)
            if attempt.first_token_ms is not None:
                self._first_token_s.record(attempt.first_token_ms / 1000, asked)


def _operation(record: Receipt) -> str:
    return _OPERATIONS.get(record.operation, record.operation)


def _mark(span: trace.Span, outcome: str) -> None:
    if outcome not in _WELL:
        span.set_attribute("error.type", outcome)
        span.set_status(Status(StatusCode.ERROR))
    elif outcome != "ok":
        span.set_attribute("goblin.outcome", outcome)


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000
