"""Whether this process can serve."""

import asyncio

import structlog

from aggregator_service.flow.context import Flow
from aggregator_service.storage.schema import is_current

_log = structlog.get_logger()


async def why_not_ready(flow: Flow) -> str | None:
    """Gives what keeps this process from serving; None when nothing does."""
    if flow.wakeups.closed:
        return "the server is shutting down"
    try:
        current = await asyncio.to_thread(is_current, flow.transactions.database)
    except Exception as error:  # noqa: BLE001 - whatever it is, the answer is "not ready"
        _log.warning("not_ready", error=str(error))
        return "the database cannot be reached"
    return None if current else "the database's schema is not this version's; run 'fedquorum migrate'"
