"""Updates that are judged together fare as if each had come alone, in the same order."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aggregator_service.domain import quorum
from aggregator_service.domain.quorum import QuorumDecision
from aggregator_service.domain.records import RoundRecord, RunRecord, TaskRecord, TaskState, UpdateRecord
from aggregator_service.domain.tally import Accepted, Tally
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.rounds import RoundKind, RoundState
from fl_protocol.runs import RunSpec
from fl_protocol.specs.rounds import BufferedRoundSpec
from tests.support.records import later, round_record, run_record, task_record, update_record

NOW = later(30)
ROUNDS = ("round_1", "round_2")
CLOSED = {QuorumDecision.SEAL: RoundState.AGGREGATING, QuorumDecision.ABANDON: RoundState.ABANDONED}


class Rows:
    """The database's rows; `count` changes them as the transaction that counts an update does."""

    def __init__(self, runs: list[RunRecord], rounds: list[RoundRecord], tasks: list[TaskRecord]) -> None:
        self.runs = {run.run_id: run for run in runs}
        self.rounds = {round_.round_id: round_ for round_ in rounds}
        self.tasks = {task.task_id: task for task in tasks}
        self.updates: dict[str, UpdateRecord] = {}
        self.buffers: dict[str, RoundRecord] = {}

    def tally(self) -> Tally:
        return Tally(
            now=NOW, runs=self.runs, rounds=self.rounds, tasks=self.tasks, accepted=self.updates, buffers=self.buffers
        )

    def count(self, update: UpdateRecord) -> None:
        round_ = self.rounds[update.round_id]
        round_ = replace(
            round_, num_updates=round_.num_updates + 1, num_examples=round_.num_examples + update.num_examples
        )
        decision = quorum.decide(round_, quorum.deadline_clock(self.runs[round_.run_id], NOW))
        self.rounds[round_.round_id] = replace(round_, state=CLOSED.get(decision, round_.state))
        self.tasks[update.task_id] = replace(self.tasks[update.task_id], state=TaskState.DONE)
        self.updates[update.task_id] = update


def outcome(tally: Tally, update: UpdateRecord) -> Accepted | tuple[ProblemType, str]:
    try:
        return tally.take(update)
    except ProblemError as refusal:
        return refusal.problem_type, refusal.detail


def one_at_a_time(rows: Rows, updates: list[UpdateRecord]) -> list[Accepted | tuple[ProblemType, str]]:
    """Judges each update by rows on which those before it were counted."""
    outcomes = []
    for update in updates:
        found = outcome(rows.tally(), update)
        if isinstance(found, Accepted) and found.is_new:
            rows.count(update)
        outcomes.append(found)
    return outcomes


def round_of(task: int) -> str:
    return ROUNDS[task % 2]


def arrivals(sent: list[tuple[int, str, int]]) -> list[UpdateRecord]:
    return [
        update_record(
            f"update_{number}",
            task_id=f"task_{task}",
            run_id=f"run_{task % 2 + 1}",
            round_id=round_of(task),
            client_id=f"client_{task}",
            digest=digest,
            num_examples=num_examples,
        )
        for number, (task, digest, num_examples) in enumerate(sent)
    ]


@st.composite
def rounds(draw: st.DrawFn, round_id: str, run_id: str) -> RoundRecord:
    goal = draw(st.integers(1, 5))
    return round_record(
        round_id,
        run_id=run_id,
        quorum=goal,
        min_updates=draw(st.integers(1, goal)),
        num_updates=draw(st.integers(0, goal - 1)),
        deadline_at=later(draw(st.sampled_from([10, 60]))),
        state=draw(st.sampled_from([RoundState.COLLECTING] * 4 + [RoundState.AGGREGATING])),
    )


@st.composite
def ground(draw: st.DrawFn) -> Rows:
    """Two runs with a round each and eight tasks, one of which may have been answered or given up before."""
    states = draw(st.lists(st.sampled_from([TaskState.OPEN] * 4 + [TaskState.GIVEN_UP]), min_size=8, max_size=8))
    tasks = [
        task_record(f"task_{number}", run_id=f"run_{number % 2 + 1}", round_id=round_of(number), state=state)
        for number, state in enumerate(states)
    ]
    paused = draw(st.sampled_from([None, later(5)]))
    rows = Rows(
        [run_record("run_1", paused_at=paused), run_record("run_2")],
        [draw(rounds("round_1", "run_1")), draw(rounds("round_2", "run_2"))],
        tasks,
    )
    for update in arrivals(draw(st.lists(ARRIVAL, max_size=1))):
        rows.updates[update.task_id] = update
        rows.tasks[update.task_id] = replace(rows.tasks[update.task_id], state=TaskState.DONE)
    return rows


ARRIVAL = st.tuples(st.integers(0, 7), st.sampled_from("ab"), st.integers(1, 9))


