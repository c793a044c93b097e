"""Chunks are not compressed by Postgres: weights hardly shrink, and trying costs a fifth of a write."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _store_chunks("EXTERNAL")


def downgrade() -> None:
    _store_chunks("EXTENDED")


def _store_chunks(kind: str) -> None:
    # What is stored already stays as it is and reads as before.
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE blob_chunks ALTER COLUMN data SET STORAGE {kind}")
