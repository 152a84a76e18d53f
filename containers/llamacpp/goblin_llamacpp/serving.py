"""What the process serves and whether it may: loading, ready, draining; and replacing the model.

All of it runs on the event loop; loading and freeing run in threads.
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
"""Every way in which a model can turn out not to be servable; the words are for its owner."""


class Serving:
    """The current model, its predecessor while that drains, and the state probes ask for."""

    def __init__(self, settings: LoadSettings, *, aliases: tuple[str, ...], cores: int, fetch: Fetch) -> None:
        self.settings = settings
        self.meters = Meters()
        self.state: State = "loading"
        self._aliases = aliases
        self._cores = cores
        self._fetch = replace(fetch, on_progress=self._on_progress)
        self.progress = 0.0
        """Part of the file that is here, while a model is fetched."""
        self._current: LoadedModel | None = None
        self._retiring: set[LoadedModel] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._swap = asyncio.Lock()

    async def load_first(self, source: ModelSource) -> None:
        """Load in the background of an already listening server.

        Raises:
            LoadRefused: There is nothing to serve; the process should end.
        """
        self._current = await self._load(source, self._aliases[0])
        if self.state == "loading":
            self.state = "ready"

    def current(self, wanted: str | None = None) -> LoadedModel:
        """The model for a new request.

        Raises:
            ApiError: 503 while loading or draining, 404 for another model.
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
        """What a request may call the current model; the first is its own name."""
        alias = self._current.alias if self._current else self._aliases[0]
        return tuple(dict.fromkeys((alias, *self._aliases)))

    @property
    def peek(self) -> LoadedModel | None:
        """The current model for those who only look."""
        return self._current

    @property
    def is_alive(self) -> bool:
        """Loading is life; an engine that does not move is not."""
        return self._current is None or self._current.engine.is_alive

    @property
    def processing(self) -> int:
        return sum(model.engine.processing for model in self._all())

    @property
    def deferred(self) -> int:
        return sum(model.engine.deferred for model in self._all())

    async def replace(self, source: ModelSource, alias: str) -> LoadedModel:
        """Load a model beside the current one, give it all new requests, and let the old one finish.

        Raises:
            ApiError: 409 while another replacement runs.
            LoadRefused: The current model goes on as if nothing had happened.
        """
        if self._swap.locked():
            raise ApiError(409, "Another model is being loaded", code="load_in_progress", retry_after_s=5)
        async with self._swap:
            self.current()
            # Adapters were made for the model the process started with.
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
        """New requests are refused from now on; running ones go on."""
        self.state = "draining"

    async def finish(self, *, grace_s: float, cut_s: float) -> None:
        """Wait for the running answers, and cut what is left after `grace_s`.

        Returns within about `grace_s + cut_s`, whatever happens.
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
        """Fetch, verify, load; in this order, so that nothing unverified is ever parsed."""
        async with local_model(source, self._fetch) as file:
            model = await asyncio.to_thread(self._open, file, alias)
            if not file.is_unchanged():
                await asyncio.to_thread(model.close)
                raise SourceRefused(f"{file.path.name} was changed while it was loaded")
        log.info("serving %s (%s)", alias, file.sha256 or file.path.name)
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
        """Called by engine threads: one wake-up of the event loop per step, not per token."""
        try:
            self._loop.call_soon_threadsafe(_hand_out, events)
        except RuntimeError:
            # The loop is closed: the process ends and nobody waits for these.
            log.warning("%d events came after the end", len(events))


def _hand_out(events: list[tuple[Generation, Event]]) -> None:
    for generation, event in events:
        generation.sink(generation, event)
