"""Lets one process at a time do a piece of work, so that replicas do not do it twice.

Only a saving: what makes double work harmless is the compare-and-set that ends it. On Postgres the lease is a
session's advisory lock, which the database lets go of as soon as its holder's connection dies; nothing expires and
no clock is compared. SQLite serves a single process, which needs no lease.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import sqlalchemy as sa

from aggregator_service.storage.engine import Database


@contextmanager
def exclusive(database: Database, name: str) -> Iterator[bool]:
    """Yields whether this process now holds the lease on `name`, and holds it for the length of the block."""
    if database.dialect == "sqlite":
        yield True
        return
    key = zlib.crc32(name.encode())
    with database.writer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        held: bool = connection.execute(sa.select(sa.func.pg_try_advisory_lock(0x4651, key - 2**31))).scalar_one()
        try:
            yield held
        finally:
            if held:
                # A connection that has died has let go of it.
                with suppress(sa.exc.DBAPIError):
                    connection.execute(sa.select(sa.func.pg_advisory_unlock(0x4651, key - 2**31)))
