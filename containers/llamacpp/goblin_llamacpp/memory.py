"""Memory plan of a model with its key-value cache, and the check that it fits. Pure.

Keys and values take 2 x layers x kv_heads x head_dim x bytes per token. The file's header has all of these numbers.
"""

from dataclasses import dataclass

from .gguf import Header

KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes per value. Quantised types store a scale per 32 values."""
RESERVE = 0.03
"""Share of the free memory that is left to allocators and the interpreter."""


class DoesNotFit(ValueError):
    """The model does not fit into memory. The message has the arithmetic."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Memory of a model in bytes; `cells` counts tokens."""

    weights: int
    kv_per_token: float
    cells: int
    compute: int
    available: int

    @property
    def kv(self) -> int:
        return round(self.kv_per_token * self.cells)

    @property
    def needed(self) -> int:
        return self.weights + self.kv + self.compute

    def explain(self) -> str:
        """Return the arithmetic as one line."""
        return (
            f"weights {_mib(self.weights)} + keys and values {_mib(self.kv)} "
            f"({self.cells} tokens x {self.kv_per_token / 1024:.1f} KiB) + compute {_mib(self.compute)} "
            f"= {_mib(self.needed)} of {_mib(self.available)} available"
        )


def plan_memory(header: Header, *, cells: int, slots: int, batch: int, kv_type: str, available: int) -> MemoryPlan:
    """Plan the memory of a model.

    Args:
        header: The header of the model's file.
        cells: Tokens in the shared key-value pool.
        slots: Sequences decoded together.
        batch: Tokens per decode.
        kv_type: Type of keys and values, a key of `KV_BYTES`.
        available: Bytes that may be used.

    Raises:
        DoesNotFit: The model does not fit; the message has the arithmetic and how many tokens would fit.
    """
    plan = MemoryPlan(
        weights=header.file_bytes,
        kv_per_token=kv_bytes_per_token(header, kv_type),
        cells=cells,
        compute=compute_bytes(header, cells=cells, slots=slots, batch=batch),
        available=round(available * (1 - RESERVE)),
    )
    if plan.needed <= plan.available:
        return plan
    left = plan.available - plan.weights - plan.compute
    most = max(int(left / plan.kv_per_token), 0) if plan.kv_per_token else 0
    advice = f"At most {most} tokens would fit." if most else "The model itself does not fit."
    raise DoesNotFit(f"Not enough memory: {plan.explain()}. {advice}")


def kv_bytes_per_token(header: Header, kv_type: str) -> float:
    """Return the bytes of the keys and values of one token over all layers."""
    layers = header.number("block_count")
    heads = max(header.number("attention.head_count"), 1)
    head_dim = header.number("embedding_length") // heads
    keys = header.number("attention.key_length", head_dim)
    values = header.number("attention.value_length", head_dim)
    # A file without this number has as many key-value heads as attention heads.
    kv_heads = [count or heads for count in header.numbers("attention.head_count_kv", layers)]
    return sum(kv_heads) * (keys + values) * KV_BYTES[kv_type]


def compute_bytes(header: Header, *, cells: int, slots: int, batch: int) -> int:
    """Estimate the buffers of one step: activations, the attention mask, and a row of logits per slot."""
    width = header.number("embedding_length")
    wide = max(header.number("feed_forward_length"), width)
    vocab = header.number("vocab_size", 32_000)
    return 4 * (batch * (6 * width + 3 * wide) + batch * cells + slots * vocab)


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
