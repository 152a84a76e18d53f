"""A local cloud in a thread of this process, for tests: ready in tenths of a second, stopped when the block ends."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from localcloud.server import Addresses, LocalCloud, Options

CALL_S_MAX = 30.0
T = TypeVar("T")


class CloudInThread:
    """A local cloud with a thread and an event loop of its own: `with CloudInThread(options) as cloud: …`."""

    addresses: Addresses
    """The addresses; set when the block begins."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.cloud: LocalCloud | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="localcloud", daemon=True)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the cloud's loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(CALL_S_MAX)

    async def _start(self) -> Addresses:
        self.cloud = LocalCloud(self.options)
        return await self.cloud.start()

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.addresses = self.run(self._start())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.cloud is not None:
            self.run(self.cloud.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S_MAX)
        self._loop.close()
