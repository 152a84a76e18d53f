"""The way into public routes: the same steps for every one, before anything is looked up or answered.

identify the caller (key and scope) ─ read the body ─ admission: rate, parallel limit, a place ─ the route's own work

`routed` refuses a route that is behind no door, so that a new one cannot forget it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from goblin.gateway.admission import AdmissionControl
from goblin.gateway.ports import Counted, HttpReply
from goblin.web import asgi, logs

C = TypeVar("C", bound=Counted)
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit(Generic[C]):
    """A request that was admitted."""

    request: Request
    caller: C
    body: bytes = b""
    """The whole body; empty for a route that reads none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Door(Generic[C]):
    """The callers of a route, and how they are recognised and counted."""

    callers: str
    """For people, and for the test that lists every route: for example "an API key with scope `jobs`"."""
    identify: Callable[[Request], Awaitable[C]]
    """Recognise the caller from the request's head. Raises `GoblinError` for one that may not come in."""
    admission: Callable[[], AdmissionControl]

    def __call__(
        self,
        work: Callable[[Visit[C]], Awaitable[Response]],
        *,
        body_bytes_max: int | None = None,
        is_json: bool = True,
        refuse: Callable[[Exception], HttpReply] = asgi.error_answer,
    ) -> Handler:
        """Put a route behind the door.

        Args:
            work: Answers an admitted request. Its errors become responses.
            body_bytes_max: The most bytes of its body; None: no body is read.
            is_json: As of `asgi.read_body`. False where the route's parser names the field in its refusal.
            refuse: Puts an error into the shape of the route's API.
        """

        @wraps(work)
        async def route(request: Request) -> Response:
            logs.follow(request.scope)
            try:
                caller = await self.identify(request)
                body = b""
                if body_bytes_max is not None:
                    body = await asgi.read_body(request, body_bytes_max, is_json=is_json)
                async with self.admission().place(caller):
                    return await work(Visit(request=request, caller=caller, body=body))
            except HTTPException:
                raise  # Raised by Starlette's router, and handled by `asgi.routed`.
            except Exception as error:  # noqa: BLE001  As in `asgi.answers_errors`.
                return asgi.respond(refuse(error))

        _callers[route] = self.callers
        return route


_callers: WeakKeyDictionary[Handler, str] = WeakKeyDictionary()


def declare(callers: str, handler: Handler) -> Handler:
    """Declare the callers of a route that does not use a `Door`: it is open, or takes the same steps by itself."""
    _callers[handler] = callers
    return handler


def callers_of(route: Route) -> str:
    """Return who may call a route. Raises `TypeError` for a route that is behind no door."""
    try:
        return _callers[route.endpoint]
    except KeyError:
        raise TypeError(f"The route {route.path} is behind no door. Wrap its handler in one of web.doors.") from None


def routed(routes: Sequence[Route]) -> Starlette:
    """Build the application of a doorway with several paths. Raises `TypeError` for a route that is behind no door."""
    for route in routes:
        callers_of(route)
    return asgi.routed(routes)
