"""uvicorn's fast HTTP parser with the bounds it lacks: on header bytes, header count, header time and leftovers.

What is no HTTP request, or one out of bounds, is answered by a problem like every other refusal.
"""

import asyncio
from collections import deque
from typing import Any, ClassVar, Final, cast

from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from aggregator_service.api.answers import PacedAnswers
from aggregator_service.api.arrivals import Arrivals, BoundedReads
from aggregator_service.api.connections import Flow, Pipeline, Signal
from aggregator_service.api.holding import let_go
from aggregator_service.api.problems import render
from fl_protocol.problems import ProblemError, ProblemType

MAX_HEADER_BYTES: Final = 32 << 10
MAX_HEADERS: Final = 100
HEADER_SECONDS: Final = 10.0
LEFTOVER_SECONDS: Final = 10.0

_TOO_MANY_BYTES: Final = f"the request's head exceeds {MAX_HEADER_BYTES} bytes"


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection whose request head is too large, too slow, or whose body goes on after the answer.

    Of a head no more is read than it may have; of a body, its share of what the process reads ahead.
    """

    _arrivals: ClassVar = Arrivals()
    # An instance keeps up to 30 attributes at 8 bytes each; with more, 1.3 KB a connection go into a dictionary.
    __slots__ = (
        "_awaiting_head",
        "_deadline",
        "_head_bytes",
        "_is_body_arriving",
        "_num_kept",
        "_num_kept_left",
        "_reason",
        "_running",
        "_undelivered_bytes",
        "url",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pipeline = cast("deque[tuple[RequestResponseCycle, ASGI3Application]]", Pipeline())
        self._awaiting_head = True
        self._undelivered_bytes = 0
        self._head_bytes = 0
        self._is_body_arriving = False
        self._num_kept = 0
        self._num_kept_left = 0
        self._reason: str | None = None
        self._running: RequestResponseCycle | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Starts the clock for the first request's head."""
        super().connection_made(transport)
        self.flow = Flow(transport)
        self.app = PacedAnswers(self.app, transport)
        transport.set_protocol(BoundedReads(self, self._arrivals))
        self._start_deadline(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock, and lets a held request go: its client asks again on another connection."""
        self._stop_deadline()
        self._end_body()
        self._forget()
        super().connection_lost(exc)
        if self._running is not None:
            let_go(cast("Scope", self._running.scope))
            self._running = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        # Of several requests that came at once, `cycle` would be the last.
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def room(self) -> int:
        """Gives how much the next read may have."""
        return self._num_kept_left or self._arrivals.room(is_begun=not self._awaiting_head)

    def data_received(self, data: bytes | memoryview) -> None:
        """Feeds the parser and enforces the bounds, on what it keeps of heads and trailers that do not end, too."""
        if self._awaiting_head and self._deadline is None:
            self._start_deadline(HEADER_SECONDS)
        self._undelivered_bytes += len(data)
        # The parser takes any buffer, and copies what it hands on.
        super().data_received(cast("bytes", data))
        if self._undelivered_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(_TOO_MANY_BYTES)

    def on_message_begin(self) -> None:
        """Begins to count what the head holds."""
        super().on_message_begin()
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Takes a part of the request's target."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes one header, up to the bounds; raising makes the parser refuse and close."""
        if len(self.headers) >= MAX_HEADERS:
            self._reason = f"the request has more than {MAX_HEADERS} headers"
            raise ValueError(self._reason)
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Ends the head's clock."""
        self._awaiting_head = False
        self._undelivered_bytes = 0
        self._stop_deadline()
        super().on_headers_complete()
        # Its task has not begun to run.
        self.cycle.message_event = Signal()
        # Parts of a body are joined by copying them; where there is one part, this copies nothing.
        self.cycle.body = cast("bytearray", b"")
        self._begin_body()

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body, which the application bounds, and stops reading while its share waits.

        It stands in for uvicorn's own, which stops behind 64 KiB of every body.
        """
        self._undelivered_bytes = 0
        # What is left of a body that was answered early is thrown away as it comes.
        if self.cycle.response_complete:
            return
        self.cycle.body += body
        if self._num_kept_left:
            self._num_kept_left -= len(body)
        elif self._arrivals.is_much(len(self.cycle.body)):
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        """Makes ready for the next request's head."""
        self._awaiting_head = True
        self._undelivered_bytes = 0
        self._stop_deadline()
        self._end_body()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Lets a sender whose request was answered early finish for a while, so that it can read the answer."""
        self._forget()
        super().on_response_complete()
        if not self._awaiting_head and self._deadline is None:
            self._start_deadline(LEFTOVER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Answers what cannot be read as a request, unless an answer is under way, and closes."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()
            return
        answer = render(ProblemError(ProblemType.MALFORMED_REQUEST, self._reason or msg))
        head = [b"HTTP/1.1 400 Bad Request", *map(b": ".join, answer.raw_headers), b"connection: close"]
        self.transport.write(b"\r\n".join([*head, b"", bytes(answer.body)]))
        self.transport.close()

    def _begin_body(self) -> None:
        """Keeps room for all of a short body, unless one that came before it on the connection is not answered yet."""
        num_bytes = int(dict(self.headers).get(b"content-length", b"0"))
        if num_bytes and not self._num_kept and self._arrivals.keep(num_bytes):
            self._num_kept = self._num_kept_left = num_bytes
        else:
            self._is_body_arriving = True
            self._arrivals.begin()

    def _forget(self) -> None:
        self._arrivals.forget(self._num_kept)
        self._num_kept = self._num_kept_left = 0

    def _end_body(self) -> None:
        if self._is_body_arriving:
            self._is_body_arriving = False
            self._arrivals.end()

    def _count_head(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes
        if self._head_bytes > MAX_HEADER_BYTES:
            self._reason = _TOO_MANY_BYTES
            raise ValueError(self._reason)

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
