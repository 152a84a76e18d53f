"""One answer being generated, and the events that the engine sends about it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from .sampling import Sampler, Sampling, TokenLogprob
from .slots import Adapters
from .text import TextStream

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text for the client, with the log-probabilities of its tokens if they were requested."""

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
    """Whether the server ended the answer because it shuts down. Another server could continue it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of an answer that cannot be finished."""

    message: str
    client_fault: bool = False


Event = Piece | Finished | Failed


@dataclass(slots=True, eq=False)
class Generation:
    """One answer to generate. The server sets the first block of fields, the engine the second."""

    prompt: list[int]
    """At least one token id; all ids are in range."""
    sampling: Sampling
    max_new: int
    sink: Callable[["Generation", Event], None]
    """Called on the event loop, in order. `Finished` or `Failed` comes last, exactly once."""
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    """Number of alternatives to report. None reports no log-probabilities at all."""
    adapters: Adapters = ()
    client: str = ""
    index: int = 0
    cancelled: bool = False

    text: TextStream = field(init=False)
    sampler: Sampler | None = None
    generated: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    admitted_at: float | None = None
    """Seconds of the monotonic clock, as in `first_token_at`."""
    first_token_at: float | None = None
    held_logprobs: list[tuple[int, TokenLogprob]] = field(default_factory=list)
    """(start, entry) pairs: the character at which the token starts, and its log-probability.

    They are held back until the text of the token is sent.
    """

    def __post_init__(self) -> None:
        self.text = TextStream(self.stop)
