"""How answers leave a connection: files go out by sendfile, and whoever reads too slowly is let go.

A file's bytes are handed from the page cache to the socket by the kernel (sendfile(2)), past the event loop's own
buffers. Applications ask for it by ASGI's extension `http.response.zerocopysend` (ASGI 3.0, Extensions).
"""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, Final, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from aggregator_service.api.pacing import GRACE_SECONDS, MAX_SILENCE_SECONDS, MIN_BYTES_A_SECOND

ZERO_COPY: Final = "http.response.zerocopysend"
_EXTENSIONS: Final[dict[str, dict[object, object]]] = {ZERO_COPY: {}}

_MOST_AT_ONCE: Final = 1 << 20
"""How much is sent before other requests have their turn."""
_READ_AHEAD: Final = 8 << 20
"""How far ahead the kernel is told to read, so that the event loop does not wait for the disk."""


class PacedAnswers:
    """An ASGI application around another, for one connection of uvicorn's; it knows the socket behind the answers."""

    __slots__ = ("_app", "_transport")

    def __init__(self, app: ASGIApp, transport: asyncio.Transport) -> None:
        self._app = app
        self._transport = transport

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and sends its answer at the pace of its reader."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # What uvicorn gives as `send` is a method of the request's cycle.
        cycle = cast("RequestResponseCycle", cast("Any", send).__self__)
        answer = _Answer(self._transport, send, cycle)
        # uvicorn has none of its own for HTTP.
        scope["extensions"] = _EXTENSIONS
        await self._app(scope, receive, answer.send)


class _Answer:
    """One answer on its way; only waiting for its reader counts."""

    __slots__ = ("_cycle", "_num_bytes", "_send", "_transport", "_waited_seconds")

    def __init__(self, transport: asyncio.Transport, send: Send, cycle: RequestResponseCycle) -> None:
        self._transport = transport
        self._send = send
        self._cycle = cycle
        self._num_bytes = 0
        self._waited_seconds = 0.0

    async def send(self, message: Message) -> None:
        if message["type"] == ZERO_COPY:
            await self._send_file(message["file"], message["offset"], message["count"])
            message = {"type": "http.response.body", "body": b"", "more_body": message.get("more_body", False)}
        elif self._cycle.flow.write_paused:
            await self._wait(self._cycle.flow.drain())
        self._num_bytes += len(message.get("body", b""))
        await self._send(message)

    async def _send_file(self, file: int, offset: int, count: int) -> None:
        """Sends a part of a file behind the answer's head; a reader that has left or is too slow ends it."""
        descriptor = os.dup(self._transport.get_extra_info("socket").fileno())
        try:
            await self._flush(descriptor)
            await self._keep_pace(_Stretch(descriptor, file, offset, offset + count))
        except OSError:
            self._transport.abort()
        finally:
            os.close(descriptor)
        # uvicorn counts what passed it by, and takes a broken connection for what it is.
        self._cycle.expected_content_length -= count

    async def _flush(self, descriptor: int) -> None:
        """Waits until the head has left the transport's buffer: the file comes behind it."""
        while self._transport.get_write_buffer_size() and not self._transport.is_closing():
            await asyncio.sleep(0)
            if self._transport.get_write_buffer_size():
                await self._wait(_writable(descriptor))

    async def _keep_pace(self, stretch: "_Stretch") -> None:
        """Lets a stretch of a file go out for as long as its reader keeps the pace."""
        loop = asyncio.get_running_loop()
        begin, began = stretch.offset, loop.time()
        loop.add_writer(stretch.descriptor, stretch.send_some)
        try:
            while not stretch.done.done() and not self._transport.is_closing():
                reached = stretch.offset
                left = GRACE_SECONDS + (reached - begin) / MIN_BYTES_A_SECOND - (loop.time() - began)
                await asyncio.wait([stretch.done], timeout=min(left, MAX_SILENCE_SECONDS))
                if not stretch.done.done() and stretch.offset == reached:
                    raise TimeoutError("the reader stands still or is too slow")
        finally:
            loop.remove_writer(stretch.descriptor)
        if stretch.done.done():
            stretch.done.result()

    async def _wait(self, until: Coroutine[Any, Any, None]) -> None:
        """Waits for the reader; one that is silent for 30 s or slower than 1 KiB/s loses the connection."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        left = GRACE_SECONDS + self._num_bytes / MIN_BYTES_A_SECOND - self._waited_seconds
        try:
            await asyncio.wait_for(until, min(left, MAX_SILENCE_SECONDS))
        except TimeoutError:
            self._transport.abort()
        self._waited_seconds += loop.time() - began


class _Stretch:
    """The bytes of a file that are still to be sent; whenever the socket takes some, `send_some` is called."""

    def __init__(self, descriptor: int, file: int, offset: int, end: int) -> None:
        self.descriptor = descriptor
        self.offset = offset
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._file = file
        self._end = end
        self._read_ahead_to = offset

    def send_some(self) -> None:
        """Sends as much as the socket takes, and not so much that other requests must wait."""
        if self.done.done():
            return
        if self.offset >= self._read_ahead_to - _READ_AHEAD // 2:
            os.posix_fadvise(self._file, self._read_ahead_to, _READ_AHEAD, os.POSIX_FADV_WILLNEED)
            self._read_ahead_to += _READ_AHEAD
        try:
            sent = os.sendfile(self.descriptor, self._file, self.offset, min(_MOST_AT_ONCE, self._end - self.offset))
        except BlockingIOError:
            return
        except OSError as error:
            self.done.set_exception(error)
            return
        self.offset += sent
        if self.offset == self._end:
            self.done.set_result(None)
        elif sent == 0:
            self.done.set_exception(OSError("the file is shorter than it was"))


async def _writable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(descriptor, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)


def _settle(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
