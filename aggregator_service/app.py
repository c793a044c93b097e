"""The composition root: builds every object from the settings and owns start-up, draining and shutdown."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Protocol

from fastapi import FastAPI

from aggregator_service import failpoints
from aggregator_service.api.application import create_application
from aggregator_service.clock import system_clock
from aggregator_service.domain.layouts import Layouts
from aggregator_service.flow.authentication import ensure_operator_token
from aggregator_service.flow.context import Flow, Limits
from aggregator_service.settings import Settings
from aggregator_service.storage.blobs import DatabaseBlobs
from aggregator_service.storage.engine import Database, open_database
from aggregator_service.storage.schema import migrate
from aggregator_service.storage.transactions import Transactions
from aggregator_service.telemetry import Telemetry
from aggregator_service.wakeups import Wakeups
from aggregator_service.workers.embedded import EmbeddedWorker


class _Listener(Protocol):
    def close(self) -> None: ...


def build(settings: Settings, *, show_operator_token: Callable[[str], None]) -> FastAPI:
    """Makes the application; nothing is opened before its lifespan begins.

    Raises DatabaseUrlError or SchemaError at start-up. `show_operator_token` is called with the text of the first
    operator token if one had to be made.
    """
    if settings.failpoint is not None:
        failpoints.arm(settings.failpoint)
    telemetry = Telemetry()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = await asyncio.to_thread(_open, settings)
        wakeups = Wakeups(asyncio.get_running_loop())
        transactions = Transactions(database, system_clock, on_commit=wakeups.publish, telemetry=telemetry)
        flow = Flow(
            transactions=transactions,
            blobs=DatabaseBlobs(transactions),
            wakeups=wakeups,
            telemetry=telemetry,
            entropy=os.urandom,
            limits=Limits(max_model_bytes=settings.max_model_bytes),
            layouts=Layouts(),
        )
        fresh = await ensure_operator_token(flow, settings.operator_token)
        if fresh is not None:
            show_operator_token(fresh)
        listener = _listen(database, wakeups)
        # A single process serves SQLite, so whatever was unfinished when it started will stay so.
        begun_before = system_clock() if database.dialect == "sqlite" else None
        worker = EmbeddedWorker(flow, orphans_begun_before=begun_before)
        worker.start()
        app.state.flow = flow
        try:
            yield
        finally:
            wakeups.close()
            await worker.stop()
            if listener is not None:
                await asyncio.to_thread(listener.close)
            await asyncio.to_thread(transactions.close)

    return create_application(version=version("fedquorum"), telemetry=telemetry, lifespan=lifespan)


def drain(app: FastAPI) -> None:
    """Answers every held request now, so that the server can stop."""
    flow: Flow | None = getattr(app.state, "flow", None)
    if flow is not None:
        flow.wakeups.close()


def migrate_database(settings: Settings) -> None:
    """Brings the database's schema up to date without serving."""
    _open(settings).dispose()


def _open(settings: Settings) -> Database:
    database = open_database(settings.database_url)
    try:
        migrate(database)
    except BaseException:
        database.dispose()
        raise
    return database


def _listen(database: Database, wakeups: Wakeups) -> _Listener | None:
    if database.dialect == "sqlite":
        return None
    # psycopg comes with the extra [postgres], which a server on SQLite does without.
    from aggregator_service.storage.notifications import NotificationListener  # noqa: PLC0415

    return NotificationListener(database, wakeups.publish)
