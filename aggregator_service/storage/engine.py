"""Opens the database: SQLite (one server process) or Postgres (any number)."""

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

Dialect = Literal["sqlite", "postgresql"]

NUM_READERS: Final = 8
"""Connections for reading; more only queue for the same two cores."""

_WRITER_CACHE_KIBIBYTES: Final = 8192
_READER_CACHE_KIBIBYTES: Final = 1024
"""A reader forgets its pages with the next commit of the writer anyway, and what fills them meanwhile is tensors."""

MAX_HELD_LEASES: Final = 4
"""Leases that a process holds for long; each has a connection of its own."""

_POSTGRES_OPTIONS: Final = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
    "application_name": "fedquorum",
    # The last three are Postgres's side of the keepalive: a lease of a machine that vanished is free after 11 s.
    "options": "-c statement_timeout=60s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s "
    "-c synchronous_commit=on "
    "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3",
}


class DatabaseUrlError(ValueError):
    """The database URL cannot be used; the message says what would be right."""


@dataclass(frozen=True, slots=True)
class Database:
    """Two engines on one database: a single writing connection and a pool of readers."""

    dialect: Dialect
    url: URL
    writer: sa.Engine
    readers: sa.Engine
    lock_file: IO[bytes] | None

    def dispose(self) -> None:
        """Closes every connection and lets another server process open the SQLite file."""
        self.writer.dispose()
        self.readers.dispose()
        if self.lock_file is not None:
            self.lock_file.close()


def open_database(url_text: str) -> Database:
    """Opens `sqlite:///file` or `postgresql://user@host/name`; raises DatabaseUrlError."""
    url = _parse(url_text)
    if url.get_backend_name() == "sqlite":
        lock = _lock_sqlite_file(url)
        writer = _sqlite_engine(url, "IMMEDIATE", 1, cache_kibibytes=_WRITER_CACHE_KIBIBYTES)
        readers = _sqlite_engine(url, "", NUM_READERS, cache_kibibytes=_READER_CACHE_KIBIBYTES)
        return Database("sqlite", url, writer, readers, lock)
    return Database(
        "postgresql", url, _postgres_engine(url, 2 + MAX_HELD_LEASES), _postgres_engine(url, NUM_READERS), None
    )


def _parse(url_text: str) -> URL:
    try:
        url = make_url(url_text)
    except ArgumentError:
        raise DatabaseUrlError(
            "the database URL cannot be read; write sqlite:///fedquorum.db or postgresql://user@host/name"
        ) from None
    backend = url.get_backend_name()
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise DatabaseUrlError(f"database {backend!r} is not supported; use sqlite or postgresql")
    if url.database in (None, "", ":memory:"):
        raise DatabaseUrlError("an in-memory SQLite database cannot survive a restart; name a file: sqlite:///file.db")
    return url


def _lock_sqlite_file(url: URL) -> IO[bytes]:
    path = Path(f"{url.database}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = open(path, "ab", opener=_private)  # noqa: SIM115 - held for the life of the process
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise DatabaseUrlError(
            f"another server process uses {url.database}; SQLite serves one process, use Postgres for more"
        ) from None
    return lock


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sqlite_engine(url: URL, begin: str, pool_size: int, *, cache_kibibytes: int) -> sa.Engine:
    Path(str(url.database)).touch(mode=0o600)
    engine = sa.create_engine(
        url.set(drivername="sqlite+pysqlite"),
        pool_size=pool_size,
        max_overflow=0,
        # The connection used last has the pages, or the prepared statements, that are needed next.
        pool_use_lifo=True,
        connect_args={"check_same_thread": False, "timeout": 10.0},
    )
    sa.event.listen(engine, "connect", partial(_set_pragmas, cache_kibibytes=cache_kibibytes))
    sa.event.listen(engine, "begin", _begin_with(f"BEGIN {begin}".strip()))
    return engine


def _set_pragmas(connection: Any, _record: object, *, cache_kibibytes: int) -> None:
    # The driver's own transaction control begins late and loses concurrent increments; ours is explicit.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "page_size=32768",
        # What is deleted is overwritten: keys of noise must not outlive their release.
        "secure_delete=ON",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"cache_size=-{cache_kibibytes}",
        "busy_timeout=10000",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_with(statement: str) -> Callable[[sa.Connection], None]:
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(statement)

    return begin


def _postgres_engine(url: URL, pool_size: int) -> sa.Engine:
    # psycopg comes with the extra [postgres], which a server on SQLite does without.
    from aggregator_service.storage.binary_cursor import BinaryCursor  # noqa: PLC0415

    return sa.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=10,
        pool_use_lifo=True,
        connect_args={**_POSTGRES_OPTIONS, "cursor_factory": BinaryCursor},
    )
