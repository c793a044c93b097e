"""Records of every kind for the storage suites, which say only what matters to them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from aggregator_service.domain.records import (
    ClientRecord,
    EvaluationRecord,
    EvaluationState,
    ModelRecord,
    RoundRecord,
    RunRecord,
    TaskRecord,
    TaskState,
    TokenKind,
    TokenRecord,
    UpdateRecord,
)
from aggregator_service.domain.sessions.records import MemberRecord, SeatRecord, SessionRecord
from aggregator_service.domain.standing import Standing
from aggregator_service.storage import clients, rounds, runs, tasks
from aggregator_service.storage.blobs import BlobUpload, chunks
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.rounds import RoundKind, RoundState
from fl_protocol.runs import RunSpec, RunState
from fl_protocol.sessions import SeatState, SessionState
from fl_protocol.tasks import TaskKind

NOON = datetime(2026, 8, 1, 12, 0, 0, 123456, tzinfo=UTC)
DIGEST = "sha256:" + "0" * 64


def later(seconds: float) -> datetime:
    """Gives an instant after noon."""
    return NOON + timedelta(seconds=seconds)


def run_record(run_id: str = "run_1", **changes: Any) -> RunRecord:
    """Makes a draft."""
    record = RunRecord(
        run_id=run_id,
        name="mnist ü",
        state=RunState.DRAFT,
        reason=None,
        spec=RunSpec(name="mnist"),
        current_round=0,
        latest_version=None,
        created_at=NOON,
        started_at=None,
        finished_at=None,
        paused_at=None,
        standing=Standing(),
    )
    return replace(record, **changes)


def round_record(round_id: str = "round_1", **changes: Any) -> RoundRecord:
    """Makes a collecting round."""
    record = RoundRecord(
        round_id=round_id,
        run_id="run_1",
        kind=RoundKind.SYNCHRONOUS,
        number=1,
        attempt=1,
        state=RoundState.COLLECTING,
        base_version=0,
        result_version=None,
        quorum=2,
        cohort_size=3,
        min_updates=1,
        num_tasks=0,
        num_updates=0,
        num_examples=0,
        opened_at=NOON,
        deadline_at=later(60),
        closed_at=None,
        completed_at=None,
        metrics={},
        evaluation_state=EvaluationState.NONE,
        evaluation_deadline_at=None,
        evaluation=None,
        evaluation_by_stratum=None,
    )
    return replace(record, **changes)


def client_record(client_id: str = "client_1", **changes: Any) -> ClientRecord:
    """Makes a client."""
    record = ClientRecord(client_id, "hospital-a", {"region": "north"}, NOON, None, None)
    return replace(record, **changes)


def task_record(task_id: str = "task_1", **changes: Any) -> TaskRecord:
    """Makes an open task to train."""
    record = TaskRecord(task_id, "run_1", "round_1", "client_1", TaskKind.TRAIN, TaskState.OPEN, 0, NOON)
    return replace(record, **changes)


def update_record(update_id: str = "update_1", **changes: Any) -> UpdateRecord:
    """Makes an accepted update, whose blob `store_blob` writes."""
    record = UpdateRecord(
        update_id=update_id,
        task_id="task_1",
        run_id="run_1",
        round_id="round_1",
        client_id="client_1",
        digest=DIGEST,
        num_bytes=2**40,
        num_examples=2**53 - 1,
        weight=1_000_000,
        staleness=0,
        metrics={"loss": 0.1},
        max_abs={"layer": 5e-324},
        blob_id="blob_1",
        accepted_at=NOON,
    )
    return replace(record, **changes)


def evaluation_record(update_id: str = "update_1", **changes: Any) -> EvaluationRecord:
    """Makes an accepted report."""
    record = EvaluationRecord(
        update_id=update_id,
        task_id="task_1",
        round_id="round_1",
        client_id="client_1",
        digest=DIGEST,
        num_bytes=100,
        num_examples=2**53 - 1,
        metrics={"loss": 0.1, "accuracy": 1.0},
        accepted_at=NOON,
    )
    return replace(record, **changes)


def model_record(version: int = 0, **changes: Any) -> ModelRecord:
    """Makes a version, whose blob `store_blob` writes."""
    record = ModelRecord(
        run_id="run_1",
        version=version,
        round=version,
        digest=DIGEST,
        num_bytes=2**40,
        num_parameters=2**38,
        blob_id="blob_1",
        optimizer_blob_id=None,
        parent_version=None,
        restored_from=None,
        quarantined=False,
        created_at=NOON,
    )
    return replace(record, **changes)


def token_record(token_hash: str = "0" * 64, **changes: Any) -> TokenRecord:
    """Makes an enrolment token with two uses."""
    record = TokenRecord(token_hash, TokenKind.ENROLMENT, None, 2, 0, later(60), None, NOON)
    return replace(record, **changes)


def store_blob(tx: WriteTx, blob_id: str = "blob_1", data: bytes = b"tensor bytes") -> None:
    """Writes a small blob."""
    upload = BlobUpload(blob_id)
    upload.append(data)
    chunks.insert(tx, [upload], store=chunks.DATABASE, sealed=True)
    chunks.write(tx, [upload], last=True)


def store_ground(tx: WriteTx, *, num_clients: int = 1) -> None:
    """Writes a run, a round, clients with a task each, and a blob, for others to refer to."""
    runs.insert(tx, run_record())
    rounds.insert(tx, round_record())
    store_blob(tx)
    for number in range(1, num_clients + 1):
        clients.insert(tx, client_record(f"client_{number}"))
        tasks.insert(tx, task_record(f"task_{number}", client_id=f"client_{number}"))


def seat_record(task_id: str = "task_1", **changes: Any) -> SeatRecord:
    """Makes the seat of a client that waits."""
    record = SeatRecord(task_id, "run_1", "round_1", "client_1", SeatState.WAITING, b"\0\xffkeys", None, None, NOON)
    return replace(record, **changes)


def session_record(session_id: str = "session_1", **changes: Any) -> SessionRecord:
    """Makes a session of three members that has just begun."""
    record = SessionRecord(
        session_id=session_id,
        run_id="run_1",
        round_id="round_1",
        manifest_digest=DIGEST,
        state=SessionState.SHARES,
        revision=1,
        num_members=3,
        num_expected=3,
        num_messages=0,
        deadline_at=later(60),
        created_at=NOON,
        ended_at=None,
        abort_code=None,
        reason=None,
        context=bytes(32),
        identity=b"\xff" * 32,
        survivors=None,
        total_weight=None,
        totals=None,
        sum_digest=None,
        sum_blob_id=None,
    )
    return replace(record, **changes)


def member_records(session_id: str = "session_1", num_members: int = 3, **changes: Any) -> list[MemberRecord]:
    """Makes the members of a session, who have sent nothing yet."""
    return [
        replace(MemberRecord(session_id, place, f"client_{place + 1}", f"task_{place + 1}", b"\0keys"), **changes)
        for place in range(num_members)
    ]
