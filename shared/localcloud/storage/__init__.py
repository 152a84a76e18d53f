"""Cloud Storage on loopback: the JSON API, and the parts of the XML API for signed URLs and parallel uploads."""

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
    """The Cloud Storage service: `start`, serve `routes`, `close`."""

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
            folder: Holds `storage.db`, `objects/` and `incoming/`; created if absent.
            clock: Aware UTC; decides generations and when signed URLs expire.
            publish: Publishes object notifications. None publishes none.
            signers: The accounts whose V4 signatures are accepted. None accepts none.
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
        """Return one route that matches every path; put it behind all others."""
        return [Route("/{path:path}", self._routes)]

    async def start(self) -> None:
        """Remove files of a killed process, then publish its remaining notifications."""
        incoming = self._sessions.sweep()
        swept = await asyncio.to_thread(self._files.sweep, generations=self._catalog.generations(), incoming=incoming)
        if swept:
            log.info("Removed %d files of unfinished uploads.", swept)
        self._notifications.start()

    async def close(self) -> None:
        """Stop publishing and close the files."""
        await self._notifications.close()
        self._catalog.close()
