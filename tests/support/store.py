"""Transactions on an empty database, for the storage suites."""

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from aggregator_service.domain.layouts import Layouts
from aggregator_service.flow.context import Flow, Limits
from aggregator_service.storage.blobs import Blobs
from aggregator_service.storage.engine import open_database
from aggregator_service.storage.schema import migrate
from aggregator_service.storage.transactions import ReadTx, Transactions, WriteTx
from aggregator_service.telemetry import Telemetry
from aggregator_service.wakeups import Wakeups
from fl_protocol.problems import ProblemError
from tests.support.records import NOON

T = TypeVar("T")

REFUSED = (sa.exc.IntegrityError, ProblemError)
"""What a second row raises; on Postgres a unique violation is tried again and then called unavailable."""


@dataclass
class Store:
    """What a suite does to a database; `announced` are the topics that were woken, commit by commit."""

    transactions: Transactions
    telemetry: Telemetry
    announced: list[frozenset[str]] = field(default_factory=list)

    def write(self, body: Callable[[WriteTx], T]) -> T:
        """Runs a body in a committed transaction."""
        return self.transactions.write_blocking("test", body)

    def read(self, body: Callable[[ReadTx], T]) -> T:
        """Runs a body on a consistent view."""
        return self.transactions.read_blocking("test", body)


@contextmanager
def open_store(database_url: str) -> Iterator[Store]:
    """Opens a database with its schema; on SQLite it is always noon."""
    database = open_database(database_url)
    migrate(database)
    telemetry = Telemetry()
    announced: list[frozenset[str]] = []
    transactions = Transactions(database, _noon, on_commit=announced.append, telemetry=telemetry)
    yield Store(transactions, telemetry, announced)
    transactions.close()


def give_schema(database_url: str) -> None:
    """Gives an empty database its schema."""
    database = open_database(database_url)
    try:
        migrate(database)
    finally:
        database.dispose()


def copy_private(source: Path, target: Path) -> None:
    """Copies a database file that nobody has open, for its owner alone, as the server makes one."""
    target.touch(mode=0o600)
    shutil.copyfile(source, target)


def flow_on(store: Store) -> Flow:
    """Gives the flow's stages what they stand on; must be called in the event loop that runs them."""
    return Flow(
        transactions=store.transactions,
        blobs=Blobs(store.transactions),
        wakeups=Wakeups(asyncio.get_running_loop()),
        telemetry=store.telemetry,
        entropy=os.urandom,
        limits=Limits(max_model_bytes=1 << 20),
        layouts=Layouts(),
    )


def _noon() -> datetime:
    return NOON
