"""Adds what evaluations come to: a run's standing, strata, and each model version's parent and fate."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("standing", sa.JSON(none_as_null=True), nullable=True))
    with op.batch_alter_table("rounds", schema=None) as batch_op:
        batch_op.add_column(sa.Column("evaluation_by_stratum", sa.JSON(none_as_null=True), nullable=True))
    with op.batch_alter_table("models", schema=None) as batch_op:
        batch_op.add_column(sa.Column("parent_version", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("restored_from", sa.BigInteger(), nullable=True))
        batch_op.add_column(
            sa.Column("quarantined", sa.Boolean(name="quarantined"), nullable=False, server_default=sa.false())
        )
    # Until now each version was trained from the one before it.
    op.execute("UPDATE models SET parent_version = version - 1 WHERE version > 0")


def downgrade() -> None:
    with op.batch_alter_table("models", schema=None) as batch_op:
        batch_op.drop_column("quarantined")
        batch_op.drop_column("restored_from")
        batch_op.drop_column("parent_version")
    with op.batch_alter_table("rounds", schema=None) as batch_op:
        batch_op.drop_column("evaluation_by_stratum")
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.drop_column("standing")
