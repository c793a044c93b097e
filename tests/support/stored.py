"""Looks into the server's database from outside, with no code of the product: what was stored, and what was not."""

import json
from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

UPDATE_TABLES = ("updates", "evaluations", "blobs", "blob_chunks")
"""Where anything of an upload would stay."""


class Stored:
    """One server's database; every look opens a connection of its own."""

    def __init__(self, database_url: str) -> None:
        self._engine = sa.create_engine(_with_driver(database_url), poolclass=NullPool)

    def counts(self, *tables: str) -> dict[str, int]:
        """Counts the rows of some tables, else of those that hold uploads."""
        with self._engine.connect() as connection:
            names = tables or UPDATE_TABLES
            return {
                name: connection.execute(sa.select(sa.func.count()).select_from(sa.table(name))).scalar_one()
                for name in names
            }

    def snapshot(self, *tables: str) -> dict[str, list[str]]:
        """Gives every row of some tables as sorted text, to compare two moments."""
        with self._engine.connect() as connection:
            return {
                name: sorted(
                    json.dumps([str(value) for value in row])
                    for row in connection.execute(sa.select(sa.text("*")).select_from(sa.table(name)))
                )
                for name in tables
            }

    def values(self) -> Iterator[bytes]:
        """Yields every value of every table as bytes, as a dump would show it."""
        with self._engine.connect() as connection:
            for name in sa.inspect(connection).get_table_names():
                for row in connection.execute(sa.select(sa.text("*")).select_from(sa.table(name))):
                    for value in row:
                        yield value if isinstance(value, bytes) else str(value).encode()


def _with_driver(database_url: str) -> sa.URL:
    url = sa.make_url(database_url)
    return url.set(drivername="postgresql+psycopg") if url.get_backend_name() == "postgresql" else url
