"""Adds SCAFFOLD's server control variate to models, and FedNova's number of local steps to updates."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("models") as models:
        models.add_column(sa.Column("control_blob_id", sa.String(length=64), nullable=True))
        models.add_column(sa.Column("control_digest", sa.String(length=71), nullable=True))
        models.add_column(sa.Column("control_num_bytes", sa.BigInteger(), nullable=True))
        models.create_foreign_key(op.f("fk_models_control_blob_id"), "blobs", ["control_blob_id"], ["blob_id"])
    op.add_column("updates", sa.Column("local_steps", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("updates", "local_steps")
    with op.batch_alter_table("models") as models:
        models.drop_constraint(op.f("fk_models_control_blob_id"), type_="foreignkey")
        models.drop_column("control_num_bytes")
        models.drop_column("control_digest")
        models.drop_column("control_blob_id")
