"""The tables of uploads that go on after a cut; `tables` has all the others."""

from typing import Final

import sqlalchemy as sa

from aggregator_service.storage.columns import Instant, identifier, metadata

uploads: Final = sa.Table(
    "uploads",
    metadata,
    identifier("upload_id", primary_key=True),
    identifier("task_id", sa.ForeignKey("tasks.task_id"), unique=True),
    identifier("run_id", sa.ForeignKey("runs.run_id"), unique=True),
    identifier("client_id", sa.ForeignKey("clients.client_id")),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("coding", sa.String(32), nullable=False),
    sa.Column("digest", sa.String(71)),
    sa.Column("num_stored", sa.BigInteger, nullable=False),
    sa.Column("append_epoch", sa.BigInteger, nullable=False),
    sa.Column("completed", sa.Boolean(name="completed"), nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("expires_at", Instant, nullable=False, index=True),
)

upload_segments: Final = sa.Table(
    "upload_segments",
    metadata,
    identifier("upload_id", sa.ForeignKey("uploads.upload_id"), primary_key=True),
    sa.Column("begins_at", sa.BigInteger, primary_key=True, autoincrement=False),
    identifier("blob_id", sa.ForeignKey("blobs.blob_id"), nullable=False),
)
