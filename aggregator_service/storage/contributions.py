"""The contributions table: what each client of a round in helper mode has sent."""

from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.helper_mode.records import ContributionRecord
from aggregator_service.storage.blobs import remove_blobs
from aggregator_service.storage.helper_mode_tables import contributions
from aggregator_service.storage.rows import change_one, fields
from aggregator_service.storage.transactions import ReadTx, WriteTx

_OF_TASK: Final = sa.select(contributions).where(contributions.c.task_id == sa.bindparam("task_id"))
_OF_ROUND: Final = (
    sa.select(contributions)
    .where(contributions.c.round_id == sa.bindparam("round_id"))
    .order_by(contributions.c.client_id)
)
_WITH_KEY: Final = sa.select(contributions.c.client_id).where(
    contributions.c.round_id == sa.bindparam("round_id"),
    contributions.c.identity_key == sa.bindparam("identity_key"),
    contributions.c.client_id != sa.bindparam("client_id"),
)


def insert(tx: WriteTx, contribution: ContributionRecord) -> None:
    """Adds a contribution; the database itself refuses a second one of a task, a client or an identity key."""
    values: dict[str, Any] = {column.name: getattr(contribution, column.name) for column in contributions.columns}
    tx.connection.execute(sa.insert(contributions), values)


def of_task(tx: ReadTx, task_id: str) -> ContributionRecord | None:
    """Gives what was accepted for a task."""
    row = tx.connection.execute(_OF_TASK, {"task_id": task_id}).one_or_none()
    return None if row is None else ContributionRecord(**fields(row))


def of_round(tx: ReadTx, round_id: str) -> list[ContributionRecord]:
    """Lists the contributions of an attempt, refused ones too, by client."""
    return [ContributionRecord(**fields(row)) for row in tx.connection.execute(_OF_ROUND, {"round_id": round_id})]


def is_key_of_another(tx: ReadTx, *, round_id: str, client_id: str, identity_key: bytes) -> bool:
    """Tells whether another client has contributed to an attempt with the same identity key."""
    parameters = {"round_id": round_id, "client_id": client_id, "identity_key": identity_key}
    return tx.connection.execute(_WITH_KEY, parameters).first() is not None


def refuse(tx: WriteTx, contribution: ContributionRecord, reason: str) -> None:
    """Notes why a contribution cannot be counted, and removes what it held."""
    change_one(
        tx,
        sa.update(contributions)
        .where(contributions.c.task_id == contribution.task_id, contributions.c.refused.is_(None))
        .values(refused=reason, sealed=None, blob_id=None),
    )
    if contribution.blob_id is not None:
        remove_blobs(tx, contribution.blob_id)


def forget(tx: WriteTx, round_id: str) -> None:
    """Removes the vectors and the sealed seeds of an attempt that has ended; who sent what stays."""
    named = sa.select(contributions.c.blob_id).where(
        contributions.c.round_id == round_id, contributions.c.blob_id.is_not(None)
    )
    vectors = tx.connection.execute(named).scalars().all()
    tx.connection.execute(
        sa.update(contributions).where(contributions.c.round_id == round_id).values(sealed=None, blob_id=None)
    )
    remove_blobs(tx, *vectors)
