"""Adds what selection remembers: who was seen or excluded, the draws of cohorts, and how often clients took part."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("rounds", schema=None) as batch_op:
        batch_op.add_column(sa.Column("num_awaited", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("expected_cohort", sa.Double(), nullable=True))
    with op.batch_alter_table("updates", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_updates_run_id_client_id"), ["run_id", "client_id"], unique=False)
    op.create_table(
        "run_clients",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=True),
        sa.Column("excluded_at", sa.BigInteger(), nullable=True),
        sa.Column("exclusion_reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["client_id"], ["clients.client_id"], name=op.f("fk_run_clients_client_id")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_run_clients_run_id")),
        sa.PrimaryKeyConstraint("run_id", "client_id", name=op.f("pk_run_clients")),
    )
    with op.batch_alter_table("run_clients", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_run_clients_run_id_seen_at"), ["run_id", "seen_at"], unique=False)
    op.create_table(
        "draws",
        sa.Column("round_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("places", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.round_id"], name=op.f("fk_draws_round_id")),
        sa.PrimaryKeyConstraint("round_id", name=op.f("pk_draws")),
    )
    op.create_table(
        "invitations",
        sa.Column("round_id", sa.String(length=64), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("stratum", sa.String(length=256), nullable=False),
        sa.Column("withdrawn", sa.Boolean(name="withdrawn"), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["clients.client_id"], name=op.f("fk_invitations_client_id")),
        sa.ForeignKeyConstraint(["round_id"], ["draws.round_id"], name=op.f("fk_invitations_round_id")),
        sa.PrimaryKeyConstraint("round_id", "client_id", name=op.f("pk_invitations")),
    )


def downgrade() -> None:
    op.drop_table("invitations")
    op.drop_table("draws")
    with op.batch_alter_table("run_clients", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_run_clients_run_id_seen_at"))
    op.drop_table("run_clients")
    with op.batch_alter_table("updates", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_updates_run_id_client_id"))
    with op.batch_alter_table("rounds", schema=None) as batch_op:
        batch_op.drop_column("expected_cohort")
        batch_op.drop_column("num_awaited")
