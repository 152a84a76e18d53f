"""What OpenTelemetry is told of a request, through its own readers and exporters."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from goblin.core.errors import Broken
from goblin.gateway.ports import AttemptRecord, Receipt
from goblin.web import tracing

AT = datetime(2026, 11, 25, 12, tzinfo=UTC)
RECORD = Receipt(
    request_id="r1",
    key_digest="d",
    key_name="app",
    operation="chat",
    model="m",
    stream=True,
    strategy="failover",
    outcome="ok",
    provider="b",
    attempts=(
        AttemptRecord(endpoint="a", reason="first", outcome="cut", first_token_ms=5, duration_ms=20, began_ms=1),
        AttemptRecord(endpoint="b", reason="goes on", outcome="ok", first_token_ms=7, duration_ms=30, began_ms=21),
    ),
    rejected={},
    prompt_tokens=11,
    completion_tokens=4,
    usage_estimated=True,
    first_token_ms=7,
    duration_ms=60,
    created_at=AT,
    expires_at=AT + timedelta(days=30),
)
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Observed:
    def __init__(self) -> None:
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.telemetry = tracing.Telemetry(tracers, MeterProvider(metric_readers=[self._reader]))

    def tell(self, record: Receipt, traceparent: str | None = None, label: str = "m") -> None:
        self.telemetry.request(record, traceparent=traceparent, model_label=label)

    @property
    def spans(self) -> list[Any]:
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time)

    def points(self, name: str) -> list[tuple[dict[str, Any], float]]:
        data = self._reader.get_metrics_data()
        assert data is not None
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics if m.name == name]
        return [(dict(point.attributes), point.sum) for metric in metrics for point in metric.data.data_points]


def ms(span: Any) -> tuple[float, float]:
    began = int(AT.timestamp()) * 10**9
    return (span.start_time - began) / 10**6, (span.end_time - began) / 10**6


def test_a_request_is_a_span_and_its_attempts_are_spans_in_it() -> None:
    seen = Observed()
    seen.tell(RECORD)
    request, first, second = seen.spans
    assert (request.name, request.kind) == ("chat m", SpanKind.SERVER)
    assert {first.kind, second.kind} == {SpanKind.CLIENT}
    assert {span.parent.span_id for span in (first, second)} == {request.context.span_id}
    assert [ms(span) for span in (request, first, second)] == [(0, 60), (1, 21), (21, 51)]
    assert request.attributes["gen_ai.usage.input_tokens"] == 11
    assert request.attributes["goblin.endpoint"] == "b"
    assert first.attributes["gen_ai.provider.name"] == "a"
    assert (first.status.status_code, first.attributes["error.type"]) == (StatusCode.ERROR, "cut")
    assert second.status.status_code is StatusCode.UNSET


def test_the_callers_trace_goes_on() -> None:
    seen = Observed()
    seen.tell(RECORD, PARENT)
    request = seen.spans[0]
    assert f"{request.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{request.parent.span_id:016x}" == PARENT.split("-")[2]


@pytest.mark.parametrize("nonsense", ["", "x", "00-0-0-0", "\x00" * 50])
def test_a_trace_context_that_makes_no_sense_is_none(nonsense: str) -> None:
    seen = Observed()
    seen.tell(RECORD, nonsense)
    assert seen.spans[0].parent is None


def test_metrics_have_the_names_and_few_labels() -> None:
    seen = Observed()
    seen.tell(replace(RECORD, outcome="odd_17", model="made-up"), label="unknown")
    common = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "unknown"}
    served = common | {"gen_ai.provider.name": "b"}
    tokens = seen.points("gen_ai.client.token.usage")
    assert (served | {"gen_ai.token.type": "input"}, 11) in tokens
    assert (served | {"gen_ai.token.type": "output"}, 4) in tokens
    assert seen.points("gen_ai.server.request.duration") == [(served | {"error.type": "error"}, 0.06)]
    attempts = seen.points("gen_ai.client.operation.duration")
    assert (common | {"gen_ai.provider.name": "a", "error.type": "cut"}, 0.02) in attempts
    assert (common | {"gen_ai.provider.name": "b"}, 0.007) in seen.points("gen_ai.server.time_to_first_token")


def test_the_exporters_that_come_with_the_sdk_are_found() -> None:
    found = tracing.connect(traces="none", metrics="none", service="s")
    found.request(RECORD, traceparent=None, model_label="m")
    with pytest.raises(Broken, match=r"no OpenTelemetry exporter 'smoke'"):
        tracing.connect(traces="smoke", metrics="none", service="s")


def test_the_console_exporter_gets_a_trace() -> None:
    code = (
        "from goblin.web import tracing; from tests.web.test_tracing import RECORD\n"
        "tracing.connect(traces='console', metrics='console', service='s')"
        ".request(RECORD, traceparent=None, model_label='m')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert '"goblin.request_id": "r1"' in told
    assert "gen_ai.client.token.usage" in told


def test_whoever_does_not_configure_it_does_not_import_it() -> None:
    code = "import functions.gateway, sys; print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_environment_says_whether_anybody_traces() -> None:
    # In a process of its own: settings are read once in each.
    code = (
        "import os; os.environ['OTEL_TRACES_EXPORTER'] = 'console'\n"
        "from goblin.wiring.gateway import tracer\n"
        "from goblin.wiring.process import settings\n"
        "print(type(tracer()).__name__)\n"
        "os.environ['OTEL_SDK_DISABLED'] = 'true'; tracer.cache_clear(); settings.cache_clear()\n"
        "print(tracer())"
    )
    told = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60)
    assert told.split() == ["Telemetry", "None"]
