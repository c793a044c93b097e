"""Helper mode: tokens of helpers, contributions, and what helpers are asked and answer."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tokens", sa.Column("helper_key", sa.LargeBinary(), nullable=True))
    op.create_table(
        "contributions",
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("round_id", sa.String(length=64), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("update_id", sa.String(length=64), nullable=False),
        sa.Column("identity_key", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("vector_digest", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("blob_id", sa.String(length=64), nullable=True),
        sa.Column("refused", sa.Text(), nullable=True),
        sa.Column("accepted_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.blob_id"], name=op.f("fk_contributions_blob_id")),
        sa.ForeignKeyConstraint(["client_id"], ["clients.client_id"], name=op.f("fk_contributions_client_id")),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.round_id"], name=op.f("fk_contributions_round_id")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_contributions_run_id")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name=op.f("fk_contributions_task_id")),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_contributions")),
        sa.UniqueConstraint("round_id", "client_id", name=op.f("uq_contributions_round_id_client_id")),
        sa.UniqueConstraint("round_id", "identity_key", name=op.f("uq_contributions_round_id_identity_key")),
        sa.UniqueConstraint("update_id", name=op.f("uq_contributions_update_id")),
    )
    op.create_table(
        "mask_sums",
        sa.Column("round_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("deadline_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("context", sa.LargeBinary(), nullable=False),
        sa.Column("members_digest", sa.LargeBinary(), nullable=False),
        sa.Column("num_members", sa.BigInteger(), nullable=False),
        sa.Column("total_weight", sa.BigInteger(), nullable=True),
        sa.Column("totals", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("sum_digest", sa.String(length=71), nullable=True),
        sa.Column("sum_blob_id", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.round_id"], name=op.f("fk_mask_sums_round_id")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_mask_sums_run_id")),
        sa.ForeignKeyConstraint(["sum_blob_id"], ["blobs.blob_id"], name=op.f("fk_mask_sums_sum_blob_id")),
        sa.PrimaryKeyConstraint("round_id", name=op.f("pk_mask_sums")),
    )
    op.create_index(op.f("ix_mask_sums_run_id"), "mask_sums", ["run_id"], unique=False)
    op.create_index(op.f("ix_mask_sums_state"), "mask_sums", ["state"], unique=False)
    op.create_table(
        "mask_requests",
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("round_id", sa.String(length=64), nullable=False),
        sa.Column("helper", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("signing_key", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=True),
        sa.Column("digest", sa.String(length=71), nullable=True),
        sa.Column("sum_digest", sa.String(length=71), nullable=True),
        sa.Column("blob_id", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.blob_id"], name=op.f("fk_mask_requests_blob_id")),
        sa.ForeignKeyConstraint(["round_id"], ["mask_sums.round_id"], name=op.f("fk_mask_requests_round_id")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_mask_requests_run_id")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_mask_requests")),
        sa.UniqueConstraint("round_id", "helper", name=op.f("uq_mask_requests_round_id_helper")),
    )
    op.create_index(op.f("ix_mask_requests_signing_key_state"), "mask_requests", ["signing_key", "state"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_mask_requests_signing_key_state"), table_name="mask_requests")
    op.drop_table("mask_requests")
    op.drop_index(op.f("ix_mask_sums_state"), table_name="mask_sums")
    op.drop_index(op.f("ix_mask_sums_run_id"), table_name="mask_sums")
    op.drop_table("mask_sums")
    op.drop_table("contributions")
    op.drop_column("tokens", "helper_key")
