"""The runs table. Whoever changes anything of a run locks its row first, which orders writers on Postgres."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain import standing
from aggregator_service.domain.records import RunRecord
from aggregator_service.domain.standing import Standing
from aggregator_service.storage.rows import change_one, fields, is_behind
from aggregator_service.storage.tables import runs
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.runs import RunSpec, RunState

_MOST_SPECS: Final = 64
_specs: Final[dict[str, tuple[dict[str, Any], RunSpec]]] = {}
"""The specs that were read lately, by their runs, each with what it was read from."""

_GET: Final = sa.select(runs).where(runs.c.run_id == sa.bindparam("run_id"))
_LOCK: Final = _GET.with_for_update()
_GET_ALL: Final = sa.select(runs).where(runs.c.run_id.in_(sa.bindparam("run_ids", expanding=True)))
_LOCK_ALL: Final = _GET_ALL.order_by(runs.c.run_id).with_for_update()


def _record(row: sa.Row[Any]) -> RunRecord:
    values = fields(row)
    del values["num_events"]
    read = {
        "state": RunState(values["state"]),
        "spec": _spec(values["run_id"], values["spec"]),
        "standing": standing.from_json(values["standing"]),
    }
    return RunRecord(**values | read)


def _spec(run_id: str, stored: dict[str, Any]) -> RunSpec:
    """Reads a run's spec, once while it is stored so: every update's transaction reads its run, and no spec changes."""
    known = _specs.get(run_id)
    if known is None or known[0] != stored:
        if len(_specs) >= _MOST_SPECS:
            _specs.clear()
        known = _specs[run_id] = stored, RunSpec.model_validate(stored)
    return known[1]


def insert(tx: WriteTx, run: RunRecord) -> None:
    """Adds a run."""
    tx.connection.execute(
        sa.insert(runs).values(
            run_id=run.run_id,
            name=run.name,
            state=run.state.value,
            reason=run.reason,
            spec=run.spec.model_dump(mode="json"),
            current_round=run.current_round,
            latest_version=run.latest_version,
            num_events=0,
            created_at=run.created_at,
        )
    )


def stored_spec(tx: ReadTx, run_id: str) -> dict[str, Any]:
    """Gives a run's spec as it was stored, which later versions may read with more fields."""
    spec: dict[str, Any] = tx.connection.execute(sa.select(runs.c.spec).where(runs.c.run_id == run_id)).scalar_one()
    return spec


def unfinished_specs(tx: ReadTx) -> list[RunSpec]:
    """Gives the specs of all runs that have not ended."""
    query = sa.select(runs.c.spec).where(runs.c.finished_at.is_(None))
    return [RunSpec.model_validate(spec) for spec in tx.connection.execute(query).scalars()]


def get(tx: ReadTx, run_id: str) -> RunRecord | None:
    """Gives a run; None where there is no such run."""
    row = tx.connection.execute(_GET, {"run_id": run_id}).one_or_none()
    return None if row is None else _record(row)


def lock(tx: WriteTx, run_id: str) -> RunRecord | None:
    """Gives a run and keeps other writers away from it until the transaction ends."""
    row = tx.connection.execute(_LOCK, {"run_id": run_id}).one_or_none()
    return None if row is None else _record(row)


def lock_all(tx: WriteTx, run_ids: Collection[str]) -> dict[str, RunRecord]:
    """Does the same for several runs, by their ids and in that order: two processes never wait for each other."""
    return _by_id(tx, _LOCK_ALL, run_ids)


def get_all(tx: ReadTx, run_ids: Collection[str]) -> dict[str, RunRecord]:
    """Gives runs by their ids; one that does not exist is left out."""
    return _by_id(tx, _GET_ALL, run_ids)


def _by_id(tx: ReadTx, query: sa.Select[Any], run_ids: Collection[str]) -> dict[str, RunRecord]:
    rows = tx.connection.execute(query, {"run_ids": list(run_ids)})
    return {row.run_id: _record(row) for row in rows}


def reread(tx: ReadTx, run: RunRecord) -> RunRecord:
    """Gives a run as it is after what this transaction has changed of it."""
    found = get(tx, run.run_id)
    if found is None:
        raise LookupError(f"run {run.run_id} vanished")
    return found


def page(tx: ReadTx, *, after: tuple[datetime, str] | None, limit: int) -> list[RunRecord]:
    """Lists runs in the order of their creation, from behind a given one."""
    query = sa.select(runs).order_by(runs.c.created_at, runs.c.run_id).limit(limit)
    if after is not None:
        query = query.where(is_behind((runs.c.created_at, runs.c.run_id), after))
    return [_record(row) for row in tx.connection.execute(query)]


def set_state(
    tx: WriteTx,
    run: RunRecord,
    state: RunState,
    *,
    reason: str | None = None,
    started_at: datetime | None = None,
    finished_at: datetime | None = None,
    paused_at: datetime | None = None,
) -> None:
    """Moves a run from the state that was read to another one; raises StaleRowError if it moved meanwhile."""
    change_one(
        tx,
        sa.update(runs)
        .where(runs.c.run_id == run.run_id, runs.c.state == run.state.value)
        .values(
            state=state.value,
            reason=reason,
            started_at=started_at or run.started_at,
            finished_at=finished_at,
            paused_at=paused_at,
        ),
    )


def set_progress(tx: WriteTx, run_id: str, *, current_round: int, latest_version: int) -> None:
    """Records the round being worked on and the newest model version."""
    change_one(
        tx,
        sa.update(runs)
        .where(runs.c.run_id == run_id)
        .values(current_round=current_round, latest_version=latest_version),
    )


def set_standing(tx: WriteTx, run_id: str, now: Standing) -> None:
    """Records what a run's evaluations have come to."""
    change_one(tx, sa.update(runs).where(runs.c.run_id == run_id).values(standing=standing.to_json(now)))
