"""uvicorn's fast HTTP parser with the bounds it lacks: on header bytes, header count, header time and leftovers."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES: Final = 32 << 10
MAX_HEADERS: Final = 100
HEADER_SECONDS: Final = 10.0
LEFTOVER_SECONDS: Final = 10.0


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection whose request head is too large, too slow, or whose body goes on after the answer."""

    _awaiting_head = True
    _head_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Starts the clock for the first request's head."""
        super().connection_made(transport)
        self._start_deadline(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feeds the parser and enforces the bounds."""
        if self._awaiting_head:
            if self._deadline is None:
                self._start_deadline(HEADER_SECONDS)
            self._head_bytes += len(data)
        super().data_received(data)
        if self._awaiting_head and self._head_bytes > MAX_HEADER_BYTES:
            self._refuse(f"The request head exceeds {MAX_HEADER_BYTES} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes one header, up to the bound; raising makes the parser answer 400 and close."""
        if len(self.headers) >= MAX_HEADERS:
            raise ValueError(f"more than {MAX_HEADERS} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Ends the head's clock."""
        self._awaiting_head = False
        self._head_bytes = 0
        self._stop_deadline()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Makes ready for the next request's head."""
        self._awaiting_head = True
        self._stop_deadline()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Lets a sender whose request was answered early finish for a while, so that it can read the answer."""
        super().on_response_complete()
        if not self._awaiting_head and self._deadline is None:
            self._start_deadline(LEFTOVER_SECONDS)

    def _refuse(self, message: str) -> None:
        if not self.transport.is_closing():
            self.send_400_response(message)

    def _start_deadline(self, seconds: float) -> None:
        self._stop_deadline()
        self._deadline = self.loop.call_later(seconds, self._expire)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()
