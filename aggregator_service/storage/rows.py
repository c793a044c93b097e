"""The rules of every store: a change meets exactly the row it names, and lists come in bounded pages.

Statements that are executed for each request are constants with parameters: building one anew costs four times as
much as executing it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from aggregator_service.storage.transactions import WriteTx


class StaleRowError(Exception):
    """A change expected so many rows in a given state and found another number."""


def change_one(tx: WriteTx, statement: Any, parameters: Mapping[str, Any] | None = None) -> None:
    """Executes an update that must meet exactly one row; raises StaleRowError otherwise."""
    change_all(tx, statement, parameters, number=1)


def change_all(tx: WriteTx, statement: Any, parameters: Mapping[str, Any] | None, *, number: int) -> None:
    """Executes an update that must meet that number of rows; raises StaleRowError otherwise."""
    changed = tx.connection.execute(statement, parameters).rowcount
    if changed != number:
        raise StaleRowError(f"{statement.table.name}: expected to change {number} rows, changed {changed}")


def changes_one(tx: WriteTx, statement: Any) -> bool:
    """Executes a compare-and-set and tells whether it won."""
    changed: int = tx.connection.execute(statement).rowcount
    return changed == 1


def is_behind(columns: Sequence[sa.Column[Any]], position: Sequence[object]) -> sa.ColumnElement[bool]:
    """Compares a row with a position in the order of some columns, each value in its column's own type."""
    typed = [sa.literal(value, column.type) for column, value in zip(columns, position, strict=True)]
    return sa.tuple_(*columns) > sa.tuple_(*typed)


def fields(row: sa.Row[*tuple[Any, ...]]) -> dict[str, Any]:
    """Gives a row's columns by name."""
    return dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented name for it
