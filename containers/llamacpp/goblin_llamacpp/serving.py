"""State of the process (loading, ready, draining), the model it serves, and its replacement.

All methods run on the event loop. Loading and freeing a model run in threads.
"""

import asyncio
import logging
from dataclasses import replace
from typing import Literal

from .errors import ApiError, draining, loading
from .fetch import Fetch, FetchFailed
from .generation import Event, Generation
from .gguf import NotGguf
from .loaded import LoadedModel, LoadSettings
from .memory import DoesNotFit
from .metrics import Meters
from .model import ModelRefused
from .source import LocalModel, ModelSource, SourceRefused, local_model
from .template import TemplateRefused

log = logging.getLogger(__name__)

State = Literal["loading", "ready", "draining"]
LoadRefused = (SourceRefused, FetchFailed, NotGguf, DoesNotFit, ModelRefused, TemplateRefused)
"""Errors that mean that a model cannot be served. Their messages are for the operator."""


class Serving:
    """The current model, earlier models that still drain, and the state that probes ask for."""

    def __init__(self, settings: LoadSettings, *, aliases: tuple[str, ...], cores: int, fetch: Fetch) -> None:
        self.settings = settings
        self.meters = Meters()
        self.state: State = "loading"
        self._aliases = aliases
        self._cores = cores
        self._fetch = replace(fetch, on_progress=self._on_progress)
        self.progress = 0.0
        """Share of the file that is downloaded, from 0 to 1, while a model is fetched."""
        self._current: LoadedModel | None = None
        self._retiring: set[LoadedModel] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._swap = asyncio.Lock()

    async def load_first(self, source: ModelSource) -> None:
        """Load the first model, in the background of a server that already listens.

        Raises:
            LoadRefused: The model cannot be served; the process should exit.
        """
        self._current = await self._load(source, self._aliases[0])
        if self.state == "loading":
            self.state = "ready"

    def current(self, wanted: str | None = None) -> LoadedModel:
        """Return the model for a new request.

        Args:
            wanted: The model name in the request; None accepts the current model.

        Raises:
            ApiError: 503 while loading or draining, 404 for a name that is not served.
        """
        if self.state == "draining":
            raise draining()
        if self._current is None:
            raise loading()
        if wanted and wanted not in self.names:
            raise ApiError(404, f"The model `{wanted}` does not exist", code="model_not_found", param="model")
        return self._current

    @property
    def names(self) -> tuple[str, ...]:
        """Names under which requests may address the current model; the first is its alias."""
        alias = self._current.alias if self._current else self._aliases[0]
        return tuple(dict.fromkeys((alias, *self._aliases)))

    @property
    def peek(self) -> LoadedModel | None:
        """The current model for callers that only read it, also while draining; None while loading."""
        return self._current

    @property
    def is_alive(self) -> bool:
        """Whether the process is loading, or its engine makes steps."""
        return self._current is None or self._current.engine.is_alive

    @property
    def processing(self) -> int:
        return sum(model.engine.processing for model in self._all())

    @property
    def deferred(self) -> int:
        return sum(model.engine.deferred for model in self._all())

    async def replace(self, source: ModelSource, alias: str) -> LoadedModel:
        """Load a model beside the current one, send all new requests to it, and let the old one finish.

        Raises:
            ApiError: 409 while another replacement runs, 503 while loading or draining.
            LoadRefused: The new model cannot be served; the current one stays.
        """
        if self._swap.locked():
            raise ApiError(
                409, "Another model is being loaded. Try again later.", code="load_in_progress", retry_after_s=5
            )
        async with self._swap:
            self.current()
            # The adapters belong to the model that the process started with.
            self.settings = replace(self.settings, adapters=())
            new = await self._load(source, alias)
            if self.state == "draining":
                await asyncio.to_thread(new.close)
                raise draining()
            old, self._current = self._current, new
            if old is not None:
                self._retiring.add(old)
                task = asyncio.create_task(self._retire(old))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            return new

    def drain(self) -> None:
        """Refuse new requests from now on; running ones go on."""
        self.state = "draining"

    async def finish(self, *, grace_s: float, cut_s: float) -> None:
        """Wait for the running answers, and cut those left after `grace_s`.

        This takes at most about `grace_s + cut_s`, even if an engine hangs.

        Args:
            grace_s: How long running answers may go on.
            cut_s: How long to wait for the last chunks after the cut.
        """
        models = self._all()
        for model in models:
            model.engine.close()
        if not await self._joined(models, grace_s):
            for model in models:
                model.engine.close(cut=True)
            await self._joined(models, cut_s)

    async def _joined(self, models: list[LoadedModel], timeout_s: float) -> bool:
        ends = [asyncio.to_thread(model.engine.join, timeout_s) for model in models]
        return all(await asyncio.gather(*ends))

    async def _retire(self, model: LoadedModel) -> None:
        await asyncio.to_thread(model.close)
        self._retiring.discard(model)

    def _all(self) -> list[LoadedModel]:
        return [*self._retiring, *([self._current] if self._current else [])]

    async def _load(self, source: ModelSource, alias: str) -> LoadedModel:
        """Fetch, verify and load a model, in this order: an unverified file is never parsed."""
        async with local_model(source, self._fetch) as file:
            model = await asyncio.to_thread(self._open, file, alias)
            if not file.is_unchanged():
                await asyncio.to_thread(model.close)
                raise SourceRefused(f"{file.path.name} was changed while it was loaded. Load it again.")
        log.info("Serving model %s (%s).", alias, file.sha256 or file.path.name)
        return model

    def _open(self, file: LocalModel, alias: str) -> LoadedModel:
        return LoadedModel(
            file.path,
            self.settings,
            alias=alias,
            cores=self._cores,
            meters=self.meters,
            post=self._post,
            sha256=file.sha256,
        )

    def _on_progress(self, done: int, total: int) -> None:
        self.progress = done / total if total else 0.0

    def _post(self, events: list[tuple[Generation, Event]]) -> None:
        """Hand events from an engine's thread to the event loop, with one wake-up per step, not per token."""
        try:
            self._loop.call_soon_threadsafe(_hand_out, events)
        except RuntimeError:
            # The loop is closed: the process is exiting and no client waits for these events.
            log.warning("Dropped %d events, because the event loop is closed.", len(events))


def _hand_out(events: list[tuple[Generation, Event]]) -> None:
    for generation, event in events:
        generation.sink(generation, event)
