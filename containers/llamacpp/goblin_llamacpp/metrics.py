"""Counters of one server and their Prometheus text, under llama-server's names. Pure.

The engine's thread writes them and the event loop reads them without a lock. Each field is one number, so a reader
sees a recent value.
"""

from dataclasses import dataclass

HELP = {
    "prompt_tokens_total": "Number of prompt tokens processed.",
    "prompt_seconds_total": "Prompt process time.",
    "tokens_predicted_total": "Number of generation tokens processed.",
    "tokens_predicted_seconds_total": "Predict process time.",
    "n_decode_total": "Total number of llama_decode() calls.",
    "n_tokens_max": "Largest observed sequence, in tokens.",
    "n_busy_slots_per_decode": "Average number of busy slots per llama_decode() call.",
    "prompt_tokens_seconds": "Average prompt throughput in tokens/s.",
    "predicted_tokens_seconds": "Average generation throughput in tokens/s.",
    "requests_processing": "Number of requests processing.",
    "requests_deferred": "Number of requests deferred.",
    "prompt_tokens_cached_total": "Number of prompt tokens reused from the prefix cache.",
    "requests_cancelled_total": "Number of requests whose client went away.",
    "requests_refused_total": "Number of requests refused because the queue was full.",
    "requests_failed_total": "Number of requests ended by an error of the engine.",
}
GAUGES = {
    "n_busy_slots_per_decode",
    "n_tokens_max",
    "prompt_tokens_seconds",
    "predicted_tokens_seconds",
    "requests_processing",
    "requests_deferred",
}


@dataclass(slots=True)
class Meters:
    """Totals since the process started, over every model that it has served."""

    prompt_tokens: int = 0
    prompt_tokens_cached: int = 0
    prompt_s: float = 0.0
    predicted_tokens: int = 0
    predicted_s: float = 0.0
    decodes: int = 0
    busy_slots: int = 0
    """Number of slots that took part, summed over all decodes."""
    tokens_max: int = 0
    cancelled: int = 0
    refused: int = 0
    failed: int = 0

    def render(self, *, processing: int, deferred: int) -> str:
        """Render the Prometheus text format 0.0.4.

        Args:
            processing: Requests being decoded now.
            deferred: Requests waiting in the queue.
        """
        values: dict[str, float] = {
            "prompt_tokens_total": self.prompt_tokens,
            "prompt_seconds_total": round(self.prompt_s, 6),
            "tokens_predicted_total": self.predicted_tokens,
            "tokens_predicted_seconds_total": round(self.predicted_s, 6),
            "n_decode_total": self.decodes,
            "n_tokens_max": self.tokens_max,
            "n_busy_slots_per_decode": _ratio(self.busy_slots, self.decodes),
            "prompt_tokens_seconds": _ratio(self.prompt_tokens, self.prompt_s),
            "predicted_tokens_seconds": _ratio(self.predicted_tokens, self.predicted_s),
            "requests_processing": processing,
            "requests_deferred": deferred,
            "prompt_tokens_cached_total": self.prompt_tokens_cached,
            "requests_cancelled_total": self.cancelled,
            "requests_refused_total": self.refused,
            "requests_failed_total": self.failed,
        }
        lines = []
        for name, value in values.items():
            kind = "gauge" if name in GAUGES else "counter"
            lines += [
                f"# HELP llamacpp:{name} {HELP[name]}",
                f"# TYPE llamacpp:{name} {kind}",
                f"llamacpp:{name} {value:g}" if isinstance(value, float) else f"llamacpp:{name} {value}",
            ]
        return "\n".join(lines) + "\n"


def _ratio(value: float, by: float) -> float:
    return round(value / by, 3) if by else 0.0
