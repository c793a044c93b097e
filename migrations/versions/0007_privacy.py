"""Privacy: a ledger of what releases cost, whose rows cannot be changed, and the keys of noise not yet released."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_SQLITE = """
CREATE TRIGGER privacy_ledger_no_{verb} BEFORE {verb} ON privacy_ledger
BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END
"""
# INSERT OR REPLACE deletes without asking the trigger on DELETE.
_SQLITE_REPLACE = """
CREATE TRIGGER privacy_ledger_no_replace BEFORE INSERT ON privacy_ledger
WHEN EXISTS (SELECT 1 FROM privacy_ledger WHERE run_id = NEW.run_id AND sequence = NEW.sequence)
BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END
"""
_POSTGRES_FUNCTION = """
CREATE FUNCTION privacy_ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the privacy ledger is append-only'; END $$
"""
_POSTGRES = """
CREATE TRIGGER privacy_ledger_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON privacy_ledger
FOR EACH STATEMENT EXECUTE FUNCTION privacy_ledger_is_append_only()
"""


def upgrade() -> None:
    op.add_column("rounds", sa.Column("epsilon", sa.Double(), nullable=True))
    op.create_table(
        "privacy_ledger",
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("round_id", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("entry_hash", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_privacy_ledger_run_id")),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.round_id"], name=op.f("fk_privacy_ledger_round_id")),
        sa.PrimaryKeyConstraint("run_id", "sequence", name=op.f("pk_privacy_ledger")),
    )
    op.create_index(op.f("ix_privacy_ledger_round_id"), "privacy_ledger", ["round_id"])
    op.create_table(
        "noise_keys",
        sa.Column("round_id", sa.String(64), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.round_id"], name=op.f("fk_noise_keys_round_id")),
        sa.PrimaryKeyConstraint("round_id", name=op.f("pk_noise_keys")),
    )
    op.create_table(
        "noise_states",
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("blob_id", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("fk_noise_states_run_id")),
        sa.ForeignKeyConstraint(["blob_id"], ["blobs.blob_id"], name=op.f("fk_noise_states_blob_id")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_noise_states")),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(_POSTGRES_FUNCTION)
        op.execute(_POSTGRES)
    else:
        for verb in ("update", "delete"):
            op.execute(_SQLITE.format(verb=verb))
        op.execute(_SQLITE_REPLACE)


def downgrade() -> None:
    op.drop_column("rounds", "epsilon")
    op.drop_table("noise_states")
    op.drop_table("noise_keys")
    op.drop_index(op.f("ix_privacy_ledger_round_id"), "privacy_ledger")
    op.drop_table("privacy_ledger")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION privacy_ledger_is_append_only")
