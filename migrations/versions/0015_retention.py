"""Since when the bytes of updates and model versions are gone by their run's policy."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("models", "updates"):
        op.add_column(table, sa.Column("removed_at", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    for table in ("updates", "models"):
        op.drop_column(table, "removed_at")
