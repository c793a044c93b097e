"""Renditions: stored variants of model versions, compressed or as the difference from an earlier one."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "renditions",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("base_version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("blob_id", sa.String(length=64), nullable=True),
        sa.Column("digest", sa.String(length=71), nullable=True),
        sa.Column("num_bytes", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.blob_id"], name=op.f("fk_renditions_blob_id")),
        sa.ForeignKeyConstraint(
            ["run_id", "version"], ["models.run_id", "models.version"], name=op.f("fk_renditions_run_id_version")
        ),
        sa.PrimaryKeyConstraint("run_id", "version", "kind", "base_version", name=op.f("pk_renditions")),
    )


def downgrade() -> None:
    op.drop_table("renditions")
