"""Whether an update or a report that arrives is counted, replayed or refused."""

from dataclasses import dataclass

from aggregator_service.domain.records import AttendanceRecord, RoundRecord, RunRecord, TaskRecord, TaskState
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.rounds import RoundState
from fl_protocol.specs.rounds import BufferedRoundSpec
from fl_protocol.tasks import TaskKind


@dataclass(frozen=True, slots=True)
class Admit:
    """The update is new and is to be counted."""


@dataclass(frozen=True, slots=True)
class Replay:
    """The same bytes were accepted before; the answer is the first one's."""


def no_such_task(task_id: str) -> ProblemError:
    """Gives the problem of an answer to a task that does not exist."""
    return ProblemError(ProblemType.NOT_FOUND, f"there is no task {task_id!r}")


def check_not_excluded(attendance: AttendanceRecord | None) -> AttendanceRecord | None:
    """Gives what a run knows of a client; raises `forbidden` with the operator's reason if it is excluded."""
    if attendance is not None and attendance.excluded_at is not None:
        raise ProblemError(
            ProblemType.FORBIDDEN, f"the operator has excluded this client from the run: {attendance.exclusion_reason}"
        )
    return attendance


def check_owner(task: TaskRecord | None, *, task_id: str, client_id: str) -> TaskRecord:
    """Gives the task if it is this client's; raises `not-found` or `forbidden`."""
    if task is None:
        raise no_such_task(task_id)
    if task.client_id != client_id:
        raise ProblemError(ProblemType.FORBIDDEN, "the task belongs to another client")
    return task


def check_kind(task: TaskRecord, kind: TaskKind) -> None:
    """Raises `state-conflict` when an answer of one kind is sent for a task of the other."""
    if task.kind is not kind:
        right = "update" if task.kind is TaskKind.TRAIN else "evaluation"
        raise ProblemError(
            ProblemType.STATE_CONFLICT, f"the task is of kind {task.kind.value}; answer it at /v1/tasks/.../{right}"
        )


def round_closed(round_: RoundRecord) -> ProblemError:
    """Gives the problem of an answer that comes too late."""
    return ProblemError(
        ProblemType.ROUND_CLOSED,
        f"round {round_.number} (attempt {round_.attempt}) is {round_.state.value} and closed without this update; "
        "ask for a new task",
    )


def given_up(task: TaskRecord) -> ProblemError:
    """Gives the problem of an answer to a task that was taken back; one with a deadline may be by the server itself."""
    late = " or taken back (its deadline, a rollback, an exclusion)" if task.deadline_at is not None else ""
    return ProblemError(ProblemType.ROUND_CLOSED, f"task {task.task_id} was given up{late}; ask for a new task")


def check_not_stale(task: TaskRecord, run: RunRecord, round_: RoundRecord) -> None:
    """Raises `round-closed` for a task of a buffered run whose model is too old for the buffer that collects now."""
    spec, staleness = run.spec.round, round_.base_version - task.base_version
    if isinstance(spec, BufferedRoundSpec) and staleness > spec.max_staleness:
        raise ProblemError(
            ProblemType.ROUND_CLOSED,
            f"the update is {staleness} versions stale and round.max_staleness is {spec.max_staleness}: it comes from "
            f"version {task.base_version} and round {round_.number} is applied to version {round_.base_version}; "
            "ask for a new task",
        )


def judge(
    *, digest: str, accepted_digest: str | None, task: TaskRecord, collecting: bool, round_: RoundRecord
) -> Admit | Replay:
    """Decides on an answer by the digest of its bytes; raises `already-submitted` or `round-closed`."""
    if accepted_digest == digest:
        return Replay()
    if accepted_digest is not None:
        raise ProblemError(
            ProblemType.ALREADY_SUBMITTED,
            f"other bytes ({accepted_digest}) were accepted for this task; an accepted answer cannot be replaced",
        )
    if task.state is TaskState.GIVEN_UP:
        raise given_up(task)
    if not collecting:
        raise round_closed(round_)
    return Admit()


def is_collecting(round_: RoundRecord) -> bool:
    """Tells whether a round still takes updates."""
    return round_.state is RoundState.COLLECTING
