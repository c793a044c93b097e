"""The models table: published versions, never changed afterwards."""

from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.records import ModelRecord
from aggregator_service.storage.rows import fields
from aggregator_service.storage.tables import models
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
