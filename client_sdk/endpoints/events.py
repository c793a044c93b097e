"""Reads server-sent events (WHATWG HTML, 9.2) as they arrive, a bounded one at a time. Performs no I/O."""

import re
from collections.abc import Iterator
from typing import Final

from pydantic import ValidationError

from client_sdk.endpoints.exchange import Request, path
from client_sdk.errors import UntrustedAnswerError
from fl_protocol import routes
from fl_protocol.rounds import Event, EventType
from fl_protocol.runs import FINISHED_RUN_STATES

_LINE_END: Final = re.compile(rb"\r\n|\n|\r(?!$)")


def get_events(run_id: str, *, after: int) -> Request[None]:
    """`GET /v1/runs/{run_id}/events`, from the event that follows number `after`; the answer is a stream."""
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if after > 0:
        headers["Last-Event-ID"] = str(after)
    return Request(method="GET", path=path(routes.RUN_EVENTS, run_id=run_id), headers=headers, parse=lambda _: None)


def ends_run(event: Event) -> bool:
    """Tells whether an event is the last one of its run."""
    return event.type == EventType.RUN_STATE and event.data.get("state") in FINISHED_RUN_STATES


class EventReader:
    """Gathers the bytes of a stream into events; raises UntrustedAnswerError for what is none or too long."""

    def __init__(self, *, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._pending = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Takes the next bytes and yields the events that they complete."""
        *lines, self._pending = _LINE_END.split(self._pending + chunk)
        for line in lines:
            event = self._take(line)
            if event is not None:
                yield event
        if len(self._pending) + sum(map(len, self._data)) > self._max_event_bytes:
            raise UntrustedAnswerError(f"the server sends an event of more than {self._max_event_bytes} bytes")

    def _take(self, line: bytes) -> Event | None:
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            return None
        data, self._data = b"\n".join(self._data), []
        return _event_of(data) if data else None


def _event_of(data: bytes) -> Event:
    try:
        return Event.model_validate_json(data)
    except (ValidationError, ValueError, RecursionError):
        raise UntrustedAnswerError("the server sends an event that cannot be read") from None
