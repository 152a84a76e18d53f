"""One request at one endpoint, and what endpoint stats learn from it while it runs and when it ends."""

from __future__ import annotations

from goblin.core.endpoints import Endpoint
from goblin.core.errors import Fault, ProviderUnavailable
from goblin.gateway.endpoint_stats import EndpointStats, InFlight
from goblin.gateway.policy import breaker, latency
from goblin.gateway.policy.route import LatencyForecast
from goblin.gateway.ports import AttemptRecord

COLD_SEEN = 0.25
"""An answer that is late by more than this share of the expected cold start is counted as one."""


class UpstreamAttempt:
    """One request to one endpoint. It ends once; later calls that would end it are ignored."""

    def __init__(self, stats: EndpointStats, request: InFlight, *, reason: str) -> None:
        self.endpoint = request.endpoint
        self.forecast = request.forecast
        self.started_s = request.started_s
        self._stats = stats
        self._request = request
        self._target = request.target
        self._model = request.model
        self._reason = reason
        self._first_token_ms: float | None = None
        self._ended_ms: float | None = None
        self._outcome = ""
        self._error = ""
        self.dropped: tuple[str, ...] = ()
        """What of the request the endpoint is not sent, by name."""

    @classmethod
    def start(
        cls,
        stats: EndpointStats,
        endpoint: Endpoint,
        model: str,
        *,
        reason: str,
        force: bool,
        forecast: LatencyForecast | None = None,
        width: int = 1,
    ) -> UpstreamAttempt | None:
        """Start an attempt; None when the breaker is open and `force` is not set.

        Args:
            stats: Where the observations go.
            endpoint: The endpoint that gets the request.
            model: The model as the caller names it.
            reason: Why the route has the endpoint, for the receipt.
            force: Send even if the breaker is open.
            forecast: The route's forecast for this request; without it, the forecast for a short chat is used.
            width: How many requests it has in flight at once.
        """
        request = stats.start(endpoint, model, force=force, forecast=forecast, width=width)
        return None if request is None else cls(stats, request, reason=reason)

    @property
    def first_token_ms(self) -> float | None:
        return self._first_token_ms

    @property
    def abandoned(self) -> bool:
        """Whether it was ended by us although the endpoint had not failed."""
        return self._outcome in ("left", "lost")

    def first_token(self) -> None:
        """Record that the first item that a caller would notice has arrived."""
        if self._first_token_ms is not None:
            return
        self._first_token_ms = took_ms = self._elapsed_ms()
        self._target.waiting.pop(self._request, None)
        self._learn(took_ms)

    def succeed(self, *, output_tokens: int | None = None) -> None:
        """End it as a success: the answer is whole, or the endpoint has shown in another way that it works."""
        if not self._end("ok"):
            return
        target, ended_ms = self._target, self._ended_ms
        target.estimate = latency.observe_outcome(target.estimate, failed=False, now_s=self._stats.clock.monotonic())
        if output_tokens and self._first_token_ms is not None and ended_ms is not None:
            target.estimate = latency.observe_decode(
                target.estimate, output_tokens=output_tokens, decode_ms=ended_ms - self._first_token_ms
            )
            self._stats.answered(self._model, output_tokens)
        self._stats.well(self.endpoint, self._model, self.forecast.demand.kind, target)

    def fail(self, error: ProviderUnavailable, *, cut: bool = False) -> None:
        """End it as a failure of the endpoint; `cut` if the answer had begun."""
        if not self._end("cut" if cut else str(error.fault)):
            return
        self._error = error.message
        if self._target.warmth.waking_s == self.started_s and error.fault is not Fault.LOADING:
            self._target.warmth.waking_s = None
        self._stats.failed(self.endpoint, self._model, self.forecast.demand.kind, self._target, error)

    def abandon(self, outcome: str = "left") -> None:
        """End it without blame: the caller left (`left`), or another attempt was quicker (`lost`)."""
        if not self._end(outcome):
            return
        self._target.breaker = breaker.abandon(self._target.breaker)
        if self._first_token_ms is None:
            self._learn_silence()

    def timed_out(self) -> None:
        """Count a timeout as an observation: otherwise a hanging endpoint would keep its good estimate."""
        self._learn_silence()

    def record(self) -> AttemptRecord:
        return AttemptRecord(
            endpoint=self.endpoint.name,
            reason=self._reason,
            outcome=self._outcome,
            error=self._error,
            first_token_ms=_whole(self._first_token_ms),
            duration_ms=_whole(self._ended_ms),
            predicted_first_token_ms=_whole(self.forecast.first_token_ms),
            dropped=self.dropped,
        )

    def _end(self, outcome: str) -> bool:
        if self._ended_ms is not None:
            return False
        self._ended_ms = self._elapsed_ms()
        self._outcome = outcome
        self._target.in_flight -= self._request.width
        self._target.waiting.pop(self._request, None)
        return True

    def _learn(self, took_ms: float) -> None:
        """Split the time to first token into queue, start and prefill, and update the estimate of each."""
        target, forecast, now_s = self._target, self.forecast, self._stats.clock.monotonic()
        started_by_us = target.warmth.waking_s == self.started_s
        target.warmth.heard_s = target.answered_s = now_s
        target.warmth.waking_s = None
        beyond_ms = took_ms - forecast.awake_ms - forecast.queue_ms
        if (forecast.asleep or forecast.waking) and beyond_ms > COLD_SEEN * latency.cold_start_ms(target.estimate):
            if started_by_us:
                target.estimate = latency.observe_cold_start(target.estimate, beyond_ms)
            return  # The cold start hides the latency of the warm endpoint.
        alone_ms = max(took_ms - forecast.queue_ms, min(took_ms, forecast.awake_ms * 0.5))
        target.estimate = latency.observe_first_token(
            target.estimate,
            alone_ms,
            prompt_tokens=float(forecast.demand.prompt_tokens),
            expected_ms=forecast.awake_ms,
            weight=forecast.awake_ms / (forecast.awake_ms + forecast.queue_ms),
            now_s=now_s,
        )

    def _learn_silence(self) -> None:
        target, forecast = self._target, self.forecast
        if self._first_token_ms is not None or forecast.asleep or forecast.waking:
            return  # It has answered, or it may be starting, which does not mean that it is slow.
        target.estimate = latency.observe_silence(
            target.estimate,
            self._elapsed_ms() - forecast.queue_ms,
            prompt_tokens=float(forecast.demand.prompt_tokens),
            expected_ms=forecast.awake_ms,
            now_s=self._stats.clock.monotonic(),
        )

    def _elapsed_ms(self) -> float:
        return (self._stats.clock.monotonic() - self.started_s) * 1000


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
