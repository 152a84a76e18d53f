"""The recipe: shape, training length, rates and seed, which together decide the weights. Pure arithmetic."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a llama model. The defaults are goblin-tiny."""

    vocabulary: int = 1024
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 768
    context: int = 1024
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % self.heads or self.heads % self.kv_heads or self.head_width % 2:
            raise ValueError(f"The width must divide by heads, heads by kv_heads, and a head's width by 2: {self}")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_width

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield each tensor's name in llama.cpp and shape (outputs, inputs). The embedding also makes the logits."""
        yield "token_embd.weight", (self.vocabulary, self.width)
        yield "output_norm.weight", (self.width,)
        for layer in range(self.layers):
            block = f"blk.{layer}"
            yield f"{block}.attn_norm.weight", (self.width,)
            yield f"{block}.attn_q.weight", (self.width, self.width)
            yield f"{block}.attn_k.weight", (self.kv_width, self.width)
            yield f"{block}.attn_v.weight", (self.kv_width, self.width)
            yield f"{block}.attn_output.weight", (self.width, self.width)
            yield f"{block}.ffn_norm.weight", (self.width,)
            yield f"{block}.ffn_gate.weight", (self.feed_forward, self.width)
            yield f"{block}.ffn_up.weight", (self.feed_forward, self.width)
            yield f"{block}.ffn_down.weight", (self.width, self.feed_forward)

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors())

    @property
    def q8_0_bytes(self) -> int:
        """Size of the weights in a Q8_0 file: matrices take 34 bytes per 32 weights, norms 4 bytes per weight."""
        return sum(
            math.prod(shape) // 32 * 34 if len(shape) == 2 else 4 * math.prod(shape) for _, shape in self.tensors()
        )

    @property
    def kv_bytes_per_token(self) -> int:
        """Size of a key-value cache in f16, per token."""
        return self.layers * 2 * self.kv_width * 2


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights.

    The same recipe gives the same weights, bit for bit, on the same machine with the same PyTorch. Threads are part of
    it, because they decide in which order sums are rounded.
    """

    seed: int = 1
    steps: int = 3400
    threads: int = 2
    shape: Shape = field(default_factory=Shape)
    rows: int = 16
    """Rows per step, while rows are short."""
    row_tokens: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    bfloat16: bool = True
    """Multiply in bfloat16; weights, their updates and the loss stay in float32."""
    vocabulary_conversations: int = 20_000
    """Number of conversations that the tokenizer learns from."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.threads < 1 or self.rows < 1:
            raise ValueError(f"Steps, threads and rows must be at least 1: {self}")
        if self.row_tokens * LONG_ROW > self.shape.context:
            raise ValueError(f"Long rows of {self.row_tokens * LONG_ROW} tokens exceed the context: {self}")

    def rows_and_tokens(self, step: int) -> tuple[int, int]:
        """Return a step's number of rows and their length; the last eighth has fewer rows, of the full context."""
        if step / self.steps > 0.88:
            return max(1, self.rows // LONG_ROW), self.row_tokens * LONG_ROW
        return self.rows, self.row_tokens

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step.

        It warms up for 100 steps, holds until 35 % of training, then falls along a cosine to 3 %.
        """
        part = step / self.steps
        falling = 1.0 if part < 0.35 else max(0.03, 0.5 * (1 + math.cos(math.pi * (part - 0.35) / 0.65)))
        return self.learning_rate * min(1.0, (step + 1) / 100) * falling

    @property
    def tokens(self) -> int:
        """Number of tokens that the whole training reads."""
        return sum(math.prod(self.rows_and_tokens(step)) for step in range(self.steps))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Recipe":
        return cls(**{**value, "shape": Shape(**value["shape"])})


LONG_ROW = 4
