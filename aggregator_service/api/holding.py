"""Requests that are held until there is something to answer; thousands of them wait at a time.

Whoever waits inside a route keeps the frames of all middleware and dependencies, and the request's head, for as long.
A route therefore gives back how it will answer, the framework unwinds, and only that waits.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from aggregator_service.telemetry import Telemetry

_ANSWER: Final = "fedquorum.answer"
_WAITING: Final = "fedquorum.waiting"
_STILL_READ: Final = frozenset({"type", "asgi", "http_version", "method", "headers", "extensions", "route"})
"""What is asked of a request's scope while it is answered; the list of headers must be there, and is empty."""


Answer = Callable[[], Awaitable[Response | BaseModel]]
"""Waits, and gives what the request is answered with; a model is sent as JSON. It may raise ProblemError."""


class Held(Response):
    """What a route gives back that waits: how the request is answered once its head has been forgotten."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Leaves the answer to the middleware that holds requests."""
        scope[_ANSWER] = self._answer


class Holding:
    """An ASGI middleware that answers held requests, and counts them meanwhile (`fedquorum_waiting_requests`)."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and waits in its stead if that is wanted."""
        await self._app(scope, receive, send)
        answer = scope.pop(_ANSWER, None)
        if answer is None:
            return
        _forget(scope)
        response = await self._wait(answer, scope)
        await response(scope, receive, send)

    async def _wait(self, answer: Answer, scope: Scope) -> Response:
        scope[_WAITING] = asyncio.current_task()
        self._telemetry.hold(1)
        try:
            found = await answer()
        except asyncio.CancelledError:
            if _WAITING in scope:
                raise
            # Nobody reads this; it is how requests are counted whose sender has left.
            return Response(status_code=400)
        finally:
            scope.pop(_WAITING, None)
            self._telemetry.hold(-1)
        return found if isinstance(found, Response) else _as_json(found)


def let_go(scope: Scope) -> None:
    """Ends the wait of a request whose sender has left, if it is held."""
    waiting: asyncio.Task[None] | None = scope.pop(_WAITING, None)
    if waiting is not None:
        waiting.cancel()


def _as_json(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")


def _forget(scope: Scope) -> None:
    scope["headers"].clear()
    kept = {key: value for key, value in scope.items() if key in _STILL_READ}
    # A dictionary keeps the room of what is deleted from it, but not of what is cleared.
    scope.clear()
    scope.update(kept)
