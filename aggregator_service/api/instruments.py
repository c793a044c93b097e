"""Counts every answer and sets the headers that each one carries."""

import asyncio
import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aggregator_service.api.problems import failed, render
from aggregator_service.telemetry import Telemetry
from fl_protocol.problems import ProblemError, ProblemType

_HEADERS: Final = [(b"x-content-type-options", b"nosniff")]


class Instruments:
    """An ASGI middleware; it never looks at paths to decide anything."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and measures its answer; what fails before the answer has begun is told."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        measured = _Measured(send)
        try:
            await self._app(scope, receive, measured.send)
        except asyncio.CancelledError:
            # A request that is still unfinished when the server has drained for long enough.
            if measured.is_answering:
                raise
            await render(_stopping())(scope, receive, measured.send)
        except Exception as error:
            if measured.is_answering:
                raise
            await failed(error, scope, self._telemetry)(scope, receive, measured.send)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope.get("route") else "ANY"
            self._telemetry.answered(f"{method} {route}", measured.status, time.perf_counter() - started)


class _Measured:
    """One answer on its way; until it has begun it counts as a failure."""

    __slots__ = ("_send", "is_answering", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_answering = False
        self.status = 500

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_answering = True
            self.status = message["status"]
            message["headers"] = [*message["headers"], *_HEADERS]
        await self._send(message)


def _stopping() -> ProblemError:
    detail = "the server is stopping and the request was not finished; send it again"
    return ProblemError(ProblemType.UNAVAILABLE, detail, retry_after_seconds=1)
