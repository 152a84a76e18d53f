"""Reload `goblin.toml` while the process runs, in the background; a broken file never affects requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from goblin.core.errors import Broken
from goblin.core.ports import Clock

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0


class ConfigReloader:
    """Reads the file again when the configuration is used, at most every `LOOK_EVERY_S`.

    It compares the text and not the modification time, which is unreliable for files mounted from a secret or a bucket.
    """

    def __init__(self, *, text: str, read: Callable[[], str], apply: Callable[[str], None], clock: Clock) -> None:
        """Start with the text that is in force.

        Args:
            text: The file as it was read at the start.
            read: Reads the file, and may block; raises `Broken` when it cannot.
            apply: Puts a text in force: all of it, or nothing, in which case it raises `Broken`.
            clock: Its monotonic time is used.
        """
        self._text = text
        self._read = read
        self._apply = apply
        self._clock = clock
        self._looked_s = clock.monotonic()
        self._looking: asyncio.Task[None] | None = None
        self.fault = ""
        """What is wrong with the file as it is now; empty while the file is in force."""

    def poke(self) -> None:
        """Schedule a look at the file if one is due. Returns at once."""
        if self._clock.monotonic() - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = self._clock.monotonic()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self.look())

    async def look(self) -> None:
        """Read the file now. Never raises `Broken`: a file that cannot be used leaves the old one in force."""
        try:
            text = await asyncio.to_thread(self._read)
            if text == self._text and not self.fault:
                return
            self._apply(text)
        except Broken as error:
            if error.message != self.fault:
                log.error("goblin.toml was not applied; the previous configuration stays in force: %s", error.message)
            self.fault = error.message
            return
        if text != self._text:
            log.info("Reloaded goblin.toml.")
        self._text, self.fault = text, ""
