"""`goblin.toml` read again while the process lives: beside the requests, and never to their harm."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from goblin.core.errors import Broken
from goblin.core.ports import Clock

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0


class ConfigReloader:
    """Looks at the file when somebody uses what it says, at most every `LOOK_EVERY_S`.

    It compares the text and not its time: where files are mounted from a secret or a bucket, times tell little.
    """

    def __init__(self, *, text: str, read: Callable[[], str], apply: Callable[[str], None], clock: Clock) -> None:
        """Take the text that is in force.

        Args:
            text: As it was read at the start.
            read: Reads the file, which may block; raises `Broken` when it cannot.
            apply: Puts a text in force, all of it or, raising `Broken`, nothing.
            clock: Its steady time.
        """
        self._text = text
        self._read = read
        self._apply = apply
        self._clock = clock
        self._looked_s = clock.monotonic()
        self._looking: asyncio.Task[None] | None = None
        self.fault = ""
        """What is wrong with the file as it is now; empty while it is what is in force."""

    def poke(self) -> None:
        """See to it that the file is looked at soon. Costs nothing."""
        if self._clock.monotonic() - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = self._clock.monotonic()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self.look())

    async def look(self) -> None:
        """Look now. Never raises `Broken`: a file that cannot be used leaves the old one in force."""
        try:
            text = await asyncio.to_thread(self._read)
            if text == self._text and not self.fault:
                return
            self._apply(text)
        except Broken as error:
            if error.message != self.fault:
                log.error("the configuration stays as it was: %s", error.message)
            self.fault = error.message
            return
        if text != self._text:
            log.info("the configuration was read again")
        self._text, self.fault = text, ""
