"""The account's money: what was paid in, and every second that cost something."""

from __future__ import annotations

from fractions import Fraction

import msgspec

from localgpus.runpod import charges
from localgpus.runpod.charges import Span, What

SPANS_MAX = 5_000
"""What the oldest of those that have ended came to is kept as one sum."""


class Books(msgspec.Struct, kw_only=True):
    """All of it; instants are whole seconds since 1970."""

    paid_usd_micros: int
    spans: list[Span] = []
    forgotten_usd_micros: int = 0

    def open(self, pod_id: str, what: What, usd_micros_per_month: int, at: int) -> None:
        """From now on it costs."""
        self.spans.append(Span(pod_id=pod_id, what=what, usd_micros_per_month=usd_micros_per_month, since=at))

    def close(self, pod_id: str, at: int, only: What | None = None) -> None:
        """From now on it, or one part of it, costs no more."""
        for span in self.spans:
            if span.pod_id == pod_id and span.until is None and only in (None, span.what):
                span.until = at
        spare = len(self.spans) - SPANS_MAX
        if spare > 0:
            self._forget([span for span in self.spans if span.until is not None][:spare], at)

    def left_usd_micros(self, at: int) -> int:
        """The balance; below zero when nobody looked for long."""
        return self.paid_usd_micros - self.forgotten_usd_micros - int(charges.total(self.spans, at))

    def burn_per_s(self) -> Fraction:
        """Millionths of a dollar a second, of all that costs now."""
        return charges.burn_per_s(self.spans)

    def _forget(self, old: list[Span], at: int) -> None:
        self.forgotten_usd_micros += int(charges.total(old, at))
        gone = {id(span) for span in old}
        self.spans = [span for span in self.spans if id(span) not in gone]
