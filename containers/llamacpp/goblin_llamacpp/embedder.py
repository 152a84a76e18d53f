"""Embeddings: a second context on the same weights, created on first use, one batch at a time.

It has its own lock and does not use the engine's thread, so streams go on while it decodes.
"""

import threading
import weakref
from collections.abc import Callable

import llama_cpp
import numpy as np
import numpy.typing as npt

from .batch import Batch
from .model import Model

EMBED_SEQUENCES_MAX = 8
"""Most texts in one decode."""


class NotWanted(Exception):
    """The client has disconnected."""


class Embedder:
    """Embedding context of one model: it converts token lists to unit vectors."""

    def __init__(self, model: Model, *, ctx: int, threads: int) -> None:
        self.model = model
        self.ctx = ctx
        """Most tokens of one text, because a pooled text must fit one physical batch."""
        self._threads = threads
        self._lock = threading.Lock()
        self._context: int | None = None
        self._batch = Batch(ctx)

    def embed(self, texts: list[list[int]], is_wanted: Callable[[], bool]) -> npt.NDArray[np.float32]:
        """Compute one L2-normalised row per text. This blocks: call it off the event loop.

        Args:
            texts: At least one text, each of 1 to `ctx` tokens.
            is_wanted: Called before each batch; False stops the work.

        Raises:
            NotWanted: `is_wanted` returned False.
            RuntimeError: llama.cpp failed.
        """
        rows: list[npt.NDArray[np.float32]] = []
        with self._lock:
            if self._context is None:
                self._context = self._open()
                weakref.finalize(self, llama_cpp.llama_free, self._context).atexit = False
            for group in _groups(texts, self.ctx):
                if not is_wanted():
                    raise NotWanted
                rows += self._decode(group)
        vectors = np.stack(rows)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(norms > 0, norms, 1), dtype=np.float32)

    def _open(self) -> int:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.ctx
        params.n_seq_max = EMBED_SEQUENCES_MAX
        params.n_threads = params.n_threads_batch = self._threads
        params.kv_unified = True
        params.embeddings = True
        params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED  # The pooling that the file declares.
        context = llama_cpp.llama_init_from_model(self.model.handle, params)
        if context and llama_cpp.llama_pooling_type(context) == llama_cpp.LLAMA_POOLING_TYPE_NONE:
            # A text generator declares no pooling. The mean of its last layer is the usual choice.
            llama_cpp.llama_free(context)
            params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_MEAN
            context = llama_cpp.llama_init_from_model(self.model.handle, params)
        if not context:
            raise RuntimeError("llama.cpp cannot create a context for embeddings.")
        return context

    def _decode(self, group: list[list[int]]) -> list[npt.NDArray[np.float32]]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._batch.clear()
        for sequence, tokens in enumerate(group):
            self._batch.add(sequence, tokens, at=0, logits=True, every_row=True)
        if (code := llama_cpp.llama_decode(self._context, self._batch.native)) != 0:
            raise RuntimeError(f"llama_decode failed with code {code}")
        size = self.model.n_embd
        return [
            np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(self._context, i), shape=(size,)).copy()
            for i in range(len(group))
        ]


def _groups(texts: list[list[int]], ctx: int) -> list[list[list[int]]]:
    """Split texts into decodes, in order, each filled up to the limits on tokens and sequences."""
    groups: list[list[list[int]]] = []
    room = 0
    for tokens in texts:
        if not groups or len(tokens) > room or len(groups[-1]) == EMBED_SEQUENCES_MAX:
            groups.append([])
            room = ctx
        groups[-1].append(tokens)
        room -= len(tokens)
    return groups
