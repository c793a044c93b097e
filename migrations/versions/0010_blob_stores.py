"""Where a blob's bytes are, with the checksums of those outside the database, and what of them is to be removed."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("blobs", sa.Column("store", sa.Text(), nullable=False, server_default="database"))
    op.add_column("blobs", sa.Column("checksums", sa.LargeBinary(), nullable=True))
    op.add_column("blobs", sa.Column("resumable", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "blob_deletions",
        sa.Column("blob_id", sa.String(length=64), nullable=False),
        sa.Column("store", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("blob_id", name=op.f("pk_blob_deletions")),
    )


def downgrade() -> None:
    op.drop_table("blob_deletions")
    op.drop_column("blobs", "resumable")
    op.drop_column("blobs", "checksums")
    op.drop_column("blobs", "store")
