"""The privacy_ledger table: what each release of a run costs, as a chain that is only ever appended to."""

from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.privacy.ledger import LedgerEntry, LedgerState, StoredEntry, parse, verify
from aggregator_service.storage.engine import Database
from aggregator_service.storage.tables import privacy_ledger as table
from aggregator_service.storage.tables import runs
from aggregator_service.storage.transactions import ReadTx, WriteTx

_LAST: Final = (
    sa.select(table.c.entry, table.c.entry_hash)
    .where(table.c.run_id == sa.bindparam("run_id"))
    .order_by(table.c.sequence.desc())
    .limit(1)
)
_CHAIN: Final = (
    sa.select(table.c.entry, table.c.entry_hash)
    .where(table.c.run_id == sa.bindparam("run_id"))
    .order_by(table.c.sequence)
)
_LAST_OF_ROUND: Final = (
    sa.select(table.c.entry, table.c.entry_hash)
    .where(table.c.round_id == sa.bindparam("round_id"))
    .order_by(table.c.sequence.desc())
    .limit(1)
)
_LAST_SPENT: Final = _LAST.where(table.c.state == LedgerState.SPENT.value)
_NUM_SPENT: Final = (
    sa.select(sa.func.count())
    .select_from(table)
    .where(table.c.run_id == sa.bindparam("run_id"), table.c.state == LedgerState.SPENT.value)
)


def append(tx: WriteTx, entry: LedgerEntry) -> None:
    """Adds the next entry of a run, which the transaction has locked."""
    tx.connection.execute(
        sa.insert(table).values(
            run_id=entry.run_id,
            sequence=entry.sequence,
            round_id=entry.round_id,
            state=entry.state.value,
            entry=entry.text,
            entry_hash=entry.hash,
        )
    )


def last(tx: ReadTx, run_id: str) -> LedgerEntry | None:
    """Gives a run's newest entry."""
    return _entry(tx.connection.execute(_LAST, {"run_id": run_id}).one_or_none())


def last_spent(tx: ReadTx, run_id: str) -> LedgerEntry | None:
    """Gives the entry of a run's newest release."""
    return _entry(tx.connection.execute(_LAST_SPENT, {"run_id": run_id}).one_or_none())


def of_round(tx: ReadTx, round_id: str) -> LedgerEntry | None:
    """Gives the newest entry of an attempt at a round."""
    return _entry(tx.connection.execute(_LAST_OF_ROUND, {"round_id": round_id}).one_or_none())


def count_spent(tx: ReadTx, run_id: str) -> int:
    """Counts a run's releases."""
    total: int = tx.connection.execute(_NUM_SPENT, {"run_id": run_id}).scalar_one()
    return total


def page(tx: ReadTx, run_id: str, *, after_sequence: int, limit: int) -> list[LedgerEntry]:
    """Lists a run's entries from behind a given one."""
    query = (
        sa.select(table.c.entry, table.c.entry_hash)
        .where(table.c.run_id == run_id, table.c.sequence > after_sequence)
        .order_by(table.c.sequence)
        .limit(limit)
    )
    return [parse(StoredEntry(row.entry, row.entry_hash)) for row in tx.connection.execute(query)]


def verify_all(database: Database) -> None:
    """Checks every run's chain from its first entry; raises LedgerError naming the first that was changed."""
    listed = sa.select(runs.c.run_id, runs.c.spec).where(sa.exists().where(table.c.run_id == runs.c.run_id))
    with database.readers.connect() as connection:
        for run_id, spec in connection.execute(listed).all():
            rows = connection.execute(_CHAIN, {"run_id": run_id})
            verify(run_id, spec, (StoredEntry(row.entry, row.entry_hash) for row in rows))


def _entry(row: sa.Row[Any, Any] | None) -> LedgerEntry | None:
    return None if row is None else parse(StoredEntry(row.entry, row.entry_hash))
