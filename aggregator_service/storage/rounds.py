"""The rounds table: one row an attempt; a state changes only from the state that was read."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.records import EvaluationState, RoundRecord, StratumRecord
from aggregator_service.storage.rows import StaleRowError, change_one, changes_one, fields, is_behind
from aggregator_service.storage.tables import rounds, runs
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.rounds import RoundKind, RoundState
from fl_protocol.runs import RunState

_GET: Final = sa.select(rounds).where(rounds.c.round_id == sa.bindparam("round_id"))
_GET_ALL: Final = sa.select(rounds).where(rounds.c.round_id.in_(sa.bindparam("round_ids", expanding=True)))
_NEWEST: Final = (
    sa.select(rounds)
    .where(rounds.c.run_id == sa.bindparam("run_id"))
    .order_by(rounds.c.number.desc(), rounds.c.attempt.desc())
    .limit(1)
)
_NEWEST_OF_NUMBER: Final = _NEWEST.where(rounds.c.number == sa.bindparam("number"))
_UNFINISHED: Final = (
    sa.select(rounds)
    .where(
        rounds.c.run_id == sa.bindparam("run_id"),
        rounds.c.state.in_([RoundState.COLLECTING.value, RoundState.AGGREGATING.value]),
    )
    .order_by(rounds.c.number)
)
_OPEN_EVALUATIONS: Final = (
    sa.select(rounds)
    .where(rounds.c.run_id == sa.bindparam("run_id"), rounds.c.evaluation_state == EvaluationState.COLLECTING.value)
    .order_by(rounds.c.number)
)
_COUNT_TASK: Final = (
    sa.update(rounds)
    .where(rounds.c.round_id == sa.bindparam("of_round"))
    .values(num_tasks=rounds.c.num_tasks + sa.bindparam("change"))
)
_LAST_CLOSED: Final = _NEWEST.where(rounds.c.closed_at.is_not(None))
_COUNT_AWAITED: Final = (
    sa.update(rounds)
    .where(rounds.c.round_id == sa.bindparam("of_round"), rounds.c.num_awaited.is_not(None))
    .values(num_awaited=rounds.c.num_awaited + sa.bindparam("change"))
)
_COUNT_UPDATES: Final = (
    sa.update(rounds)
    .where(rounds.c.round_id == sa.bindparam("of_round"), rounds.c.state == RoundState.COLLECTING.value)
    .values(
        num_updates=rounds.c.num_updates + sa.bindparam("more_updates"),
        num_examples=rounds.c.num_examples + sa.bindparam("more_examples"),
    )
    .returning(rounds)
)


def record(values: dict[str, Any]) -> RoundRecord:
    """Makes an attempt of its columns by name."""
    strata = values["evaluation_by_stratum"]
    return RoundRecord(
        **values
        | {
            "kind": RoundKind(values["kind"]),
            "state": RoundState(values["state"]),
            "evaluation_state": EvaluationState(values["evaluation_state"]),
            "evaluation_by_stratum": strata and {name: StratumRecord(**entry) for name, entry in strata.items()},
        }
    )


def _record(row: sa.Row[Any] | None) -> RoundRecord | None:
    return None if row is None else record(fields(row))


def _records(tx: ReadTx, query: Any, parameters: Mapping[str, Any] | None = None) -> list[RoundRecord]:
    rows = tx.connection.execute(query, parameters)
    return [record(fields(row)) for row in rows]


def insert(tx: WriteTx, round_: RoundRecord) -> None:
    """Adds an attempt at a round."""
    tx.connection.execute(
        sa.insert(rounds).values(
            {
                column.name: getattr(round_, column.name)
                for column in rounds.columns
                if column.name
                not in ("kind", "state", "evaluation_state", "metrics", "evaluation", "evaluation_by_stratum")
            }
            | {
                "kind": round_.kind.value,
                "state": round_.state.value,
                "evaluation_state": round_.evaluation_state.value,
                "metrics": dict(round_.metrics),
                "evaluation": None,
                "evaluation_by_stratum": None,
            }
        )
    )


def get(tx: ReadTx, round_id: str) -> RoundRecord | None:
    """Gives an attempt by its id."""
    return _record(tx.connection.execute(_GET, {"round_id": round_id}).one_or_none())


def get_all(tx: ReadTx, round_ids: Collection[str]) -> dict[str, RoundRecord]:
    """Gives attempts by their ids."""
    return {round_.round_id: round_ for round_ in _records(tx, _GET_ALL, {"round_ids": list(round_ids)})}


def newest(tx: ReadTx, run_id: str, number: int | None = None) -> RoundRecord | None:
    """Gives the newest attempt of the run, or of one round of it."""
    query = _NEWEST if number is None else _NEWEST_OF_NUMBER
    return _record(tx.connection.execute(query, {"run_id": run_id, "number": number}).one_or_none())


def last_closed(tx: ReadTx, run_id: str) -> RoundRecord | None:
    """Gives the newest attempt of the run that has stopped collecting."""
    return _record(tx.connection.execute(_LAST_CLOSED, {"run_id": run_id}).one_or_none())


def count_attempts(tx: ReadTx, run_id: str, *, number: int, base_version: int) -> int:
    """Counts the attempts at a round that began from one version of the model."""
    query = sa.select(sa.func.count()).where(
        rounds.c.run_id == run_id, rounds.c.number == number, rounds.c.base_version == base_version
    )
    total: int = tx.connection.execute(query).scalar_one()
    return total


def page(tx: ReadTx, run_id: str, *, after: tuple[int, int], limit: int) -> list[RoundRecord]:
    """Lists attempts behind a given (number, attempt)."""
    query = (
        sa.select(rounds)
        .where(rounds.c.run_id == run_id, is_behind((rounds.c.number, rounds.c.attempt), after))
        .order_by(rounds.c.number, rounds.c.attempt)
        .limit(limit)
    )
    return _records(tx, query)


def unfinished(tx: ReadTx, run_id: str) -> list[RoundRecord]:
    """Lists the attempts of a run that collect or wait for their aggregate, oldest first."""
    return _records(tx, _UNFINISHED, {"run_id": run_id})


def open_evaluations(tx: ReadTx, run_id: str) -> list[RoundRecord]:
    """Lists the rounds of a run whose model clients are being asked to evaluate, oldest first."""
    return _records(tx, _OPEN_EVALUATIONS, {"run_id": run_id})


def sealed(tx: ReadTx) -> list[RoundRecord]:
    """Lists the rounds that wait for their aggregate, in every run that still goes on."""
    query = (
        sa.select(rounds)
        .join(runs, runs.c.run_id == rounds.c.run_id)
        .where(
            rounds.c.state == RoundState.AGGREGATING.value,
            runs.c.state.in_([RunState.RUNNING.value, RunState.PAUSED.value]),
        )
        .order_by(rounds.c.closed_at, rounds.c.number)
    )
    return _records(tx, query)


def collecting(tx: ReadTx) -> list[RoundRecord]:
    """Lists the rounds of running runs that have a deadline ahead, soonest first; a buffer has none."""
    query = (
        sa.select(rounds)
        .join(runs, runs.c.run_id == rounds.c.run_id)
        .where(
            rounds.c.state == RoundState.COLLECTING.value,
            rounds.c.kind == RoundKind.SYNCHRONOUS.value,
            runs.c.state == RunState.RUNNING.value,
        )
        .order_by(rounds.c.deadline_at)
    )
    return _records(tx, query)


def filling(tx: ReadTx, *, at_least: int) -> list[RoundRecord]:
    """Lists the rounds of running runs that collect and have so many updates already, the oldest first."""
    query = (
        sa.select(rounds)
        .join(runs, runs.c.run_id == rounds.c.run_id)
        .where(
            rounds.c.state == RoundState.COLLECTING.value,
            rounds.c.num_updates >= at_least,
            runs.c.state == RunState.RUNNING.value,
        )
        .order_by(rounds.c.opened_at)
    )
    return _records(tx, query)


def pending(tx: ReadTx, round_ids: Collection[str]) -> set[str]:
    """Gives those of some attempts that collect or wait for their aggregate, in a run that still goes on."""
    query = (
        sa.select(rounds.c.round_id)
        .join(runs, runs.c.run_id == rounds.c.run_id)
        .where(
            rounds.c.round_id.in_(round_ids),
            rounds.c.state.in_([RoundState.COLLECTING.value, RoundState.AGGREGATING.value]),
            runs.c.state.in_([RunState.RUNNING.value, RunState.PAUSED.value]),
        )
    )
    return set(tx.connection.execute(query).scalars())


def evaluating(tx: ReadTx) -> list[RoundRecord]:
    """Lists the rounds of running runs whose evaluation has a deadline ahead, soonest first."""
    query = (
        sa.select(rounds)
        .join(runs, runs.c.run_id == rounds.c.run_id)
        .where(rounds.c.evaluation_state == EvaluationState.COLLECTING.value, runs.c.state == RunState.RUNNING.value)
        .order_by(rounds.c.evaluation_deadline_at)
    )
    return _records(tx, query)


def count_task(tx: WriteTx, round_id: str, change: int) -> None:
    """Adjusts how many tasks of a round are out or answered."""
    change_one(tx, _COUNT_TASK, {"of_round": round_id, "change": change})


def await_updates(tx: WriteTx, round_id: str, *, num_awaited: int, expected_cohort: float) -> None:
    """Records that a round waits for those whose coins came up, and how many were expected."""
    change_one(
        tx,
        sa.update(rounds)
        .where(rounds.c.round_id == round_id)
        .values(num_awaited=num_awaited, expected_cohort=expected_cohort),
    )


def count_awaited(tx: WriteTx, round_id: str, change: int) -> None:
    """Adjusts how many updates a round waits for; nothing happens where its quorum is what counts."""
    tx.connection.execute(_COUNT_AWAITED, {"of_round": round_id, "change": change})


def count_updates(tx: WriteTx, round_id: str, *, num_updates: int, num_examples: int) -> RoundRecord:
    """Counts accepted updates and gives the attempt after them; raises StaleRowError if it no longer collects."""
    parameters = {"of_round": round_id, "more_updates": num_updates, "more_examples": num_examples}
    counted = _record(tx.connection.execute(_COUNT_UPDATES, parameters).one_or_none())
    if counted is None:
        raise StaleRowError(f"round {round_id} no longer collects")
    return counted


def drop_updates(tx: WriteTx, round_id: str, number: int) -> None:
    """Counts off what cannot be added up of an attempt; raises StaleRowError unless it is sealed."""
    change_one(
        tx,
        sa.update(rounds)
        .where(rounds.c.round_id == round_id, rounds.c.state == RoundState.AGGREGATING.value)
        .values(num_updates=rounds.c.num_updates - number, num_examples=rounds.c.num_examples - number),
    )


def close(tx: WriteTx, round_: RoundRecord, state: RoundState) -> None:
    """Ends the collecting: the round is sealed for aggregation or abandoned; raises StaleRowError."""
    change_one(
        tx,
        sa.update(rounds)
        .where(rounds.c.round_id == round_.round_id, rounds.c.state == round_.state.value)
        .values(state=state.value, closed_at=round_.closed_at or tx.now()),
    )


def complete(
    tx: WriteTx,
    round_id: str,
    *,
    result_version: int,
    metrics: Mapping[str, float],
    evaluation_deadline_at: datetime | None,
) -> bool:
    """Ends an aggregating round with its model; False if somebody else ended it first."""
    wanted = EvaluationState.NONE if evaluation_deadline_at is None else EvaluationState.COLLECTING
    return changes_one(
        tx,
        sa.update(rounds)
        .where(rounds.c.round_id == round_id, rounds.c.state == RoundState.AGGREGATING.value)
        .values(
            state=RoundState.COMPLETED.value,
            result_version=result_version,
            completed_at=tx.now(),
            metrics=dict(metrics),
            evaluation_state=wanted.value,
            evaluation_deadline_at=evaluation_deadline_at,
        ),
    )


def set_epsilon(tx: WriteTx, round_id: str, epsilon: float) -> None:
    """Records what a private run has cost with the model of a round."""
    change_one(tx, sa.update(rounds).where(rounds.c.round_id == round_id).values(epsilon=epsilon))


def complete_evaluation(
    tx: WriteTx,
    round_id: str,
    metrics: Mapping[str, float] | None,
    *,
    by_stratum: Mapping[str, StratumRecord] | None = None,
) -> bool:
    """Ends a round's evaluation; False if it had ended."""
    strata = None if by_stratum is None else {name: asdict(entry) for name, entry in by_stratum.items()}
    return changes_one(
        tx,
        sa.update(rounds)
        .where(rounds.c.round_id == round_id, rounds.c.evaluation_state == EvaluationState.COLLECTING.value)
        .values(
            evaluation_state=EvaluationState.COMPLETED.value,
            evaluation=None if metrics is None else dict(metrics),
            evaluation_by_stratum=strata,
        ),
    )


def postpone(
    tx: WriteTx, round_: RoundRecord, *, deadline_at: datetime, evaluation_deadline_at: datetime | None
) -> None:
    """Moves a round's deadlines, after a pause."""
    change_one(
        tx,
        sa.update(rounds)
        .where(rounds.c.round_id == round_.round_id)
        .values(deadline_at=deadline_at, evaluation_deadline_at=evaluation_deadline_at),
    )
