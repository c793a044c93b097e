"""The tables of helper mode; `tables` has all the others and names these too."""

from typing import Final

import sqlalchemy as sa

from aggregator_service.storage.columns import Instant, identifier, metadata

contributions: Final = sa.Table(
    "contributions",
    metadata,
    identifier("task_id", sa.ForeignKey("tasks.task_id"), primary_key=True),
    identifier("run_id", sa.ForeignKey("runs.run_id"), nullable=False),
    identifier("round_id", sa.ForeignKey("rounds.round_id"), nullable=False),
    identifier("client_id", sa.ForeignKey("clients.client_id"), nullable=False),
    identifier("update_id", nullable=False, unique=True),
    sa.Column("identity_key", sa.LargeBinary, nullable=False),
    sa.Column("digest", sa.String(71), nullable=False),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("vector_digest", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
    sa.Column("sealed", sa.LargeBinary),
    identifier("blob_id", sa.ForeignKey("blobs.blob_id")),
    sa.Column("refused", sa.Text),
    sa.Column("accepted_at", Instant, nullable=False),
    sa.UniqueConstraint("round_id", "client_id"),
    sa.UniqueConstraint("round_id", "identity_key"),
)

mask_sums: Final = sa.Table(
    "mask_sums",
    metadata,
    identifier("round_id", sa.ForeignKey("rounds.round_id"), primary_key=True),
    identifier("run_id", sa.ForeignKey("runs.run_id"), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("deadline_at", Instant, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("ended_at", Instant),
    sa.Column("reason", sa.Text),
    sa.Column("context", sa.LargeBinary, nullable=False),
    sa.Column("members_digest", sa.LargeBinary, nullable=False),
    sa.Column("num_members", sa.BigInteger, nullable=False),
    sa.Column("total_weight", sa.BigInteger),
    sa.Column("totals", sa.JSON(none_as_null=True)),
    sa.Column("sum_digest", sa.String(71)),
    identifier("sum_blob_id", sa.ForeignKey("blobs.blob_id")),
)

mask_requests: Final = sa.Table(
    "mask_requests",
    metadata,
    identifier("request_id", primary_key=True),
    identifier("run_id", sa.ForeignKey("runs.run_id"), nullable=False),
    identifier("round_id", sa.ForeignKey("mask_sums.round_id"), nullable=False),
    sa.Column("helper", sa.BigInteger, nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("signing_key", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("signature", sa.LargeBinary),
    sa.Column("digest", sa.String(71)),
    sa.Column("sum_digest", sa.String(71)),
    identifier("blob_id", sa.ForeignKey("blobs.blob_id")),
    sa.UniqueConstraint("round_id", "helper"),
    sa.Index(None, "signing_key", "state"),
)
