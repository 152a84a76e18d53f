"""The account's money: payments, and the spans of time that cost something."""

from __future__ import annotations

from fractions import Fraction

import msgspec

from localgpus.runpod import charges
from localgpus.runpod.charges import Span, What

SPANS_MAX = 5_000
"""Most spans that are stored; the cost of the oldest ended ones is kept as one sum."""


class Books(msgspec.Struct, kw_only=True):
    """The account's books. Instants are whole seconds since 1970."""

    paid_usd_micros: int
    spans: list[Span] = []
    forgotten_usd_micros: int = 0

    def open(self, pod_id: str, what: What, usd_micros_per_month: int, at: int) -> None:
        """Start a span: the pod's part costs money from `at` on."""
        self.spans.append(Span(pod_id=pod_id, what=what, usd_micros_per_month=usd_micros_per_month, since=at))

    def close(self, pod_id: str, at: int, only: What | None = None) -> None:
        """End the pod's open spans at `at`, all of them or those of one part."""
        for span in self.spans:
            if span.pod_id == pod_id and span.until is None and only in (None, span.what):
                span.until = at
        spare = len(self.spans) - SPANS_MAX
        if spare > 0:
            self._forget([span for span in self.spans if span.until is not None][:spare], at)

    def left_usd_micros(self, at: int) -> int:
        """Return the balance. It can be below zero when the market was not advanced for long."""
        return self.paid_usd_micros - self.forgotten_usd_micros - int(charges.total(self.spans, at))

    def burn_per_s(self) -> Fraction:
        """Return the cost of all open spans, in micro-dollars per second."""
        return charges.burn_per_s(self.spans)

    def _forget(self, old: list[Span], at: int) -> None:
        self.forgotten_usd_micros += int(charges.total(old, at))
        gone = {id(span) for span in old}
        self.spans = [span for span in self.spans if id(span) not in gone]
