"""The composition root: builds every object from the settings and owns start-up, draining and shutdown."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.types import ASGIApp

from aggregator_service import failpoints
from aggregator_service.api.application import create_application, serve
from aggregator_service.clock import system_clock
from aggregator_service.domain.layouts import Layouts
from aggregator_service.flow import budget
from aggregator_service.flow.authentication import ensure_operator_token
from aggregator_service.flow.context import Flow, Limits
from aggregator_service.settings import Settings
from aggregator_service.storage import ledger
from aggregator_service.storage.blobs import Blobs, ByteStore, open_store
from aggregator_service.storage.engine import Database, open_database
from aggregator_service.storage.schema import migrate
from aggregator_service.storage.transactions import Transactions
from aggregator_service.telemetry import Telemetry
from aggregator_service.wakeups import Wakeups
from aggregator_service.workers.embedded import EmbeddedWorker
from fl_protocol.privacy.releases import accounting_library


class _Listener(Protocol):
    def close(self) -> None: ...


class SettingsError(ValueError):
    """A setting has a value that cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class Service:
    """A server ready to be served; `drain` answers every held request now, so that it can stop."""

    application: ASGIApp
    drain: Callable[[], None]


def read_settings(**given: Any) -> Settings:
    """Reads the settings from what was given and, for what is None, the environment; raises SettingsError."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise SettingsError(f"setting {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def build(settings: Settings, *, show_operator_token: Callable[[str], None]) -> Service:
    """Opens the database, brings its schema up to date and makes the application.

    `show_operator_token` is called at start-up with the text of the first operator token if one had to be made.
    Raises DatabaseUrlError, BlobStoreError, SchemaError or SettingsError.
    """
    _arm(settings.failpoint)
    telemetry = Telemetry()
    store = _open_store(settings.blob_store)
    database = _open(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        wakeups = Wakeups(asyncio.get_running_loop())
        transactions = Transactions(database, system_clock, on_commit=wakeups.publish, telemetry=telemetry)
        blobs = Blobs(transactions, store)
        flow = Flow(
            transactions=transactions,
            blobs=blobs,
            wakeups=wakeups,
            telemetry=telemetry,
            entropy=os.urandom,
            limits=Limits(max_model_bytes=settings.max_model_bytes),
            layouts=Layouts(),
        )
        fresh = await ensure_operator_token(flow, settings.operator_token)
        if fresh is not None:
            show_operator_token(fresh)
        await budget.prepare(flow)
        app.state.flow = flow
        async with _background(flow):
            yield
        await flow.completions.stop()
        await asyncio.to_thread(blobs.close)
        await asyncio.to_thread(transactions.close)

    application = create_application(version=version("fedquorum"), telemetry=telemetry, lifespan=lifespan)

    def drain() -> None:
        flow: Flow = application.state.flow
        flow.wakeups.close()

    return Service(serve(application, telemetry), drain)


@asynccontextmanager
async def _background(flow: Flow) -> AsyncIterator[None]:
    database = flow.transactions.database
    listener = _listen(database, flow.wakeups)
    # A single process serves SQLite, so whatever was unfinished when it started will stay so.
    begun_before = system_clock() if database.dialect == "sqlite" else None
    worker = EmbeddedWorker(flow, orphans_begun_before=begun_before)
    worker.start()
    try:
        yield
    finally:
        flow.wakeups.close()
        await worker.stop()
        if listener is not None:
            await asyncio.to_thread(listener.close)


def _arm(failpoint: str | None) -> None:
    if failpoint is None:
        return
    try:
        failpoints.arm(failpoint)
    except ValueError as error:
        raise SettingsError(f"setting failpoint: {error}") from None


def migrate_database(settings: Settings) -> None:
    """Brings the database's schema up to date without serving."""
    _open(settings).dispose()


def _open(settings: Settings) -> Database:
    database = open_database(settings.database_url)
    try:
        migrate(database)
        ledger.verify_all(database)
        if ledger.has_accounted_runs(database):
            # It takes seconds to import, which nobody must wait for inside a transaction.
            accounting_library()
    except BaseException:
        database.dispose()
        raise
    return database


def _open_store(url: str) -> ByteStore | None:
    if url == "database":
        return None
    store = open_store(url)
    store.check()
    return store


def _listen(database: Database, wakeups: Wakeups) -> _Listener | None:
    if database.dialect == "sqlite":
        return None
    # psycopg comes with the extra [postgres], which a server on SQLite does without.
    from aggregator_service.storage.notifications import NotificationListener  # noqa: PLC0415

    return NotificationListener(database, wakeups.publish)
