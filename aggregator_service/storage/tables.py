"""Every table but those of helper mode, with named constraints; Alembic compares its migrations with both."""

from typing import Final

import sqlalchemy as sa

from aggregator_service.storage.columns import Instant, identifier, metadata

runs: Final = sa.Table(
    "runs",
    metadata,
    identifier("run_id", primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("current_round", sa.BigInteger, nullable=False),
    sa.Column("latest_version", sa.BigInteger),
    sa.Column("num_events", sa.BigInteger, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("started_at", Instant),
    sa.Column("finished_at", Instant),
    sa.Column("paused_at", Instant),
    sa.Column("standing", sa.JSON(none_as_null=True)),
)

blobs: Final = sa.Table(
    "blobs",
    metadata,
    identifier("blob_id", primary_key=True),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("chunk_num_bytes", sa.BigInteger, nullable=False),
    sa.Column("sealed", sa.Boolean(name="sealed"), nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("store", sa.Text, nullable=False, server_default="database"),
    sa.Column("checksums", sa.LargeBinary),
    sa.Column("resumable", sa.Boolean(name="resumable"), nullable=False, server_default=sa.false()),
)

blob_deletions: Final = sa.Table(
    "blob_deletions",
    metadata,
    identifier("blob_id", primary_key=True),
    sa.Column("store", sa.Text, nullable=False),
)

blob_chunks: Final = sa.Table(
    "blob_chunks",
    metadata,
    identifier("blob_id", sa.ForeignKey("blobs.blob_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("checksum", sa.BigInteger, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

models: Final = sa.Table(
    "models",
    metadata,
    identifier("run_id", sa.ForeignKey("runs.run_id"), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("round", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.String(71), nullable=False),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("num_parameters", sa.BigInteger, nullable=False),
    identifier("blob_id", sa.ForeignKey("blobs.blob_id"), nullable=False),
    identifier("optimizer_blob_id", sa.ForeignKey("blobs.blob_id")),
    sa.Column("parent_version", sa.BigInteger),
    sa.Column("restored_from", sa.BigInteger),
    sa.Column("quarantined", sa.Boolean(name="quarantined"), nullable=False, server_default=sa.false()),
    sa.Column("created_at", Instant, nullable=False),
    identifier("control_blob_id", sa.ForeignKey("blobs.blob_id")),
    sa.Column("control_digest", sa.String(71)),
    sa.Column("control_num_bytes", sa.BigInteger),
)

renditions: Final = sa.Table(
    "renditions",
    metadata,
    identifier("run_id", primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("base_version", sa.BigInteger, primary_key=True, autoincrement=False),
    identifier("blob_id", sa.ForeignKey("blobs.blob_id")),
    sa.Column("digest", sa.String(71)),
    sa.Column("num_bytes", sa.BigInteger),
    sa.Column("created_at", Instant, nullable=False),
    sa.ForeignKeyConstraint(["run_id", "version"], ["models.run_id", "models.version"]),
)

rounds: Final = sa.Table(
    "rounds",
    metadata,
    identifier("round_id", primary_key=True),
    identifier("run_id", sa.ForeignKey("runs.run_id"), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False, server_default="synchronous"),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("base_version", sa.BigInteger, nullable=False),
    sa.Column("result_version", sa.BigInteger),
    sa.Column("quorum", sa.BigInteger, nullable=False),
    sa.Column("cohort_size", sa.BigInteger, nullable=False),
    sa.Column("min_updates", sa.BigInteger, nullable=False),
    sa.Column("num_tasks", sa.BigInteger, nullable=False),
    sa.Column("num_updates", sa.BigInteger, nullable=False),
    sa.Column("num_examples", sa.BigInteger, nullable=False),
    sa.Column("opened_at", Instant, nullable=False),
    sa.Column("deadline_at", Instant, nullable=False),
    sa.Column("closed_at", Instant),
    sa.Column("completed_at", Instant),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("evaluation_state", sa.String(16), nullable=False, index=True),
    sa.Column("evaluation_deadline_at", Instant),
    sa.Column("evaluation", sa.JSON(none_as_null=True)),
    sa.Column("num_awaited", sa.BigInteger),
    sa.Column("expected_cohort", sa.Double),
    sa.Column("evaluation_by_stratum", sa.JSON(none_as_null=True)),
    sa.Column("epsilon", sa.Double),
    sa.UniqueConstraint("run_id", "number", "attempt"),
)

clients: Final = sa.Table(
    "clients",
    metadata,
    identifier("client_id", primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("attributes", sa.JSON, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("last_seen_at", Instant),
    sa.Column("revoked_at", Instant),
)

run_clients: Final = sa.Table(
    "run_clients",
    metadata,
    identifier("run_id", sa.ForeignKey("runs.run_id"), primary_key=True),
    identifier("client_id", sa.ForeignKey("clients.client_id"), primary_key=True),
    sa.Column("seen_at", Instant),
    sa.Column("excluded_at", Instant),
    sa.Column("exclusion_reason", sa.Text),
    sa.Index(None, "run_id", "seen_at"),
)

draws: Final = sa.Table(
    "draws",
    metadata,
    identifier("round_id", sa.ForeignKey("rounds.round_id"), primary_key=True),
    sa.Column("key", sa.LargeBinary, nullable=False),
    sa.Column("places", sa.JSON(none_as_null=True)),
)

invitations: Final = sa.Table(
    "invitations",
    metadata,
    identifier("round_id", sa.ForeignKey("draws.round_id"), primary_key=True),
    identifier("client_id", sa.ForeignKey("clients.client_id"), primary_key=True),
    sa.Column("stratum", sa.String(256), nullable=False),
    sa.Column("withdrawn", sa.Boolean(name="withdrawn"), nullable=False),
)

tasks: Final = sa.Table(
    "tasks",
    metadata,
    identifier("task_id", primary_key=True),
    identifier("run_id", sa.ForeignKey("runs.run_id"), nullable=False),
    identifier("round_id", sa.ForeignKey("rounds.round_id"), nullable=False),
    identifier("client_id", sa.ForeignKey("clients.client_id"), nullable=False, index=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("base_version", sa.BigInteger, nullable=False),
    sa.Column("assigned_at", Instant, nullable=False),
    sa.Column("deadline_at", Instant),
    sa.Column("turn", sa.BigInteger, nullable=False, server_default="1"),
    sa.UniqueConstraint("round_id", "client_id", "kind", "turn"),
    sa.Index("ix_tasks_run_id", "run_id", "kind", "state", "deadline_at"),
)

updates: Final = sa.Table(
    "updates",
    metadata,
    identifier("update_id", primary_key=True),
    identifier("task_id", sa.ForeignKey("tasks.task_id"), nullable=False, unique=True),
    identifier("run_id", sa.ForeignKey("runs.run_id"), nullable=False),
    identifier("round_id", sa.ForeignKey("rounds.round_id"), nullable=False),
    identifier("client_id", sa.ForeignKey("clients.client_id"), nullable=False),
    sa.Column("digest", sa.String(71), nullable=False),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("num_examples", sa.BigInteger, nullable=False),
    sa.Column("weight", sa.BigInteger, nullable=False),
    sa.Column("staleness", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("max_abs", sa.JSON, nullable=False),
    identifier("blob_id", sa.ForeignKey("blobs.blob_id"), nullable=False),
    sa.Column("accepted_at", Instant, nullable=False),
    sa.Column("local_steps", sa.BigInteger),
    sa.Column("counts_once", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("skipped", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index(None, "round_id", "client_id"),
    sa.Index(
        "uq_updates_round_id_client_id",
        "round_id",
        "client_id",
        unique=True,
        sqlite_where=sa.text("counts_once"),
        postgresql_where=sa.text("counts_once"),
    ),
    sa.Index(None, "run_id", "client_id"),
)

evaluations: Final = sa.Table(
    "evaluations",
    metadata,
    identifier("update_id", primary_key=True),
    identifier("task_id", sa.ForeignKey("tasks.task_id"), nullable=False, unique=True),
    identifier("round_id", sa.ForeignKey("rounds.round_id"), nullable=False),
    identifier("client_id", sa.ForeignKey("clients.client_id"), nullable=False),
    sa.Column("digest", sa.String(71), nullable=False),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("num_examples", sa.BigInteger, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("accepted_at", Instant, nullable=False),
    sa.UniqueConstraint("round_id", "client_id"),
)

tokens: Final = sa.Table(
    "tokens",
    metadata,
    sa.Column("token_hash", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    identifier("client_id", sa.ForeignKey("clients.client_id"), index=True),
    sa.Column("max_uses", sa.BigInteger),
    sa.Column("uses", sa.BigInteger, nullable=False),
    sa.Column("expires_at", Instant),
    sa.Column("revoked_at", Instant),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("helper_key", sa.LargeBinary),
)

privacy_ledger: Final = sa.Table(
    "privacy_ledger",
    metadata,
    identifier("run_id", sa.ForeignKey("runs.run_id"), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    identifier("round_id", sa.ForeignKey("rounds.round_id"), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("entry", sa.Text, nullable=False),
    sa.Column("entry_hash", sa.String(64), nullable=False),
)

noise_keys: Final = sa.Table(
    "noise_keys",
    metadata,
    identifier("round_id", sa.ForeignKey("rounds.round_id"), primary_key=True),
    sa.Column("key", sa.LargeBinary, nullable=False),
)

noise_states: Final = sa.Table(
    "noise_states",
    metadata,
    identifier("run_id", sa.ForeignKey("runs.run_id"), primary_key=True),
    identifier("blob_id", sa.ForeignKey("blobs.blob_id"), nullable=False),
)

identity_keys: Final = sa.Table(
    "identity_keys",
    metadata,
    identifier("client_id", sa.ForeignKey("clients.client_id"), primary_key=True),
    sa.Column("public_key", sa.LargeBinary, nullable=False),
    sa.Column("certificate", sa.LargeBinary),
    sa.Column("created_at", Instant, nullable=False),
)

signing_keys: Final = sa.Table(
    "signing_keys",
    metadata,
    sa.Column("name", sa.String(16), primary_key=True),
    sa.Column("private_key", sa.LargeBinary, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
)

manifests: Final = sa.Table(
    "manifests",
    metadata,
    identifier("run_id", sa.ForeignKey("runs.run_id"), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    identifier("round_id", sa.ForeignKey("rounds.round_id"), nullable=False, unique=True),
    sa.Column("round", sa.BigInteger, nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.String(71), nullable=False),
    sa.Column("previous_digest", sa.String(71)),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
)

sessions: Final = sa.Table(
    "sessions",
    metadata,
    identifier("session_id", primary_key=True),
    identifier("run_id", sa.ForeignKey("runs.run_id"), nullable=False, index=True),
    identifier("round_id", sa.ForeignKey("rounds.round_id"), nullable=False, index=True),
    sa.Column("manifest_digest", sa.String(71), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("num_members", sa.BigInteger, nullable=False),
    sa.Column("num_expected", sa.BigInteger, nullable=False),
    sa.Column("num_messages", sa.BigInteger, nullable=False),
    sa.Column("deadline_at", Instant, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("ended_at", Instant),
    sa.Column("abort_code", sa.String(32)),
    sa.Column("reason", sa.Text),
    sa.Column("context", sa.LargeBinary, nullable=False),
    sa.Column("identity", sa.LargeBinary, nullable=False),
    sa.Column("survivors", sa.LargeBinary),
    sa.Column("total_weight", sa.BigInteger),
    sa.Column("totals", sa.JSON(none_as_null=True)),
    sa.Column("sum_digest", sa.String(71)),
    identifier("sum_blob_id", sa.ForeignKey("blobs.blob_id")),
)

session_members: Final = sa.Table(
    "session_members",
    metadata,
    identifier("session_id", sa.ForeignKey("sessions.session_id"), primary_key=True),
    sa.Column("place", sa.BigInteger, primary_key=True, autoincrement=False),
    identifier("client_id", sa.ForeignKey("clients.client_id"), nullable=False),
    identifier("task_id", sa.ForeignKey("tasks.task_id"), nullable=False),
    sa.Column("advertise", sa.LargeBinary, nullable=False),
    sa.Column("shares_digest", sa.String(71)),
    sa.Column("input_digest", sa.String(71)),
    identifier("input_blob_id", sa.ForeignKey("blobs.blob_id")),
    sa.Column("signature", sa.LargeBinary),
    sa.Column("unmask_digest", sa.String(71)),
    sa.Column("right_shares", sa.LargeBinary),
    sa.Column("blamed", sa.Boolean(name="blamed"), nullable=False, server_default=sa.false()),
    sa.UniqueConstraint("session_id", "client_id"),
)

session_messages: Final = sa.Table(
    "session_messages",
    metadata,
    identifier("session_id", primary_key=True),
    sa.Column("place", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(["session_id", "place"], ["session_members.session_id", "session_members.place"]),
)

seats: Final = sa.Table(
    "seats",
    metadata,
    identifier("task_id", sa.ForeignKey("tasks.task_id"), primary_key=True),
    identifier("run_id", sa.ForeignKey("runs.run_id"), nullable=False),
    identifier("round_id", sa.ForeignKey("rounds.round_id"), nullable=False),
    identifier("client_id", sa.ForeignKey("clients.client_id"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("advertise", sa.LargeBinary, nullable=False),
    identifier("session_id", sa.ForeignKey("sessions.session_id")),
    sa.Column("place", sa.BigInteger),
    sa.Column("waiting_since", Instant, nullable=False),
    sa.Index(None, "round_id", "state"),
)

advertised_keys: Final = sa.Table(
    "advertised_keys",
    metadata,
    identifier("round_id", sa.ForeignKey("rounds.round_id"), primary_key=True),
    sa.Column("public_key", sa.LargeBinary, primary_key=True),
)

events: Final = sa.Table(
    "events",
    metadata,
    identifier("run_id", sa.ForeignKey("runs.run_id"), primary_key=True),
    sa.Column("event_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
)

idempotency_keys: Final = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("scope", sa.String(160), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("request_digest", sa.String(71), nullable=False),
    identifier("resource_id", nullable=False),
    sa.Column("created_at", Instant, nullable=False),
)
