"""The privacy_ledger table: what each release of a run costs, as a chain that is only ever appended to."""

from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.privacy.ledger import (
    LedgerEntry,
    LedgerState,
    Publication,
    StoredEntry,
    parse,
    verify,
)
from aggregator_service.storage.engine import Database
from aggregator_service.storage.tables import models, rounds, runs
from aggregator_service.storage.tables import privacy_ledger as table
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.runs import FINISHED_RUN_STATES

_WITHOUT_ACCOUNT: Final = ("none", "example_dpsgd")
_LAST: Final = (
    sa.select(table).where(table.c.run_id == sa.bindparam("run_id")).order_by(table.c.sequence.desc()).limit(1)
)
_CHAIN: Final = sa.select(table).where(table.c.run_id == sa.bindparam("run_id")).order_by(table.c.sequence)
_LAST_OF_ROUND: Final = (
    sa.select(table).where(table.c.round_id == sa.bindparam("round_id")).order_by(table.c.sequence.desc()).limit(1)
)
_LAST_SPENT: Final = _LAST.where(table.c.state == LedgerState.SPENT.value)
_NUM_SPENT: Final = (
    sa.select(sa.func.count())
    .select_from(table)
    .where(table.c.run_id == sa.bindparam("run_id"), table.c.state == LedgerState.SPENT.value)
)
_PUBLISHED: Final = (
    sa.select(rounds.c.round_id, rounds.c.epsilon, models.c.digest)
    .join(models, sa.and_(models.c.run_id == rounds.c.run_id, models.c.version == rounds.c.result_version))
    .where(rounds.c.run_id == sa.bindparam("run_id"), rounds.c.epsilon.is_not(None))
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
        sa.select(table)
        .where(table.c.run_id == run_id, table.c.sequence > after_sequence)
        .order_by(table.c.sequence)
        .limit(limit)
    )
    return [parse(_stored(row)) for row in tx.connection.execute(query)]


def verify_all(database: Database) -> None:
    """Checks every run's chain from its first entry; raises LedgerError naming the first that was changed."""
    has_entries = sa.exists().where(table.c.run_id == runs.c.run_id)
    has_published = sa.exists().where(rounds.c.run_id == runs.c.run_id, rounds.c.epsilon.is_not(None))
    listed = sa.select(runs.c.run_id, runs.c.spec).where(has_entries | has_published)
    with database.readers.connect() as connection:
        if database.dialect == "postgresql":
            # One view of everything, for another server may be publishing.
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        for run_id, spec in connection.execute(listed).all():
            chain = (_stored(row) for row in connection.execute(_CHAIN, {"run_id": run_id}))
            verify(run_id, spec, chain, published=_published(connection, run_id))


def has_accounted_runs(database: Database) -> bool:
    """Tells whether a run that has not ended has a budget, and so whether the accounting library will be needed."""
    unfinished = runs.c.state.not_in([state.value for state in FINISHED_RUN_STATES])
    kind = runs.c.spec["privacy"]["kind"].as_string()
    query = sa.select(sa.exists().where(unfinished, kind.not_in(_WITHOUT_ACCOUNT)))
    with database.readers.connect() as connection:
        found: bool = connection.execute(query).scalar_one()
        return found


def _published(connection: sa.Connection, run_id: str) -> dict[str, Publication]:
    made = connection.execute(_PUBLISHED, {"run_id": run_id})
    return {round_id: Publication(epsilon, digest) for round_id, epsilon, digest in made}


def _entry(row: sa.Row[Any] | None) -> LedgerEntry | None:
    return None if row is None else parse(_stored(row))


def _stored(row: sa.Row[Any]) -> StoredEntry:
    return StoredEntry(
        run_id=row.run_id,
        sequence=row.sequence,
        round_id=row.round_id,
        state=row.state,
        text=row.entry,
        hash=row.entry_hash,
    )
