"""Sampling: one chain of llama.cpp samplers per request, and the request's grammar beside it.

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
"""Time limit of one token within a grammar. The work of an ambiguous grammar can double with every character."""


SMALL_VOCAB = 40_000
"""Vocabulary size up to which a draw takes less time than releasing and reacquiring the GIL."""


def _keeping_gil() -> Any:
    """Return `llama_sampler_sample` as a function that keeps the GIL, which ctypes releases around every call.

    A step samples one row per stream. Between two rows the event loop would take the GIL to write to a socket, and the
    next decode would wait for it. The decode itself releases the GIL for long enough.
    """
    draw = ctypes.PyDLL(llama_cpp.llama_cpp._lib._name).llama_sampler_sample
    draw.argtypes = llama_cpp.llama_sampler_sample.argtypes
    draw.restype = llama_cpp.llama_sampler_sample.restype
    return draw


_draw_keeping_gil = _keeping_gil()


class NoTokenAllowed(Exception):
    """The grammar allows no further token of this vocabulary, or following it takes too long."""


class GrammarRefused(Exception):
    """llama.cpp cannot parse the grammar."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters of a request. The defaults are llama-server's."""

    temperature: float = 0.8
    """0 always takes the likeliest token."""
    top_k: int = 40
    """0 considers all tokens."""
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    """1 is no penalty. Counted over the last `repeat_last_n` generated tokens."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    seed: int = 0
    """32 bits. The same seed and prompt, in the same batches, give the same tokens."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str | None = None
    """GBNF with a rule `root`."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithm of a token's probability before any filter; `top` holds the likeliest tokens, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = field(default=())


class Sampler:
    """The sampler chain and grammar of one request. Used by the engine's thread only; `close` frees it."""

    def __init__(self, model: Model, sampling: Sampling) -> None:
        """Build the chain.

        Raises:
            GrammarRefused: llama.cpp cannot parse the grammar.
        """
        self._model = model
        self._draw = _draw_keeping_gil if model.n_vocab <= SMALL_VOCAB else llama_cpp.llama_sampler_sample
        self._grammar = None
        if sampling.grammar is not None:
            self._grammar = llama_cpp.llama_sampler_init_grammar(model.vocab, sampling.grammar.encode(), b"root")
            if not self._grammar:
                raise GrammarRefused("The grammar is not valid GBNF.")
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
            NoTokenAllowed: The grammar allows no token, or is too ambiguous to follow.
        """
        if self._grammar is None:
            return int(self._draw(self._chain, context, row))
        return self.sample_within_grammar(read_logits(context, row, self._model.n_vocab))

    def sample_within_grammar(self, logits: npt.NDArray[np.float32]) -> int:
        """Draw and accept the next token from a row of logits, for a request with a grammar.

        Raises:
            NoTokenAllowed: The grammar allows no token, or is too ambiguous to follow.
        """
        # The grammar is not part of the chain. Accepting a token that it forbids ends the process, so the case that it
        # allows none must be noticed before a token is accepted.
        started = time.monotonic()
        candidates = np.zeros(len(logits), dtype=_CANDIDATE)
        candidates["id"] = np.arange(len(logits), dtype=np.int32)
        candidates["logit"] = logits
        array = llama_cpp.llama_token_data_array(
            data=candidates.ctypes.data_as(llama_cpp.llama_token_data_p), size=len(logits), selected=-1, sorted=False
        )
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))
        if not np.isfinite(candidates["logit"]).any():
            raise NoTokenAllowed("The grammar allows no further token of this model.")
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        chosen = array.data[array.selected]
        if not math.isfinite(chosen.logit):
            raise NoTokenAllowed("The grammar allows no further token of this model.")
        token = int(chosen.id)
        llama_cpp.llama_sampler_accept(self._grammar, token)
        llama_cpp.llama_sampler_accept(self._chain, token)
        if time.monotonic() - started > GRAMMAR_STEP_S_MAX:
            raise NoTokenAllowed("The grammar is too ambiguous to follow. Simplify it.")
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
    """Return a view of one row's logits, valid until the next decode."""
    pointer = llama_cpp.llama_get_logits_ith(context, row)
    return np.ctypeslib.as_array(pointer, shape=(n_vocab,))


def logprobs(logits: npt.NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """Compute the log-softmax of a row, for the chosen token and the `top` likeliest."""
    shifted = logits.astype(np.float64) - float(logits.max())
    values = shifted - math.log(float(np.exp(shifted).sum()))
    best = np.argpartition(values, -top)[-top:] if top else np.empty(0, dtype=np.int64)
    ranked = sorted(((int(i), float(values[i])) for i in best), key=lambda pair: (-pair[1], pair[0]))
    return TokenLogprob(token, float(values[token]), tuple(ranked))


def is_valid_grammar(model: Model, grammar: str) -> bool:
    """Tell whether llama.cpp can parse a grammar; `gbnf.check_grammar` must have accepted it before."""
    sampler = llama_cpp.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
    if not sampler:
        return False
    llama_cpp.llama_sampler_free(sampler)
    return True
