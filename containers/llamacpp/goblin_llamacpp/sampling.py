"""From logits to a token: one chain of llama.cpp samplers per request, and its grammar beside it.

The order of the chain is llama-server's: bias, penalties, top-k, top-p, min-p, temperature, draw.
"""

import ctypes
import math
import time
from dataclasses import dataclass, field
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from .model import Model

GRAMMAR_STEP_S_MAX = 1.0
"""An ambiguous grammar can double its work with every character; past this its request is given up."""


SMALL_VOCAB = 40_000
"""Up to here a draw takes less time than giving the interpreter away and getting it back."""


def _keeping_gil() -> Any:
    """`llama_sampler_sample` without releasing the interpreter, which ctypes does around every call.

    A step samples a row per stream: between two, the event loop would take the interpreter for a write to one
    socket, and the next decode would wait for it. The decode itself releases it for long enough.
    """
    draw = ctypes.PyDLL(llama_cpp.llama_cpp._lib._name).llama_sampler_sample
    draw.argtypes = llama_cpp.llama_sampler_sample.argtypes
    draw.restype = llama_cpp.llama_sampler_sample.restype
    return draw


_draw_keeping_gil = _keeping_gil()


class NoTokenAllowed(Exception):
    """The grammar has no continuation in this vocabulary, or following it has become too expensive."""


class GrammarRefused(Exception):
    """llama.cpp can not parse the grammar."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. Defaults are llama-server's."""

    temperature: float = 0.8
    """0 takes the likeliest token."""
    top_k: int = 40
    """0 considers all."""
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    """1 is none; counted over the last `repeat_last_n` generated tokens."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    seed: int = 0
    """32 bits; the same seed, prompt and batch company give the same tokens."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str | None = None
    """GBNF with the rule `root`."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probabilities before any filter; `top` is the likeliest tokens, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = field(default=())


class Sampler:
    """Draws the tokens of one request. Owned by the engine's thread; `close` frees it."""

    def __init__(self, model: Model, sampling: Sampling) -> None:
        """Raises GrammarRefused."""
        self._model = model
        self._draw = _draw_keeping_gil if model.n_vocab <= SMALL_VOCAB else llama_cpp.llama_sampler_sample
        self._grammar = None
        if sampling.grammar is not None:
            self._grammar = llama_cpp.llama_sampler_init_grammar(model.vocab, sampling.grammar.encode(), b"root")
            if not self._grammar:
                raise GrammarRefused("The grammar is not valid GBNF")
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        for part in _chain_parts(model, sampling):
            llama_cpp.llama_sampler_chain_add(self._chain, part)

    def close(self) -> None:
        for sampler in (self._chain, self._grammar):
            if sampler:
                llama_cpp.llama_sampler_free(sampler)
        self._chain = self._grammar = None

    def sample(self, context: int, row: int) -> int:
        """Draw and accept the next token from a row of the last decode.

        Raises:
            NoTokenAllowed: See there.
        """
        if self._grammar is None:
            return int(self._draw(self._chain, context, row))
        return self.sample_within_grammar(read_logits(context, row, self._model.n_vocab))

    def sample_within_grammar(self, logits: npt.NDArray[np.float32]) -> int:
        """As `sample`, for a row given as numbers and a request with a grammar."""
        # Not put into the chain: a grammar that allows nothing must be noticed before a token is accepted,
        # for accepting one that the grammar forbids ends the process.
        started = time.monotonic()
        candidates = np.zeros(len(logits), dtype=_CANDIDATE)
        candidates["id"] = np.arange(len(logits), dtype=np.int32)
        candidates["logit"] = logits
        array = llama_cpp.llama_token_data_array(
            data=candidates.ctypes.data_as(llama_cpp.llama_token_data_p), size=len(logits), selected=-1, sorted=False
        )
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))
        if not np.isfinite(candidates["logit"]).any():
            raise NoTokenAllowed("The grammar allows no further token")
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        chosen = array.data[array.selected]
        if not math.isfinite(chosen.logit):
            raise NoTokenAllowed("The grammar allows no further token")
        token = int(chosen.id)
        llama_cpp.llama_sampler_accept(self._grammar, token)
        llama_cpp.llama_sampler_accept(self._chain, token)
        if time.monotonic() - started > GRAMMAR_STEP_S_MAX:
            raise NoTokenAllowed("The grammar is too ambiguous to follow")
        return token


_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def _chain_parts(model: Model, sampling: Sampling) -> list[int]:
    parts = []
    if sampling.logit_bias:
        biases = (llama_cpp.llama_logit_bias * len(sampling.logit_bias))(
            *(llama_cpp.llama_logit_bias(token, bias) for token, bias in sampling.logit_bias)
        )
        parts.append(llama_cpp.llama_sampler_init_logit_bias(model.n_vocab, len(biases), biases))
    if (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty) != (1.0, 0.0, 0.0):
        parts.append(
            llama_cpp.llama_sampler_init_penalties(
                model.n_vocab,
                sampling.repeat_last_n,
                sampling.repeat_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        )
    if sampling.temperature <= 0:
        return [*parts, llama_cpp.llama_sampler_init_greedy()]
    if sampling.top_k > 0:
        parts.append(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        parts.append(llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        parts.append(llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
    parts.append(llama_cpp.llama_sampler_init_temp(sampling.temperature))
    parts.append(llama_cpp.llama_sampler_init_dist(sampling.seed))
    return parts


def read_logits(context: int, row: int, n_vocab: int) -> npt.NDArray[np.float32]:
    """A view of one row's logits, valid until the next decode."""
    pointer = llama_cpp.llama_get_logits_ith(context, row)
    return np.ctypeslib.as_array(pointer, shape=(n_vocab,))


def logprobs(logits: npt.NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """Log-softmax of a row: the chosen token's and the `top` likeliest."""
    shifted = logits.astype(np.float64) - float(logits.max())
    values = shifted - math.log(float(np.exp(shifted).sum()))
    best = np.argpartition(values, -top)[-top:] if top else np.empty(0, dtype=np.int64)
    ranked = sorted(((int(i), float(values[i])) for i in best), key=lambda pair: (-pair[1], pair[0]))
    return TokenLogprob(token, float(values[token]), tuple(ranked))


def is_valid_grammar(model: Model, grammar: str) -> bool:
    """Whether llama.cpp accepts it; `grammar.py` must have bounded it before."""
    sampler = llama_cpp.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
    if not sampler:
        return False
    llama_cpp.llama_sampler_free(sampler)
    return True
