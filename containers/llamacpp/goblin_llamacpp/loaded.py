"""A model ready to answer: weights, template, engine and embedder, together and replaceable as one."""

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
"""Below this a second thread costs more in hand-overs than it computes."""
EMBED_CTX_MAX = 2048


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How any model is loaded by this process."""

    slots: int = 8
    ctx: int | None = None
    """Tokens per request; None is what the model was trained for, at most 4096."""
    cells: int | None = None
    """Tokens in the shared pool; None is slots x ctx."""
    batch: int = 512
    prefill: int | None = None
    """Prompt tokens per step; None is 128, or the whole batch when layers are on a GPU."""
    threads: int | None = None
    queue: int = 64
    gpu_layers: int = 0
    stall_s: float = 60.0
    kv_type: str = "f16"
    adapters: tuple[tuple[str, Path], ...] = ()
    """LoRA adapters by name, for the model the process starts with."""
    memory_bytes: int | None = None
    """What model, cache and buffers may use; None is what the machine has free."""


KV_TYPES = {"f16": 1, "q8_0": 8}


class LoadedModel:
    """Serves requests until `close`; two can live side by side while one replaces the other."""

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
        """Load; takes seconds to minutes.

        Raises:
            NotGguf: The file's header is wrong.
            DoesNotFit: There is not enough memory.
            ModelRefused: llama.cpp can not serve it.
            TemplateRefused: Its chat template does not compile.
        """
        self.alias = alias
        self.sha256 = sha256
        """Of the file, where somebody checked it."""
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
        sizes = engine_settings(settings, self.model.n_ctx_train, self.model.size_bytes, cores)
        _ = self.model.eog_tokens, self.model.longest_piece_bytes  # Counted now, not in the first request.
        self.engine = Engine(self.model, sizes, meters, post)
        self.embedder = Embedder(self.model, ctx=min(sizes.ctx, EMBED_CTX_MAX), threads=sizes.threads)

    def close(self) -> None:
        """Take nothing new and wait for the running answers; the weights go with the last reference to them."""
        self.engine.close()
        self.engine.join()

    @property
    def fingerprint(self) -> str:
        """Changes with whatever may change an answer to the same seed."""
        return f"fp_{__version__}_{(self.sha256 or self.model.path.stem)[:16]}"

    def describe(self) -> dict[str, Any]:
        """The `meta` of `/v1/models`, as llama-server gives it."""
        model = self.model
        return {
            "vocab_type": model.vocab_type,
            "n_vocab": model.n_vocab,
            "n_ctx_train": model.n_ctx_train,
            "n_ctx": self.engine.settings.ctx,
            "n_embd": model.n_embd,
            "n_params": model.n_params,
            "size": model.size_bytes,
            "adapters": list(model.adapters),
        }


def plan(path: Path, settings: LoadSettings) -> MemoryPlan | None:
    """Refuse by the header alone what could not be held; None where free memory is unknown."""
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


def engine_settings(settings: LoadSettings, n_ctx_train: int, size_bytes: int, cores: int) -> EngineSettings:
    """Fill in what was left open, from the model and the machine. Pure."""
    ctx = settings.ctx or min(n_ctx_train, 4096)
    cells = settings.cells or settings.slots * ctx
    batch = max(settings.batch, settings.slots)
    return EngineSettings(
        slots=settings.slots,
        ctx=min(ctx, cells),
        # llama.cpp rounds up to 256 itself; counting on less is safe.
        cells=cells,
        batch=batch,
        prefill=settings.prefill or (batch if settings.gpu_layers else min(128, batch)),
        threads=settings.threads or (1 if size_bytes < SMALL_MODEL_BYTES else cores),
        queue=settings.queue,
        stall_s=settings.stall_s,
        kv_type=KV_TYPES[settings.kv_type],
    )
