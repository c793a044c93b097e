"""Renders a run's events as server-sent events."""

import json
from collections.abc import AsyncIterator

from fastapi import Request
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from aggregator_service.domain.records import EventRecord
from aggregator_service.flow import reading
from aggregator_service.flow.context import Flow
from fl_protocol.rounds import Event


async def has_nothing_left(flow: Flow, run_id: str, after_event_id: int) -> bool:
    """Tells whether the run has ended and all its events were seen; raises `not-found`."""
    finished, batch = await reading.events_after(flow, run_id, after_event_id)
    return finished and not batch


async def event_stream(request: Request, flow: Flow, *, run_id: str, after_event_id: int) -> AsyncIterator[bytes]:
    """Yields the bytes of the stream, with a comment now and then so that proxies keep it open."""
    async for event in reading.follow_events(flow, run_id, after_event_id=after_event_id):
        if await request.is_disconnected():
            return
        yield KEEPALIVE_COMMENT if event is None else _render(event)


def _render(event: EventRecord) -> bytes:
    message = Event(
        event_id=event.event_id,
        type=event.type,
        created_at=event.created_at,
        data=json.loads(json.dumps(event.data)),
    )
    return format_sse_event(data_str=message.model_dump_json(), event=event.type, id=str(event.event_id))
