"""Continuous batching: one thread, one context, one decode loop. Requests join and leave between steps.

    submit ──▶ queue ──▶ slot ──▶ batch ──▶ llama_decode ──▶ sample ──▶ text ──▶ sink (on the event loop)
               fair,      prefix    1 token per running sequence,
               bounded    reuse     then prompt chunks within a budget

Only the engine's thread touches the context. Other threads append to the queue, set `cancelled`, and read counters.
"""

import ctypes
import logging
import threading
import time
from collections.abc import Callable

import llama_cpp

from .batch import Batch
from .context import EngineSettings, open_context
from .errors import broken, draining, queue_full
from .generation import Event, Failed, Finished, FinishReason, Generation, Piece
from .metrics import Meters
from .model import Model
from .queue import FairQueue
from .sampling import GrammarRefused, NoTokenAllowed, Sampler, logprobs, read_logits
from .slots import Adapters, Placement, Row, Slot, choose_adapters, place, plan_batch

log = logging.getLogger(__name__)

NO_KV_SLOT = 1
"""Return code of `llama_decode`: the key-value pool has no room, and nothing was changed."""

Post = Callable[[list[tuple[Generation, Event]]], None]
"""Function that hands the events of one step to the event loop. It must not block."""


class Engine:
    """Decode loop of one model, running from its creation until it is closed."""

    def __init__(self, model: Model, settings: EngineSettings, meters: Meters, post: Post) -> None:
        """Open the context and start the thread.

        Raises:
            ModelRefused: llama.cpp cannot create the context.
        """
        self.model = model
        self.settings = settings
        self.meters = meters
        self._post = post
        self._context: int | None = open_context(model, settings)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = Batch(settings.batch)
        self._slots = [Slot(index) for index in range(settings.slots)]
        self._running: dict[int, Generation] = {}
        self._events: list[tuple[Generation, Event]] = []
        self._step = 0
        self._last_adapters: Adapters | None = None
        self._adapters: Adapters = ()
        """Adapters that the context is set to."""
        self._beat_at = time.monotonic()
        self._idle = True
        self._recent_s = 1.0

        self._wake = threading.Condition()
        self._queue: FairQueue[Generation] = FairQueue(settings.queue)
        self._accepting = True
        self._cut = False
        self._fatal: str | None = None
        self._thread = threading.Thread(target=self._run, name="llama-engine", daemon=True)
        self._thread.start()

    # Called from other threads.

    def submit(self, *generations: Generation) -> None:
        """Queue the answers of one request: all of them or none.

        Raises:
            ApiError: 429 if they do not all fit the queue, 503 while closing, 500 after a fatal error.
        """
        with self._wake:
            if self._fatal:
                raise broken(self._fatal)
            if not self._accepting:
                raise draining()
            if not self._queue.has_room(len(generations), extra=self.settings.slots - len(self._running)):
                self.meters.refused += 1
                raise queue_full(self._retry_after_s())
            for generation in generations:
                self._queue.append(generation.client, generation)
            self._wake.notify()

    def cancel(self, generation: Generation) -> None:
        """Stop an answer before the next step. Its sink still gets `Finished("cancelled")`."""
        generation.cancelled = True
        with self._wake:
            self._wake.notify()

    def close(self, *, cut: bool = False) -> None:
        """Refuse new answers and let the thread end after the running and queued ones. A second call is safe.

        Args:
            cut: End the running and queued answers before the next step.
        """
        with self._wake:
            self._accepting = False
            self._cut = self._cut or cut
            self._wake.notify()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread to end, then free the context.

        Returns:
            False if the thread still runs. The context is not freed then: the thread may be inside the library.
        """
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        with self._wake:
            context, self._context = self._context, None
        if context:
            llama_cpp.llama_free(context)
        return True

    @property
    def processing(self) -> int:
        return len(self._running)

    @property
    def deferred(self) -> int:
        return len(self._queue)

    @property
    def is_alive(self) -> bool:
        """Whether the engine is idle or made a step within `stall_s`. Waiting for requests counts as alive."""
        if self._fatal or not self._thread.is_alive():
            return False
        return self._idle or time.monotonic() - self._beat_at < self.settings.stall_s

    def describe_slots(self) -> list[dict[str, object]]:
        """Return llama-server's `/slots` objects, without any prompt or answer text."""
        running = dict(self._running)
        return [
            {
                "id": slot.index,
                "n_ctx": self.settings.ctx,
                "is_processing": slot.index in running,
                "n_cached_tokens": len(slot.cached),
                "n_prompt_tokens": len(running[slot.index].prompt) if slot.index in running else 0,
                "n_decoded": len(running[slot.index].generated) if slot.index in running else 0,
            }
            for slot in self._slots
        ]

    def _retry_after_s(self) -> int:
        rounds = 1 + (len(self._queue) + len(self._running)) / self.settings.slots
        return min(max(round(self._recent_s * rounds), 1), 60)

    # Run on the engine's thread.

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._make_step()
                self._deliver()
        except Exception as error:
            log.exception("The engine stopped because of an error.")
            self._fatal = f"The engine stopped because of an error: {error}."
        with self._wake:
            self._accepting = False
            left = list(self._queue)
        for generation in [*self._running.values(), *left]:
            self._drop_sampler(generation)
            self.meters.failed += 1
            self._tell(generation, Failed(self._fatal or "The engine has stopped."))
        self._deliver()

    def _wait_for_work(self) -> bool:
        with self._wake:
            while not self._running and not self._queue:
                if not self._accepting:
                    return False
                self._idle = True
                self._wake.wait()
            self._beat_at, self._idle = time.monotonic(), False
            return True

    def _make_step(self) -> None:
        self._step += 1
        self._end_cancelled()
        if self._cut:
            self._cut_short()
        self._admit()
        self._last_adapters = adapters = choose_adapters(self._slots, self._last_adapters)
        if adapters is None:
            return
        self._use_adapters(adapters)
        candidates = [slot for slot in self._slots if slot.adapters == adapters]
        rows = plan_batch(candidates, batch_tokens=self.settings.batch, prefill_tokens=self.settings.prefill)
        if self._decode(rows):
            self._sample(rows)

    def _end_cancelled(self) -> None:
        with self._wake:
            gone = [generation for generation in self._queue if generation.cancelled]
            for generation in gone:
                self._queue.remove(generation.client, generation)
        for generation in gone:
            self._end(generation, "cancelled")
        for index, generation in list(self._running.items()):
            if generation.cancelled:
                self._release(index, "cancelled")

    def _cut_short(self) -> None:
        with self._wake:
            waiting = list(self._queue)
            for generation in waiting:
                self._queue.remove(generation.client, generation)
        for generation in waiting:
            self._end(generation, "length", cut_short=True)
        for index in list(self._running):
            self._release(index, "length", cut_short=True)

    # Requests join.

    def _admit(self) -> None:
        while len(self._running) < len(self._slots):
            with self._wake:
                taken = self._queue.pop()
            if taken is None:
                return
            client, generation = taken
            placement = place(
                generation.prompt + generation.generated,
                generation.max_new - len(generation.generated),
                self._slots,
                cells=self.settings.cells,
                adapters=generation.adapters,
                can_copy=not self.model.is_recurrent,
            )
            if placement is None:
                with self._wake:
                    self._queue.push_front(client, generation)
                return
            self._start(generation, placement)

    def _start(self, generation: Generation, placement: Placement) -> None:
        if generation.sampler is None:
            try:
                generation.sampler = Sampler(self.model, generation.sampling)
            except GrammarRefused as error:
                self.meters.failed += 1
                self._tell(generation, Failed(str(error), client_fault=True))
                return
        slot, reuse = self._slots[placement.slot], self._reuse(placement)
        tokens = generation.prompt + generation.generated
        slot.busy, slot.prefilling = True, True
        slot.adapters, slot.used_at = generation.adapters, self._step
        slot.reserved = len(generation.prompt) + generation.max_new
        slot.pending = tokens[reuse:]
        if generation.admitted_at is None:
            generation.admitted_at = time.monotonic()
            generation.cached_tokens = min(reuse, len(generation.prompt))
        self._running[slot.index] = generation

    def _reuse(self, placement: Placement) -> int:
        """Prepare the slot's keys and values, and return how many tokens they cover."""
        slot, source, reuse = self._slots[placement.slot], self._slots[placement.source], placement.reuse
        if slot is source:
            kept = slot.cached[:reuse]
            # A recurrent state cannot be cut back, so all of it is dropped.
            if not llama_cpp.llama_memory_seq_rm(self._memory, slot.index, reuse, -1):
                self._forget(slot)
                kept = []
        else:
            self._forget(slot)
            kept = source.cached[:reuse]
            if reuse:
                llama_cpp.llama_memory_seq_cp(self._memory, source.index, slot.index, 0, reuse)
                source.used_at = self._step
        for index in placement.evict:
            self._forget(self._slots[index])
        slot.cached = kept
        return len(kept)

    def _forget(self, slot: Slot) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, slot.index, -1, -1)
        slot.cached = []

    # Decoding.

    def _use_adapters(self, adapters: Adapters) -> None:
        if adapters == self._adapters:
            return
        count = len(adapters)
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * count)(*(self.model.adapters[name] for name, _ in adapters))
        scales = (ctypes.c_float * count)(*(scale for _, scale in adapters))
        if code := llama_cpp.llama_set_adapters_lora(self._context, handles, count, scales):
            raise RuntimeError(f"llama_set_adapters_lora failed with code {code}")
        self._adapters = adapters

    def _decode(self, rows: list[Row]) -> bool:
        """Run one batch. Return False if it must be planned again."""
        self._batch.clear()
        for row in rows:
            slot = self._slots[row.slot]
            self._batch.add(slot.index, slot.pending[: row.count], at=len(slot.cached), logits=row.logits)
        started = time.monotonic()
        code = llama_cpp.llama_decode(self._context, self._batch.native)
        elapsed = time.monotonic() - started
        if code == NO_KV_SLOT:
            self._make_room()
            return False
        if code != 0:
            raise RuntimeError(f"llama_decode failed with code {code}")
        self._account(rows, elapsed)
        for row in rows:
            slot = self._slots[row.slot]
            slot.cached += slot.pending[: row.count]
            del slot.pending[: row.count]
        return True

    def _account(self, rows: list[Row], elapsed_s: float) -> None:
        meters = self.meters
        meters.decodes += 1
        meters.busy_slots += len(rows)
        prompt = sum(row.count for row in rows if self._slots[row.slot].prefilling)
        total = sum(row.count for row in rows)
        meters.prompt_tokens += prompt
        meters.prompt_s += elapsed_s * prompt / total
        meters.predicted_s += elapsed_s * (total - prompt) / total
        meters.tokens_max = max(meters.tokens_max, *(len(self._slots[r.slot].cached) + r.count for r in rows))

    def _make_room(self) -> None:
        """Free cells when the pool is full against the plan: evict idle caches, else requeue the youngest request."""
        cached = [slot for slot in self._slots if not slot.busy and slot.cached]
        if cached:
            for slot in cached:
                self._forget(slot)
            return
        if len(self._running) == 1:
            (index,) = self._running
            self._fail(index, Failed("The request does not fit the key-value cache."))
            return
        index = max(self._running, key=lambda i: self._running[i].admitted_at or 0.0)
        generation = self._running.pop(index)
        self._free(self._slots[index])
        self._forget(self._slots[index])
        with self._wake:
            self._queue.push_front(generation.client, generation)

    def _sample(self, rows: list[Row]) -> None:
        for row in rows:
            if not row.logits:
                continue
            generation = self._running[row.slot]
            assert generation.sampler is not None and self._context is not None  # noqa: S101, PT018 - until `join`.
            position = self._batch.row_of(row.slot)
            try:
                token = generation.sampler.sample(self._context, position)
            except NoTokenAllowed as error:
                self._fail(row.slot, Failed(str(error), client_fault=True))
                continue
            self._take(row.slot, generation, token, position)

    def _take(self, index: int, generation: Generation, token: int, position: int) -> None:
        """Handle a new token: send its text, then end the answer or continue it."""
        if generation.first_token_at is None:
            generation.first_token_at = time.monotonic()
        slot = self._slots[index]
        slot.prefilling = False
        generation.generated.append(token)
        self.meters.predicted_tokens += 1
        if token in self.model.eog_tokens:
            self._release(index, "stop")
            return
        if generation.top_logprobs is not None:
            assert self._context is not None  # noqa: S101 - until `join`.
            logits = read_logits(self._context, position, self.model.n_vocab)
            entry = logprobs(logits, token, generation.top_logprobs)
            generation.held_logprobs.append((generation.text.seen, entry))
        self._show(generation, generation.text.push(self.model.piece(token)))
        if generation.text.stopped_by is not None:
            self._release(index, "stop")
        elif len(generation.generated) >= generation.max_new:
            self._release(index, "length")
        else:
            slot.pending = [token]

    # Requests leave.

    def _show(self, generation: Generation, text: str, *, all_logprobs: bool = False) -> None:
        held = generation.held_logprobs
        ready = [entry for at, entry in held if all_logprobs or at < generation.text.shown]
        if not text and not ready:
            return
        del held[: len(ready)]
        self._tell(generation, Piece(text, tuple(ready)))

    def _release(self, index: int, reason: FinishReason, *, cut_short: bool = False) -> None:
        generation = self._running.pop(index)
        self._free(self._slots[index])
        self._end(generation, reason, cut_short=cut_short)

    def _end(self, generation: Generation, reason: FinishReason, *, cut_short: bool = False) -> None:
        now = time.monotonic()
        self._drop_sampler(generation)
        if reason == "cancelled":
            self.meters.cancelled += 1
        else:
            self._show(generation, generation.text.flush(), all_logprobs=generation.text.stopped_by is None)
        admitted = generation.admitted_at or now
        first = generation.first_token_at or now
        self.meters.prompt_tokens_cached += generation.cached_tokens
        self._recent_s += (now - admitted - self._recent_s) * 0.1
        self._tell(
            generation,
            Finished(
                reason=reason,
                prompt_tokens=len(generation.prompt),
                cached_tokens=generation.cached_tokens,
                completion_tokens=len(generation.generated),
                prompt_s=first - admitted,
                predicted_s=now - first,
                cut_short=cut_short,
            ),
        )

    def _fail(self, index: int, event: Failed) -> None:
        generation = self._running.pop(index)
        self._free(self._slots[index])
        self._drop_sampler(generation)
        self.meters.failed += 1
        self._tell(generation, event)

    def _free(self, slot: Slot) -> None:
        """Mark a slot as idle. Its keys and values stay as a prefix cache."""
        slot.busy, slot.prefilling, slot.reserved = False, False, 0
        slot.pending, slot.used_at = [], self._step

    def _drop_sampler(self, generation: Generation) -> None:
        if generation.sampler is not None:
            generation.sampler.close()
            generation.sampler = None

    def _tell(self, generation: Generation, event: Event) -> None:
        self._events.append((generation, event))

    def _deliver(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self._post(events)
