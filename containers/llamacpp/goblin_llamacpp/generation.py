"""One answer being generated, and what its engine says about it while it goes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from .sampling import Sampler, Sampling, TokenLogprob
from .slots import Adapters
from .text import TextStream

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that may be shown, and the tokens it is made of where log-probabilities were asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of an answer that did not fail."""

    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prompt_s: float
    predicted_s: float
    cut_short: bool = False
    """The server is going away; another one could continue."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of an answer that can not be finished."""

    message: str
    client_fault: bool = False


Event = Piece | Finished | Failed


@dataclass(slots=True, eq=False)
class Generation:
    """A request for one answer. The first block is the asker's, the second the engine's."""

    prompt: list[int]
    """Token ids in range, at least one."""
    sampling: Sampling
    max_new: int
    sink: Callable[["Generation", Event], None]
    """Called on the event loop, in order; `Finished` or `Failed` comes last, exactly once."""
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    """How many alternatives to report; None reports no log-probabilities at all."""
    adapters: Adapters = ()
    client: str = ""
    index: int = 0
    cancelled: bool = False

    text: TextStream = field(init=False)
    sampler: Sampler | None = None
    generated: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    admitted_at: float | None = None
    """Monotonic seconds, as the next one."""
    first_token_at: float | None = None
    held_logprobs: list[tuple[int, TokenLogprob]] = field(default_factory=list)
    """With the character at which each token starts; they wait as its text does."""

    def __post_init__(self) -> None:
        self.text = TextStream(self.stop)
