"""The mask_sums and mask_requests tables; a state changes only from the one that was read."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.helper_mode.records import MaskRequestRecord, MaskSumRecord
from aggregator_service.domain.helper_mode.steps import MASK_SUM_TRANSITIONS, WAITING
from aggregator_service.storage.blobs import remove_blobs
from aggregator_service.storage.helper_mode_tables import mask_requests, mask_sums
from aggregator_service.storage.rows import change_one, changes_one, fields
from aggregator_service.storage.tables import rounds, runs
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.helper_mode import MaskRequestState, MaskSumState
from fl_protocol.runs import RunState

MAX_LISTED: Final = 100
_GET: Final = sa.select(mask_sums).where(mask_sums.c.round_id == sa.bindparam("round_id"))
_NEWEST: Final = (
    sa.select(mask_sums)
    .join(rounds, rounds.c.round_id == mask_sums.c.round_id)
    .where(mask_sums.c.run_id == sa.bindparam("run_id"), rounds.c.number == sa.bindparam("number"))
    .order_by(rounds.c.attempt.desc())
    .limit(1)
)
_GOING_ON: Final = (
    sa.select(mask_sums)
    .join(runs, runs.c.run_id == mask_sums.c.run_id)
    .where(runs.c.state.in_([RunState.RUNNING.value, RunState.PAUSED.value]))
    .order_by(mask_sums.c.created_at, mask_sums.c.round_id)
)
_SUMMING: Final = _GOING_ON.where(mask_sums.c.state == MaskSumState.SUMMING.value)
_TIMED: Final = _GOING_ON.where(
    mask_sums.c.state.in_([state.value for state in WAITING]), runs.c.state == RunState.RUNNING.value
)
_REQUEST: Final = sa.select(mask_requests).where(mask_requests.c.request_id == sa.bindparam("request_id"))
_OF_ROUND: Final = (
    sa.select(mask_requests)
    .where(mask_requests.c.round_id == sa.bindparam("round_id"))
    .order_by(mask_requests.c.helper)
)
_PENDING: Final = (
    sa.select(mask_requests)
    .join(mask_sums, mask_sums.c.round_id == mask_requests.c.round_id)
    .where(
        mask_requests.c.signing_key == sa.bindparam("signing_key"),
        sa.or_(
            sa.and_(
                mask_sums.c.state == MaskSumState.CHECKING.value,
                mask_requests.c.state == MaskRequestState.ASKED.value,
            ),
            sa.and_(
                mask_sums.c.state == MaskSumState.RELEASING.value,
                mask_requests.c.state == MaskRequestState.READY.value,
            ),
        ),
    )
    .order_by(mask_requests.c.created_at, mask_requests.c.request_id)
    .limit(MAX_LISTED)
)
_POSTPONE: Final = (
    sa.update(mask_sums)
    .where(mask_sums.c.run_id == sa.bindparam("of_run"), mask_sums.c.state.in_([state.value for state in WAITING]))
    .values(deadline_at=sa.type_coerce(mask_sums.c.deadline_at, sa.BigInteger) + sa.bindparam("microseconds"))
)


def insert(tx: WriteTx, mask_sum: MaskSumRecord) -> None:
    """Adds a closed round that waits for its helpers."""
    values: dict[str, Any] = {column.name: getattr(mask_sum, column.name) for column in mask_sums.columns}
    tx.connection.execute(sa.insert(mask_sums), values | {"state": mask_sum.state.value})


def ask(tx: WriteTx, requests: Sequence[MaskRequestRecord]) -> None:
    """Adds what a round's helpers are asked, in place of what they were asked before about other contributions."""
    round_id = requests[0].round_id
    tx.connection.execute(sa.delete(mask_requests).where(mask_requests.c.round_id == round_id))
    tx.connection.execute(
        sa.insert(mask_requests),
        [
            {column.name: getattr(one, column.name) for column in mask_requests.columns} | {"state": one.state.value}
            for one in requests
        ],
    )


def get(tx: ReadTx, round_id: str) -> MaskSumRecord | None:
    """Gives where a closed round stands; None before it closed, or where it has no helpers."""
    row = tx.connection.execute(_GET, {"round_id": round_id}).one_or_none()
    return None if row is None else _record(row)


