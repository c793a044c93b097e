"""Looks into the server's database from outside, with no code of the product: what was stored, and what was not."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

UPDATE_TABLES = ("updates", "evaluations", "blobs", "blob_chunks")
"""Where anything of an upload would stay."""


class Stored:
    """One server's database, read through one connection without transactions; to be closed by its context."""

    def __init__(self, database_url: str) -> None:
        engine = sa.create_engine(with_driver(database_url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._connection = engine.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._connection.close()

    def counts(self, *tables: str) -> dict[str, int]:
        """Counts the rows of some tables, else of those that hold uploads."""
        names = tables or UPDATE_TABLES
        counts = [sa.select(sa.func.count()).select_from(sa.table(name)).scalar_subquery() for name in names]
        return dict(zip(names, self._connection.execute(sa.select(*counts)).one(), strict=True))

    def snapshot(self, *tables: str) -> dict[str, list[str]]:
        """Gives every row of some tables as sorted text, to compare two moments."""
        return {name: sorted(str(tuple(row)) for row in self._rows(name)) for name in tables}

    def values(self) -> Iterator[bytes]:
        """Yields every value of every table as bytes, as a dump would show it."""
        for name in sa.inspect(self._connection).get_table_names():
            for row in self._rows(name):
                for value in row:
                    yield value if isinstance(value, bytes) else str(value).encode()

    def rows(self, statement: str, **parameters: object) -> list[tuple[Any, ...]]:
        """Gives what a query finds."""
        return [tuple(row) for row in self._connection.execute(sa.text(statement), parameters)]

    def change(self, statement: str, **parameters: object) -> None:
        """Changes something behind the server's back."""
        self._connection.execute(sa.text(statement), parameters)

    def _rows(self, table: str) -> Sequence[sa.Row[Any]]:
        return self._connection.execute(sa.select(sa.text("*")).select_from(sa.table(table))).all()


def with_driver(database_url: str) -> sa.URL:
    """Gives a database's URL as SQLAlchemy opens it."""
    url = sa.make_url(database_url)
    return url.set(drivername="postgresql+psycopg") if url.get_backend_name() == "postgresql" else url
