"""Reads a run's server-sent events as any client would."""

import json
from collections.abc import Callable
from typing import Any

import httpx

Event = dict[str, Any]


def read_events(
    http: httpx.Client,
    run_id: str,
    *,
    after: int | None = None,
    limit: int | None = None,
    on_event: Callable[[Event], object] = id,
) -> list[Event]:
    """Reads events to the stream's end, or so many of them; the id of each line must be that of its message."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    events: list[Event] = []
    with http.stream("GET", f"/v1/runs/{run_id}/events", headers=headers) as stream:
        assert stream.status_code in (200, 204), stream.status_code
        fields: dict[str, str] = {}
        for line in stream.iter_lines():
            if line.startswith(":"):
                continue
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                events.append(_message(fields))
                on_event(events[-1])
                fields = {}
                if len(events) == limit:
                    break
    return events


def _message(fields: dict[str, str]) -> Event:
    message: Event = json.loads(fields["data"])
    assert (fields["event"], int(fields["id"])) == (message["type"], message["event_id"])
    return message
