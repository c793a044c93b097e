"""Buffered rounds: a task knows its model and its own deadline, an update how stale it is."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_BASE_VERSION = """
UPDATE tasks SET base_version = coalesce(
    (SELECT CASE tasks.kind WHEN 'evaluate' THEN rounds.result_version ELSE rounds.base_version END
     FROM rounds WHERE rounds.round_id = tasks.round_id), 0)
"""


def upgrade() -> None:
    op.add_column("rounds", sa.Column("kind", sa.String(16), nullable=False, server_default="synchronous"))
    with op.batch_alter_table("updates") as batch_op:
        batch_op.add_column(sa.Column("staleness", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.drop_constraint(op.f("uq_updates_round_id_client_id"), type_="unique")
        batch_op.add_column(sa.Column("counts_once", sa.Boolean(), nullable=False, server_default=sa.true()))
        batch_op.create_index(op.f("ix_updates_round_id_client_id"), ["round_id", "client_id"], unique=False)
        batch_op.create_index(
            op.f("uq_updates_round_id_client_id"),
            ["round_id", "client_id"],
            unique=True,
            sqlite_where=sa.text("counts_once"),
            postgresql_where=sa.text("counts_once"),
        )
    with op.batch_alter_table("tasks") as batch_op:
        batch_op.add_column(sa.Column("base_version", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("deadline_at", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("turn", sa.BigInteger(), nullable=False, server_default="1"))
        batch_op.drop_constraint(op.f("uq_tasks_round_id_client_id_kind"), type_="unique")
        batch_op.create_unique_constraint(
            op.f("uq_tasks_round_id_client_id_kind_turn"), ["round_id", "client_id", "kind", "turn"]
        )
        batch_op.create_index(op.f("ix_tasks_run_id"), ["run_id", "kind", "state", "deadline_at"], unique=False)
    op.execute(_BASE_VERSION)
    with op.batch_alter_table("tasks") as batch_op:
        batch_op.alter_column("base_version", existing_type=sa.BigInteger(), server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("tasks") as batch_op:
        batch_op.drop_index(op.f("ix_tasks_run_id"))
        batch_op.drop_constraint(op.f("uq_tasks_round_id_client_id_kind_turn"), type_="unique")
        batch_op.create_unique_constraint(op.f("uq_tasks_round_id_client_id_kind"), ["round_id", "client_id", "kind"])
        batch_op.drop_column("turn")
        batch_op.drop_column("deadline_at")
        batch_op.drop_column("base_version")
    with op.batch_alter_table("updates") as batch_op:
        batch_op.drop_index(op.f("uq_updates_round_id_client_id"))
        batch_op.drop_index(op.f("ix_updates_round_id_client_id"))
        batch_op.create_unique_constraint(op.f("uq_updates_round_id_client_id"), ["round_id", "client_id"])
        batch_op.drop_column("counts_once")
        batch_op.drop_column("staleness")
    op.drop_column("rounds", "kind")
