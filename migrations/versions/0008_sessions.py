"""Secure aggregation: identity keys, signed manifests, seats, sessions, their members and what these send."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "signing_keys",
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("private_key", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_signing_keys")),
    )
    op.create_table(
        "identity_keys",
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("certificate", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["clients.client_id"], name=op.f("fk_identity_keys_client_id")),
        sa.PrimaryKeyConstraint("client_id", name=op.f("pk_identity_keys")),
    )
    op.create_table(
        "advertised_keys",
        sa.Column("round_id", sa.String(length=64), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.round_id"], name=op.f("fk_advertised_keys_round_id")),
        sa.PrimaryKeyConstraint("round_id", "public_key", name=op.f("pk_advertised_keys")),
    )
    op.create_table(
        "manifests",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("round_id", sa.String(length=64), nullable=False),
        sa.Column("round", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("previous_digest", sa.String(length=71), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.round_id"], name=op.f("fk_manifests_round_id")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_manifests_run_id")),
        sa.PrimaryKeyConstraint("run_id", "sequence", name=op.f("pk_manifests")),
        sa.UniqueConstraint("round_id", name=op.f("uq_manifests_round_id")),
    )
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("round_id", sa.String(length=64), nullable=False),
        sa.Column("manifest_digest", sa.String(length=71), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("num_members", sa.BigInteger(), nullable=False),
        sa.Column("num_expected", sa.BigInteger(), nullable=False),
        sa.Column("num_messages", sa.BigInteger(), nullable=False),
        sa.Column("deadline_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("abort_code", sa.String(length=32), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("context", sa.LargeBinary(), nullable=False),
        sa.Column("identity", sa.LargeBinary(), nullable=False),
        sa.Column("survivors", sa.LargeBinary(), nullable=True),
        sa.Column("total_weight", sa.BigInteger(), nullable=True),
        sa.Column("totals", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("sum_digest", sa.String(length=71), nullable=True),
        sa.Column("sum_blob_id", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.round_id"], name=op.f("fk_sessions_round_id")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_sessions_run_id")),
        sa.ForeignKeyConstraint(["sum_blob_id"], ["blobs.blob_id"], name=op.f("fk_sessions_sum_blob_id")),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_round_id"), "sessions", ["round_id"], unique=False)
    op.create_index(op.f("ix_sessions_run_id"), "sessions", ["run_id"], unique=False)
    op.create_index(op.f("ix_sessions_state"), "sessions", ["state"], unique=False)
    op.create_table(
        "seats",
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("round_id", sa.String(length=64), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("advertise", sa.LargeBinary(), nullable=False),
        sa.Column("session_id", sa.String(length=64), nullable=True),
        sa.Column("place", sa.BigInteger(), nullable=True),
        sa.Column("waiting_since", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["clients.client_id"], name=op.f("fk_seats_client_id")),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.round_id"], name=op.f("fk_seats_round_id")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_seats_run_id")),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.session_id"], name=op.f("fk_seats_session_id")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name=op.f("fk_seats_task_id")),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_seats")),
    )
    op.create_index(op.f("ix_seats_round_id_state"), "seats", ["round_id", "state"], unique=False)
    op.create_table(
        "session_members",
        sa.Column("session_id", sa.String(length=64), nullable=False),
        sa.Column("place", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("advertise", sa.LargeBinary(), nullable=False),
        sa.Column("shares_digest", sa.String(length=71), nullable=True),
        sa.Column("input_digest", sa.String(length=71), nullable=True),
        sa.Column("input_blob_id", sa.String(length=64), nullable=True),
        sa.Column("signature", sa.LargeBinary(), nullable=True),
        sa.Column("unmask_digest", sa.String(length=71), nullable=True),
        sa.Column("right_shares", sa.LargeBinary(), nullable=True),
        sa.Column("blamed", sa.Boolean(name="blamed"), server_default=sa.false(), nullable=False),
        sa.ForeignKeyConstraint(["client_id"], ["clients.client_id"], name=op.f("fk_session_members_client_id")),
        sa.ForeignKeyConstraint(["input_blob_id"], ["blobs.blob_id"], name=op.f("fk_session_members_input_blob_id")),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.session_id"], name=op.f("fk_session_members_session_id")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.task_id"], name=op.f("fk_session_members_task_id")),
        sa.PrimaryKeyConstraint("session_id", "place", name=op.f("pk_session_members")),
        sa.UniqueConstraint("session_id", "client_id", name=op.f("uq_session_members_session_id_client_id")),
    )
    op.create_table(
        "session_messages",
        sa.Column("session_id", sa.String(length=64), nullable=False),
        sa.Column("place", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id", "place"],
            ["session_members.session_id", "session_members.place"],
            name=op.f("fk_session_messages_session_id_place"),
        ),
        sa.PrimaryKeyConstraint("session_id", "place", "kind", name=op.f("pk_session_messages")),
    )


def downgrade() -> None:
    op.drop_table("session_messages")
    op.drop_table("session_members")
    op.drop_index(op.f("ix_seats_round_id_state"), table_name="seats")
    op.drop_table("seats")
    op.drop_index(op.f("ix_sessions_state"), table_name="sessions")
    op.drop_index(op.f("ix_sessions_run_id"), table_name="sessions")
    op.drop_index(op.f("ix_sessions_round_id"), table_name="sessions")
    op.drop_table("sessions")
    op.drop_table("manifests")
    op.drop_table("advertised_keys")
    op.drop_table("identity_keys")
    op.drop_table("signing_keys")
