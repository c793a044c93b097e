"""What a run's policy no longer keeps: found by the rows of its rounds, tasks and versions."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.records import EvaluationState, TaskState
from aggregator_service.storage.blobs import empty_blobs
from aggregator_service.storage.tables import models, rounds, runs, tasks, updates
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.rounds import RoundState

_A_TURN: Final = 64
_NUM_BYTES_A_TURN: Final = 64 << 20
"""Chunks are overwritten as they are deleted: nobody should wait for more of that than this."""


@dataclass(frozen=True, slots=True)
class OldUpdate:
    """An update that is not kept any longer."""

    update_id: str
    blob_id: str
    num_bytes: int


def runs_with_policy(tx: ReadTx) -> list[str]:
    """Lists the runs that do not keep everything."""
    kinds = [runs.c.spec["retention"][kept]["kind"].as_string() for kept in ("updates", "models")]
    query = sa.select(runs.c.run_id).where(sa.or_(*(sa.func.coalesce(kind, "keep") != "keep" for kind in kinds)))
    return list(tx.connection.execute(query).scalars())


def old_updates(tx: ReadTx, run_id: str, *, num_rounds: int) -> list[OldUpdate]:
    """Gives some updates of rounds that so many completed rounds have followed, at least one if there is any."""
    newest = (
        sa.select(sa.func.max(rounds.c.number))
        .where(rounds.c.run_id == run_id, rounds.c.state == RoundState.COMPLETED.value)
        .scalar_subquery()
    )
    query = (
        sa.select(updates.c.update_id, updates.c.blob_id, updates.c.num_bytes)
        .join(rounds, rounds.c.round_id == updates.c.round_id)
        .where(
            rounds.c.run_id == run_id,
            rounds.c.state.in_([RoundState.COMPLETED.value, RoundState.ABANDONED.value]),
            rounds.c.number <= newest - num_rounds,
            updates.c.removed_at.is_(None),
        )
        .limit(_A_TURN)
    )
    found: list[OldUpdate] = []
    for row in tx.connection.execute(query):
        if found and sum(one.num_bytes for one in found) + row.num_bytes > _NUM_BYTES_A_TURN:
            break
        found.append(OldUpdate(row.update_id, row.blob_id, row.num_bytes))
    return found


def remove_updates(tx: WriteTx, old: Collection[OldUpdate]) -> None:
    """Removes the bytes of updates; what is known of them stays."""
    marked = updates.c.update_id.in_([update.update_id for update in old])
    tx.connection.execute(sa.update(updates).where(marked).values(removed_at=tx.now()))
    # The members of a session share the bytes of their sum, and are of one round: they go together.
    empty_blobs(tx, *{update.blob_id for update in old})


def versions_in_use(tx: ReadTx, run_id: str) -> set[int]:
    """Gives the versions that a run needs while its rounds, evaluations and tasks are under way."""
    under_way = rounds.c.state.in_([RoundState.COLLECTING.value, RoundState.AGGREGATING.value])
    judged = rounds.c.evaluation_state == EvaluationState.COLLECTING.value
    of_run = rounds.c.run_id == run_id
    query = sa.union(
        sa.select(rounds.c.base_version).where(of_run, sa.or_(under_way, judged)),
        sa.select(rounds.c.result_version).where(of_run, judged),
        sa.select(tasks.c.base_version).where(tasks.c.run_id == run_id, tasks.c.state == TaskState.OPEN.value),
    )
    return {version for version in tx.connection.execute(query).scalars() if version is not None}


def old_versions(tx: ReadTx, run_id: str, *, before: int, kept: Collection[int]) -> list[int]:
    """Gives some versions from 1 on, older than one, that are not to be kept and whose bytes no other version names."""
    other = models.alias()
    shared = sa.exists().where(
        other.c.blob_id == models.c.blob_id,
        other.c.removed_at.is_(None),
        sa.or_(
            other.c.run_id != run_id, other.c.version >= before, other.c.version == 0, other.c.version.in_(list(kept))
        ),
    )
    query = (
        sa.select(models.c.version, models.c.num_bytes)
        .where(
            models.c.run_id == run_id,
            models.c.version.between(1, before - 1),
            models.c.version.not_in(list(kept)),
            models.c.removed_at.is_(None),
            ~shared,
        )
        .order_by(models.c.version)
        .limit(_A_TURN)
    )
    found: list[int] = []
    total = 0
    for row in tx.connection.execute(query):
        total += row.num_bytes
        if found and total > _NUM_BYTES_A_TURN:
            break
        found.append(row.version)
    return found


def remove_versions(tx: WriteTx, run_id: str, versions: Collection[int]) -> None:
    """Removes the bytes of versions and what goes with them, unless another version has it too."""
    of_run = sa.and_(models.c.run_id == run_id, models.c.version.in_(list(versions)))
    named = [models.c.blob_id, models.c.optimizer_blob_id, models.c.control_blob_id]
    rows = tx.connection.execute(sa.select(*named).where(of_run)).all()
    tx.connection.execute(sa.update(models).where(of_run).values(removed_at=tx.now()))
    blob_ids = {blob_id for row in rows for blob_id in row if blob_id is not None}
    empty_blobs(tx, *(blob_ids - _named_by_others(tx, blob_ids, named)))


def _named_by_others(tx: ReadTx, blob_ids: Collection[str], columns: list[sa.Column[Any]]) -> set[str]:
    queries = [sa.select(column).where(column.in_(list(blob_ids)), models.c.removed_at.is_(None)) for column in columns]
    return set(tx.connection.execute(sa.union(*queries)).scalars())
