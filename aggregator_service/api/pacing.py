"""Bounds how slowly a request's body may come, so that no sender holds a connection by sending next to nothing."""

import asyncio
from typing import Final

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

GRACE_SECONDS: Final = 10.0
MIN_BYTES_A_SECOND: Final = 1024
MAX_SILENCE_SECONDS: Final = 30.0


class Pacing:
    """An ASGI middleware that gives up on a body that is silent for 30 s or slower than 1 KiB/s (`request-timeout`)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with a clock on its body."""
        await self._app(scope, receive if scope["type"] != "http" else Paced(receive), send)


class Paced:
    """Reads one request's body; only waiting for its sender counts, and what comes after the body may take for ever."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._num_bytes = 0
        self._waited_seconds = 0.0
        self._more = True

    async def __call__(self) -> Message:
        """Gives the next message; raises HTTPException (408) from a sender that is too slow."""
        if not self._more:
            return await self._receive()
        loop = asyncio.get_running_loop()
        began = loop.time()
        left = GRACE_SECONDS + self._num_bytes / MIN_BYTES_A_SECOND - self._waited_seconds
        try:
            # Not `wait_for`, which makes a task of each message.
            async with asyncio.timeout(min(left, MAX_SILENCE_SECONDS)):
                message = await self._receive()
        except TimeoutError:
            raise _too_slow() from None
        self._waited_seconds += loop.time() - began
        self._num_bytes += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        return message


def _too_slow() -> HTTPException:
    return HTTPException(
        408,
        f"the body came slower than {MIN_BYTES_A_SECOND} bytes a second or stopped for {MAX_SILENCE_SECONDS:.0f} s; "
        "send it again",
    )
