"""Cloud Storage on loopback: the JSON API, and of the XML API what signed URLs and parallel uploads need."""

import asyncio
import logging
from pathlib import Path

from starlette.routing import BaseRoute, Route

from localcloud.clock import Clock, utc_now
from localcloud.storage.buckets import Buckets
from localcloud.storage.catalog import Catalog
from localcloud.storage.files import Files
from localcloud.storage.notifications import Notifications, Publish
from localcloud.storage.objects import Objects
from localcloud.storage.resources import Resources
from localcloud.storage.routes import Routes
from localcloud.storage.sessions import Sessions
from localcloud.storage.signed import Signers
from localcloud.storage.uploads import Uploads
from localcloud.storage.xml import Xml

log = logging.getLogger(__name__)


class Storage:
    """All of it: `start`, serve `routes`, `close`."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock = utc_now,
        publish: Publish | None = None,
        signers: Signers | None = None,
    ) -> None:
        """Open the state.

        Args:
            folder: Where `storage.db`, `objects/` and `incoming/` lie; made if absent.
            clock: Aware UTC; decides generations and the life of signed URLs.
            publish: Sends object notifications; without it they are not sent.
            signers: Whose V4 signatures count; without it nobody's.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._catalog = Catalog(folder / "storage.db", clock=clock)
        self._files = Files(folder)
        self._notifications = Notifications(self._catalog, publish)
        objects = Objects(self._catalog, self._files, self._notifications)
        self._sessions = Sessions(objects)
        self._routes = Routes(
            Buckets(self._catalog, self._notifications),
            Resources(objects),
            Uploads(objects, self._sessions),
            Xml(objects, self._sessions, signers=signers or {}, clock=clock),
        )

    def routes(self) -> list[BaseRoute]:
        """One route that takes every path: put it behind all others."""
        return [Route("/{path:path}", self._routes)]

    async def start(self) -> None:
        """Clear what a killed process left, then publish what it had still to tell."""
        incoming = self._sessions.sweep()
        swept = await asyncio.to_thread(self._files.sweep, generations=self._catalog.generations(), incoming=incoming)
        if swept:
            log.info("swept %d files of unfinished uploads", swept)
        self._notifications.start()

    async def close(self) -> None:
        """Stop publishing and close the files."""
        await self._notifications.close()
        self._catalog.close()
