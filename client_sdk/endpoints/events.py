"""Reads server-sent events (WHATWG HTML, 9.2) as they arrive, a bounded one at a time. Performs no I/O."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import ValidationError

from client_sdk.endpoints.exchange import Request, path, read_json
from client_sdk.errors import UntrustedAnswerError
from fl_protocol import routes
from fl_protocol.messages import MAX_EXACT_INTEGER
from fl_protocol.rounds import Event, EventType
from fl_protocol.runs import FINISHED_RUN_STATES

EVENT_MEDIA_TYPE: Final = "text/event-stream"

_LINE_END: Final = re.compile(rb"\r\n|\n|\r(?!$)")


def get_events(run_id: str, *, after: int) -> Request[None]:
    """`GET /v1/runs/{run_id}/events`, from the event that follows number `after`; the answer is a stream."""
    headers = {"Accept": EVENT_MEDIA_TYPE, "Cache-Control": "no-store"}
    if after > 0:
        headers["Last-Event-ID"] = str(after)
    return Request(method="GET", path=path(routes.RUN_EVENTS, run_id=run_id), headers=headers, parse=lambda _: None)


def ends_run(event: Event) -> bool:
    """Tells whether an event is the last one of its run."""
    return event.type == EventType.RUN_STATE and event.data.get("state") in FINISHED_RUN_STATES


def check_stream(headers: Mapping[str, str]) -> None:
    """Raises UntrustedAnswerError for an answer that is no stream of events, such as a proxy's page."""
    media_type = headers.get("content-type", "").split(";")[0].strip().lower()
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if (media_type, encoding) != (EVENT_MEDIA_TYPE, "identity"):
        raise UntrustedAnswerError("the server answered a request for events with something else")


class EventReader:
    """Gathers the bytes of a stream into events; raises UntrustedAnswerError for what is none or too long."""

    def __init__(self, *, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._pending = b""
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Takes the next bytes and yields the events that they complete."""
        *lines, self._pending = _LINE_END.split(self._pending + chunk)
        for line in lines:
            event = self._take(line)
            if event is not None:
                yield event
        if len(self._pending) + self._held > self._max_event_bytes:
            raise UntrustedAnswerError(f"the server sends an event of more than {self._max_event_bytes} bytes")

    def _take(self, line: bytes) -> Event | None:
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
                self._held += len(line)
            return None
        data, self._data, self._held = b"\n".join(self._data), [], 0
        return _event_of(data) if data else None


def _event_of(data: bytes) -> Event:
    try:
        event = read_json(Event, data)
    except (ValidationError, ValueError, RecursionError):
        raise UntrustedAnswerError("the server sends an event that cannot be read") from None
    if not 0 < event.event_id <= MAX_EXACT_INTEGER:
        raise UntrustedAnswerError("the server sends an event whose number cannot be")
    return event
