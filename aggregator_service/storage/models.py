"""The models table: published versions; only that a version is quarantined is noted afterwards."""

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.records import ModelRecord
from aggregator_service.storage.rows import change_one, fields
from aggregator_service.storage.tables import models, rounds
from aggregator_service.storage.transactions import ReadTx, WriteTx

_GET: Final = sa.select(models).where(
    models.c.run_id == sa.bindparam("run_id"), models.c.version == sa.bindparam("version")
)


def _record(row: sa.Row[Any] | None) -> ModelRecord | None:
    return None if row is None else ModelRecord(**fields(row))


def insert(tx: WriteTx, model: ModelRecord) -> None:
    """Adds a version."""
    tx.connection.execute(
        sa.insert(models).values(
            run_id=model.run_id,
            version=model.version,
            round=model.round,
            digest=model.digest,
            num_bytes=model.num_bytes,
            num_parameters=model.num_parameters,
            blob_id=model.blob_id,
            optimizer_blob_id=model.optimizer_blob_id,
            parent_version=model.parent_version,
            restored_from=model.restored_from,
            quarantined=model.quarantined,
            created_at=model.created_at,
            control_blob_id=model.control_blob_id,
            control_digest=model.control_digest,
            control_num_bytes=model.control_num_bytes,
        )
    )


def get(tx: ReadTx, run_id: str, version: int) -> ModelRecord | None:
    """Gives a version; None where there is no such version."""
    return _record(tx.connection.execute(_GET, {"run_id": run_id, "version": version}).one_or_none())


def page(tx: ReadTx, run_id: str, *, after_version: int, limit: int) -> list[ModelRecord]:
    """Lists versions newer than a given one, oldest first."""
    query = (
        sa.select(models)
        .where(models.c.run_id == run_id, models.c.version > after_version)
        .order_by(models.c.version)
        .limit(limit)
    )
    return [ModelRecord(**fields(row)) for row in tx.connection.execute(query)]


def quarantine(tx: WriteTx, run_id: str, version: int) -> None:
    """Notes that a version is left behind."""
    change_one(
        tx, sa.update(models).where(models.c.run_id == run_id, models.c.version == version).values(quarantined=True)
    )


def evaluations_along(tx: ReadTx, run_id: str, version: int) -> list[tuple[int, Mapping[str, float]]]:
    """Lists what was reported of a version and of those that it descends from, oldest first."""
    ancestor = (
        sa.select(models.c.version, models.c.parent_version)
        .where(models.c.run_id == run_id, models.c.version == version)
        .cte("ancestor", recursive=True)
    )
    ancestor = ancestor.union_all(
        sa.select(models.c.version, models.c.parent_version).where(
            models.c.run_id == run_id, models.c.version == ancestor.c.parent_version
        )
    )
    query = (
        sa.select(rounds.c.result_version, rounds.c.evaluation)
        .join(ancestor, ancestor.c.version == rounds.c.result_version)
        .where(rounds.c.run_id == run_id, rounds.c.evaluation.is_not(None))
        .order_by(rounds.c.result_version)
    )
    return [(row.result_version, row.evaluation) for row in tx.connection.execute(query)]