@given(ground(), st.lists(ARRIVAL, max_size=20))
def test_a_batch_is_judged_as_if_each_update_had_come_alone(rows, sent):
    tally, updates = rows.tally(), arrivals(sent)
    together = [outcome(tally, update) for update in updates]
    assert together == one_at_a_time(rows, updates)


def open_round(goal: int) -> Rows:
    return Rows(
        [run_record()], [round_record(quorum=goal)], [task_record(f"task_{number}") for number in range(0, 40, 2)]
    )


@given(st.integers(1, 6), st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab")), max_size=30))
@example(2, [(0, "a"), (0, "a"), (0, "b"), (1, "a"), (2, "a"), (1, "a")])
def test_no_more_than_the_quorum_is_counted_and_each_task_once(goal, sent):
    tally = open_round(goal).tally()
    outcomes = [outcome(tally, update) for update in arrivals([(2 * task, digest, 1) for task, digest in sent])]
    new = [found for found in outcomes if isinstance(found, Accepted) and found.is_new]
    assert [found.round.num_updates for found in new] == list(range(1, len(new) + 1))
    first = {found.update.task_id: found.update for found in new}
    assert len(new) == len(first) == min(goal, len({task for task, _ in sent}))
    for update, found in zip(arrivals([(2 * task, digest, 1) for task, digest in sent]), outcomes, strict=True):
        accepted = first.get(update.task_id)
        if accepted is None:
            assert found[0] is ProblemType.ROUND_CLOSED
        elif accepted.digest == update.digest:
            assert found.update == accepted
        else:
            assert found[0] is ProblemType.ALREADY_SUBMITTED


def test_the_update_that_comes_after_the_last_one_reads_that_the_round_is_sealed():
    tally = open_round(1).tally()
    first, second = (outcome(tally, update) for update in arrivals([(0, "a", 1), (2, "a", 1)]))
    assert first.is_new
    assert second[0] is ProblemType.ROUND_CLOSED
    assert "aggregating" in second[1]


@pytest.mark.parametrize(("paused_at", "second"), [(None, ProblemType.ROUND_CLOSED), (later(5), "new")])
def test_an_update_after_the_deadline_closes_its_round_unless_the_run_is_paused(paused_at, second):
    rows = open_round(5)
    rows.runs["run_1"] = run_record(paused_at=paused_at)
    rows.rounds["round_1"] = round_record(quorum=5, min_updates=1, deadline_at=later(10))
    tally = rows.tally()
    outcomes = [outcome(tally, update) for update in arrivals([(0, "a", 1), (2, "a", 1)])]
    assert outcomes[0].is_new
    assert ("new" if isinstance(outcomes[1], Accepted) else outcomes[1][0]) == second


def open_buffer(size, *, max_staleness=3, base_version=5):
    """A buffered run whose clients began at whatever version their task's number says."""
    spec = RunSpec(round=BufferedRoundSpec(buffer_size=size, max_staleness=max_staleness))
    numbers = range(0, 2 * base_version + 2, 2)
    rows = Rows(
        [run_record(spec=spec)],
        [round_record("round_1", state=RoundState.COMPLETED)],
        [task_record(f"task_{number}", base_version=number // 2) for number in numbers],
    )
    rows.buffers["run_1"] = round_record(
        "round_9", kind=RoundKind.BUFFERED, quorum=size, base_version=base_version, deadline_at=later(-60)
    )
    return rows


def test_an_update_of_a_buffered_run_counts_where_it_arrives_and_knows_its_age():
    tally = open_buffer(4).tally()
    found = [outcome(tally, update) for update in arrivals([(10, "a", 1), (4, "b", 1), (10, "a", 1)])]
    assert [(one.update.round_id, one.update.staleness, one.is_new) for one in found] == [
        ("round_9", 0, True),
        ("round_9", 3, True),
        ("round_9", 0, False),
    ]
    assert [one.round.num_updates for one in found[:2]] == [1, 2]


def test_an_update_that_is_too_old_is_refused_with_its_age_and_the_bound():
    problem, detail = outcome(open_buffer(4).tally(), *arrivals([(2, "a", 1)]))
    assert problem is ProblemType.ROUND_CLOSED
    assert "4 versions stale and round.max_staleness is 3: it comes from version 1" in detail


def test_what_comes_after_the_update_that_fills_a_buffer_is_left_for_the_next_one():
    tally = open_buffer(2).tally()
    sent = arrivals([(10, "a", 1), (8, "a", 1), (6, "a", 1), (8, "a", 1), (8, "b", 1)])
    first, second, third, replay, conflict = (outcome(tally, update) for update in sent)
    assert (first.is_new, second.is_new, replay.is_new) == (True, True, False)
    assert third is None
    assert conflict[0] is ProblemType.ALREADY_SUBMITTED
