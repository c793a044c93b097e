"""Counts updates that arrived together as if each had come alone, in their order."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from aggregator_service.domain import quorum
from aggregator_service.domain.admission import Replay, is_collecting, judge
from aggregator_service.domain.quorum import QuorumDecision
from aggregator_service.domain.records import RoundRecord, RunRecord, TaskRecord, UpdateRecord
from fl_protocol.rounds import RoundState


@dataclass(frozen=True, slots=True)
class Accepted:
    """An acknowledged update; `is_new` unless the same bytes were acknowledged before.

    `round` is the attempt it belongs to, as it was when this update had just been counted or was recognised.
    """

    update: UpdateRecord
    round: RoundRecord
    is_new: bool


class Tally:
    """What a batch of updates is judged by: rows as they were read, which every update that is counted moves on."""

    def __init__(
        self,
        *,
        now: datetime,
        runs: Mapping[str, RunRecord],
        rounds: Mapping[str, RoundRecord],
        tasks: Mapping[str, TaskRecord],
        accepted: Mapping[str, UpdateRecord],
    ) -> None:
        """Takes the rows by their ids, and the updates accepted before by their tasks' ids."""
        self._now = now
        self._runs = runs
        self._tasks = tasks
        self._rounds = dict(rounds)
        self._accepted = dict(accepted)

    def take(self, update: UpdateRecord) -> Accepted:
        """Counts an update or recognises it; raises the ProblemError for which it is refused."""
        task = self._tasks[update.task_id]
        round_ = self._rounds[task.round_id]
        earlier = self._accepted.get(task.task_id)
        verdict = judge(
            digest=update.digest,
            accepted_digest=None if earlier is None else earlier.digest,
            task=task,
            collecting=is_collecting(round_),
            round_=round_,
        )
        if isinstance(verdict, Replay) and earlier is not None:
            return Accepted(earlier, round_, is_new=False)
        counted = replace(
            round_, num_updates=round_.num_updates + 1, num_examples=round_.num_examples + update.num_examples
        )
        self._accepted[task.task_id] = update
        self._rounds[task.round_id] = self._closed_if_due(counted)
        return Accepted(update, counted, is_new=True)

    def _closed_if_due(self, round_: RoundRecord) -> RoundRecord:
        match quorum.decide(round_, quorum.deadline_clock(self._runs[round_.run_id], self._now)):
            case QuorumDecision.COLLECT:
                return round_
            case QuorumDecision.SEAL:
                return replace(round_, state=RoundState.AGGREGATING)
            case QuorumDecision.ABANDON:
                return replace(round_, state=RoundState.ABANDONED)
