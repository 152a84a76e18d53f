"""A loaded model: weights, template, engine and embedder, which are replaced together."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .context import EngineSettings
from .embedder import Embedder
from .engine import Engine, Post
from .gguf import read_header
from .machine import available_bytes
from .memory import MemoryPlan, plan_memory
from .metrics import Meters
from .model import Model
from .template import ChatTemplate

SMALL_MODEL_BYTES = 64 * 2**20
"""Model size below which a second thread costs more in synchronisation than it gains."""
EMBED_CTX_MAX = 2048


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """Settings for every model that this process loads."""

    slots: int = 8
    ctx: int | None = None
    """Tokens per request, prompt and answer. None takes the model's training context, at most 4096."""
    cells: int | None = None
    """Tokens in the shared key-value pool. None takes slots x ctx."""
    batch: int = 512
    prefill: int | None = None
    """Prompt tokens per step. None takes 128, or the whole batch if layers are on a GPU."""
    threads: int | None = None
    queue: int = 64
    gpu_layers: int = 0
    stall_s: float = 60.0
    kv_type: str = "f16"
    adapters: tuple[tuple[str, Path], ...] = ()
    """LoRA adapters by name, for the model that the process starts with."""
    memory_bytes: int | None = None
    """Memory for weights, cache and buffers. None takes what the machine has free."""


KV_TYPES = {"f16": 1, "q8_0": 8}


class LoadedModel:
    """A model that serves requests until `close`. Two can be open at once while one replaces the other."""

    def __init__(
        self,
        path: Path,
        settings: LoadSettings,
        *,
        alias: str,
        cores: int,
        meters: Meters,
        post: Post,
        sha256: str | None = None,
    ) -> None:
        """Load the model; this takes seconds to minutes.

        Raises:
            NotGguf: The file's header is not a valid GGUF header.
            DoesNotFit: There is not enough memory.
            ModelRefused: llama.cpp cannot load the model or an adapter.
            TemplateRefused: The model's chat template does not compile.
        """
        self.alias = alias
        self.sha256 = sha256
        """Digest of the file; None if it was not checked."""
        self.loaded_at = time.time()
        self.memory = plan(path, settings)
        self.model = Model(path, gpu_layers=settings.gpu_layers)
        for name, file in settings.adapters:
            self.model.add_adapter(name, file)
        self.template = ChatTemplate(
            self.model.chat_template,
            bos_text=self.model.bos_text,
            eos_text=self.model.eos_text,
            special_texts=self.model.special_texts,
        )
        sizes = engine_settings(
            settings, self.model.n_ctx_train, self.model.size_bytes, cores, window=read_header(path).prompt_window
        )
        _ = self.model.eog_tokens, self.model.longest_piece_bytes  # Computed before the first request.
        self.engine = Engine(self.model, sizes, meters, post)
        self.embedder = Embedder(self.model, ctx=min(sizes.ctx, EMBED_CTX_MAX), threads=sizes.threads)

    def close(self) -> None:
        """Refuse new requests and wait for the running answers. The weights are freed with the last reference."""
        self.engine.close()
        self.engine.join()

    @property
    def fingerprint(self) -> str:
        """Value of `system_fingerprint`: it changes when the same seed may give another answer."""
        return f"fp_{__version__}_{(self.sha256 or self.model.path.stem)[:16]}"

    def describe(self) -> dict[str, Any]:
        """Return the `meta` object of `/v1/models`, as llama-server has it."""
        model = self.model
        return {
            "vocab_type": model.vocab_type,
            "n_vocab": model.n_vocab,
            "n_ctx_train": model.n_ctx_train,
            "n_ctx": self.engine.settings.prompt_max,
            "n_embd": model.n_embd,
            "n_params": model.n_params,
            "size": model.size_bytes,
            "adapters": list(model.adapters),
        }


def plan(path: Path, settings: LoadSettings) -> MemoryPlan | None:
    """Plan the memory of a model from its header, or return None if free memory is unknown.

    Raises:
        NotGguf: The file's header is not a valid GGUF header.
        DoesNotFit: There is not enough memory.
    """
    header = read_header(path)
    available = settings.memory_bytes or available_bytes(on_gpu=bool(settings.gpu_layers))
    sizes = engine_settings(settings, header.number("context_length", 4096), header.file_bytes, 1)
    if available is None:
        return None
    return plan_memory(
        header,
        cells=sizes.cells,
        slots=sizes.slots,
        batch=sizes.batch,
        kv_type=settings.kv_type,
        available=available,
    )


def engine_settings(
    settings: LoadSettings, n_ctx_train: int, size_bytes: int, cores: int, *, window: int | None = None
) -> EngineSettings:
    """Fill in the settings that were left open, from the model and the machine. Pure."""
    ctx = settings.ctx or min(n_ctx_train, 4096)
    cells = settings.cells or settings.slots * ctx
    batch = max(settings.batch, settings.slots)
    return EngineSettings(
        slots=settings.slots,
        ctx=min(ctx, cells),
        window=window,
        # llama.cpp rounds this up to a multiple of 256. Planning with the smaller number is safe.
        cells=cells,
        batch=batch,
        prefill=settings.prefill or (batch if settings.gpu_layers else min(128, batch)),
        threads=settings.threads or (1 if size_bytes < SMALL_MODEL_BYTES else cores),
        queue=settings.queue,
        stall_s=settings.stall_s,
        kv_type=KV_TYPES[settings.kv_type],
    )
