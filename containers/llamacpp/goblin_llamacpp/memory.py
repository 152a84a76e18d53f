"""How much memory a model needs with its key-value cache, and whether that is there. Pure.

Keys and values take, per token, 2 x layers x kv_heads x head_dim x bytes; the file says all of these.
"""

from dataclasses import dataclass

from .gguf import Header

KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Per value; quantised ones carry a scale per 32."""
RESERVE = 0.03
"""Of what is free, for allocators and the interpreter."""


class DoesNotFit(ValueError):
    """The words are the arithmetic."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """In bytes."""

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
        return (
            f"weights {_mib(self.weights)} + keys and values {_mib(self.kv)} "
            f"({self.cells} tokens x {self.kv_per_token / 1024:.1f} KiB) + compute {_mib(self.compute)} "
            f"= {_mib(self.needed)} of {_mib(self.available)} available"
        )


def plan_memory(header: Header, *, cells: int, slots: int, batch: int, kv_type: str, available: int) -> MemoryPlan:
    """The plan, if it fits.

    Args:
        cells: Tokens in the shared key-value pool.
        available: Bytes that may be used.

    Raises:
        DoesNotFit: With the arithmetic, and how many tokens would fit.
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
    advice = f"at most {most} tokens would fit" if most else "the model itself does not fit"
    raise DoesNotFit(f"Not enough memory: {plan.explain()}; {advice}")


def kv_bytes_per_token(header: Header, kv_type: str) -> float:
    """Keys and values of one token over all layers."""
    layers = header.number("block_count")
    heads = max(header.number("attention.head_count"), 1)
    head_dim = header.number("embedding_length") // heads
    keys = header.number("attention.key_length", head_dim)
    values = header.number("attention.value_length", head_dim)
    # A file that does not say has as many key-value heads as heads.
    kv_heads = [count or heads for count in header.numbers("attention.head_count_kv", layers)]
    return sum(kv_heads) * (keys + values) * KV_BYTES[kv_type]


def compute_bytes(header: Header, *, cells: int, slots: int, batch: int) -> int:
    """Buffers of one step, roughly: activations, the attention mask, and a row of logits per slot."""
    width = header.number("embedding_length")
    wide = max(header.number("feed_forward_length"), width)
    vocab = header.number("vocab_size", 32_000)
    return 4 * (batch * (6 * width + 3 * wide) + batch * cells + slots * vocab)


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