def newest(tx: ReadTx, run_id: str, number: int) -> MaskSumRecord | None:
    """Gives the newest attempt at a round of a run that has asked its helpers."""
    row = tx.connection.execute(_NEWEST, {"run_id": run_id, "number": number}).one_or_none()
    return None if row is None else _record(row)


def summing(tx: ReadTx) -> list[MaskSumRecord]:
    """Lists the rounds that wait for their sum, in every run that still goes on."""
    return [_record(row) for row in tx.connection.execute(_SUMMING)]


def timed(tx: ReadTx) -> list[MaskSumRecord]:
    """Lists the rounds of running runs that wait for helpers."""
    return [_record(row) for row in tx.connection.execute(_TIMED)]


def request(tx: ReadTx, request_id: str) -> MaskRequestRecord | None:
    """Gives what a helper is asked."""
    row = tx.connection.execute(_REQUEST, {"request_id": request_id}).one_or_none()
    return None if row is None else _request(row)


def requests(tx: ReadTx, round_id: str) -> list[MaskRequestRecord]:
    """Lists what the helpers of a round are asked, by their numbers."""
    return [_request(row) for row in tx.connection.execute(_OF_ROUND, {"round_id": round_id})]


def pending(tx: ReadTx, signing_key: bytes) -> list[MaskRequestRecord]:
    """Lists the requests that wait for the holder of a signing key, oldest first."""
    return [_request(row) for row in tx.connection.execute(_PENDING, {"signing_key": signing_key})]


def change_request(tx: WriteTx, asked: MaskRequestRecord, state: MaskRequestState, **values: object) -> None:
    """Notes what a helper has done; raises StaleRowError unless its request is as it was read."""
    change_one(
        tx,
        sa.update(mask_requests)
        .where(mask_requests.c.request_id == asked.request_id, mask_requests.c.state == asked.state.value)
        .values(state=state.value, **values),
    )


def move(tx: WriteTx, mask_sum: MaskSumRecord, state: MaskSumState, **values: object) -> None:
    """Moves a round on from the state that was read; raises StaleRowError."""
    if state not in MASK_SUM_TRANSITIONS[mask_sum.state]:
        raise ValueError(f"a mask sum does not become {state} that is {mask_sum.state}")
    change_one(tx, _moving(mask_sum).values(state=state.value, **values))


def complete(
    tx: WriteTx, mask_sum: MaskSumRecord, *, sum_blob_id: str, sum_digest: str, total_weight: int, totals: Sequence[int]
) -> bool:
    """Names the sum of a round; False if somebody else has ended it."""
    return changes_one(
        tx,
        _moving(mask_sum).values(
            state=MaskSumState.DONE.value,
            ended_at=tx.now(),
            sum_blob_id=sum_blob_id,
            sum_digest=sum_digest,
            total_weight=total_weight,
            totals=list(totals),
        ),
    )


def forget_answers(tx: WriteTx, round_id: str) -> None:
    """Removes the sums of masks of a round that has ended; who signed what stays."""
    named = sa.select(mask_requests.c.blob_id).where(
        mask_requests.c.round_id == round_id, mask_requests.c.blob_id.is_not(None)
    )
    answers = tx.connection.execute(named).scalars().all()
    tx.connection.execute(sa.update(mask_requests).where(mask_requests.c.round_id == round_id).values(blob_id=None))
    remove_blobs(tx, *answers)


def postpone(tx: WriteTx, run_id: str, by: timedelta) -> None:
    """Moves the deadlines of a run's helpers, after a pause."""
    microseconds = by // timedelta(microseconds=1)
    tx.connection.execute(_POSTPONE, {"of_run": run_id, "microseconds": microseconds})


def _moving(mask_sum: MaskSumRecord) -> Any:
    return sa.update(mask_sums).where(
        mask_sums.c.round_id == mask_sum.round_id, mask_sums.c.state == mask_sum.state.value
    )


def _record(row: sa.Row[Any]) -> MaskSumRecord:
    values = fields(row)
    return MaskSumRecord(**values | {"state": MaskSumState(values["state"])})


def _request(row: sa.Row[Any]) -> MaskRequestRecord:
    values = fields(row)
    return MaskRequestRecord(**values | {"state": MaskRequestState(values["state"])})
