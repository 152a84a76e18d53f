"""The llama.cpp context of an engine: its sizes, and how it is opened."""

from dataclasses import dataclass

import llama_cpp

from .model import Model, ModelRefused


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes of an engine, in tokens unless stated otherwise."""

    slots: int = 8
    """Sequences decoded together."""
    ctx: int = 1024
    """Most tokens of one request, prompt and answer together."""
    window: int | None = None
    """Most tokens of a prompt that is accepted, if more than `ctx`: what does not fit is left out of its middle."""
    cells: int = 8192
    """Size of the pool that all slots share. With slots x ctx it never runs out."""
    batch: int = 512
    prefill: int = 128
    """Most prompt tokens per step, so that running streams do not stall. On a GPU it can be the batch size."""
    threads: int = 1
    queue: int = 64
    """Requests that may wait for a slot."""
    stall_s: float = 60.0
    """Time after which a step counts as stalled."""
    kv_type: int = 1
    """`ggml_type` of keys and values: 1 is f16, 8 is q8_0."""

    @property
    def prompt_max(self) -> int:
        """Return the most tokens of a prompt that is accepted."""
        return max(self.ctx, self.window or 0)


def open_context(model: Model, settings: EngineSettings) -> int:
    """Open a context. The caller frees it with `llama_free`.

    Raises:
        ModelRefused: llama.cpp cannot create it.
    """
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = settings.cells
    params.n_batch = settings.batch
    params.n_ubatch = settings.batch
    params.n_seq_max = settings.slots
    params.n_threads = params.n_threads_batch = settings.threads
    params.n_outputs_max = settings.slots
    # One pool for all slots: copying a part of a sequence between separate pools ends the process.
    params.kv_unified = True
    params.type_k = params.type_v = settings.kv_type
    params.no_perf = True
    context = llama_cpp.llama_init_from_model(model.handle, params)
    if not context:
        raise ModelRefused(f"llama.cpp cannot create a context of {settings.cells} tokens. Lower --cells.")
    return context
