"""Counts every answer and sets the headers that each one carries."""

import asyncio
import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aggregator_service.api.problems import render
from aggregator_service.telemetry import Telemetry
from fl_protocol.problems import ProblemError, ProblemType

_HEADERS: Final = [(b"x-content-type-options", b"nosniff")]


class Instruments:
    """An ASGI middleware; it never looks at paths to decide anything."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and measures its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status, answering = 500, False

        async def measured(message: Message) -> None:
            nonlocal status, answering
            if message["type"] == "http.response.start":
                answering = True
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        try:
            await self._app(scope, receive, measured)
        except asyncio.CancelledError:
            # A request that is still unfinished when the server has drained for long enough.
            if answering:
                raise
            await render(_stopping())(scope, receive, measured)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope.get("route") else "ANY"
            self._telemetry.answered(f"{method} {route}", status, time.perf_counter() - started)


def _stopping() -> ProblemError:
    detail = "the server is stopping and the request was not finished; send it again"
    return ProblemError(ProblemType.UNAVAILABLE, detail, retry_after_seconds=1)
