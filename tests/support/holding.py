"""Keeps a store's writer busy, so that what is written meanwhile queues up and is committed together."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aggregator_service.storage.transactions import WriteTx
from tests.support.store import Store
from tests.support.waiting import eventually


async def are_queued(store: Store, number: int) -> None:
    """Waits until so many writes wait."""
    await asyncio.to_thread(eventually, lambda: store.transactions._queue.qsize() >= number)


@asynccontextmanager
async def queued(store: Store, number: int) -> AsyncIterator[None]:
    """Begins a write that lasts until the block has ended and so many other writes wait behind it."""
    entered, release = threading.Event(), threading.Event()

    def hold(tx: WriteTx) -> None:
        entered.set()
        assert release.wait(30)

    held = asyncio.create_task(asyncio.to_thread(store.write, hold))
    try:
        assert await asyncio.to_thread(entered.wait, 30)
        yield
        await are_queued(store, number)
    finally:
        release.set()
        await held
