"""The context an engine decodes in: how large, and how it is opened."""

from dataclasses import dataclass

import llama_cpp

from .model import Model, ModelRefused


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes in tokens unless said otherwise."""

    slots: int = 8
    """Sequences decoded together."""
    ctx: int = 1024
    """Prompt and answer of one request together."""
    cells: int = 8192
    """The pool shared by all slots; slots x ctx never runs out."""
    batch: int = 512
    prefill: int = 128
    """Prompt tokens per step; keeps running streams moving. On a GPU the batch size is fine."""
    threads: int = 1
    queue: int = 64
    """Requests that may wait for a slot."""
    stall_s: float = 60.0
    """A step that takes longer is taken for dead."""
    kv_type: int = 1
    """`ggml_type` of keys and values: 1 is f16, 8 is q8_0."""


def open_context(model: Model, settings: EngineSettings) -> int:
    """A new context; `llama_free` it. Raises ModelRefused."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = settings.cells
    params.n_batch = settings.batch
    params.n_ubatch = settings.batch
    params.n_seq_max = settings.slots
    params.n_threads = params.n_threads_batch = settings.threads
    params.n_outputs_max = settings.slots
    # One pool for all: copying a part of a sequence between separate streams ends the process.
    params.kv_unified = True
    params.type_k = params.type_v = settings.kv_type
    params.no_perf = True
    context = llama_cpp.llama_init_from_model(model.handle, params)
    if not context:
        raise ModelRefused(f"llama.cpp can not make a context of {settings.cells} tokens")
    return context
