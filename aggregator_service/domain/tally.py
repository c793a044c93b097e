"""Counts updates that arrived together as if each had come alone, in their order."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from aggregator_service.domain import quorum
from aggregator_service.domain.admission import Replay, check_not_stale, is_collecting, judge
from aggregator_service.domain.quorum import QuorumDecision
from aggregator_service.domain.records import RoundRecord, RunRecord, TaskRecord, UpdateRecord
from fl_protocol.rounds import RoundKind, RoundState


@dataclass(frozen=True, slots=True)
class Accepted:
    """An acknowledged update; `is_new` unless the same bytes were acknowledged before.

    `round` is the attempt it belongs to, as it was when this update had just been counted or was recognised.
    """

    update: UpdateRecord
    round: RoundRecord
    is_new: bool


class Tally:
    """What a batch of updates is judged by: rows as they were read, which every update that is counted moves on.

    An update of a synchronous run counts in the round of its task, one of a buffered run in the run's newest round.
    """

    def __init__(
        self,
        *,
        now: datetime,
        runs: Mapping[str, RunRecord],
        rounds: Mapping[str, RoundRecord],
        tasks: Mapping[str, TaskRecord],
        accepted: Mapping[str, UpdateRecord],
        buffers: Mapping[str, RoundRecord],
    ) -> None:
        """Takes the rows by their ids, updates accepted before by their tasks' ids, buffers by their runs' ids."""
        self._now = now
        self._runs = runs
        self._tasks = tasks
        self._buffers = {run_id: buffer.round_id for run_id, buffer in buffers.items()}
        self._rounds = dict(rounds) | {buffer.round_id: buffer for buffer in buffers.values()}
        self._accepted = dict(accepted)
        self._filled: set[str] = set()

    def take(self, update: UpdateRecord) -> Accepted | None:
        """Counts an update or recognises it; raises the ProblemError for which it is refused.

        Gives None if an update before it has filled the buffer: it belongs to the next one, which is not open yet.
        """
        task = self._tasks[update.task_id]
        round_ = self._rounds[self._buffers.get(task.run_id, task.round_id)]
        earlier = self._accepted.get(task.task_id)
        if earlier is None:
            if round_.round_id in self._filled:
                return None
            check_not_stale(task, self._runs[task.run_id], round_)
        verdict = judge(
            digest=update.digest,
            accepted_digest=None if earlier is None else earlier.digest,
            task=task,
            collecting=is_collecting(round_),
            round_=round_,
        )
        if isinstance(verdict, Replay) and earlier is not None:
            return Accepted(earlier, self._rounds[earlier.round_id], is_new=False)
        counted = replace(
            round_, num_updates=round_.num_updates + 1, num_examples=round_.num_examples + update.num_examples
        )
        staleness = round_.base_version - task.base_version
        accepted = replace(update, round_id=round_.round_id, staleness=staleness)
        self._accepted[task.task_id] = accepted
        self._rounds[round_.round_id] = self._closed_if_due(counted)
        return Accepted(accepted, counted, is_new=True)

    def _closed_if_due(self, round_: RoundRecord) -> RoundRecord:
        match quorum.decide(round_, quorum.deadline_clock(self._runs[round_.run_id], self._now)):
            case QuorumDecision.COLLECT:
                return round_
            case QuorumDecision.SEAL if round_.kind is RoundKind.BUFFERED:
                self._filled.add(round_.round_id)
                return replace(round_, state=RoundState.AGGREGATING)
            case QuorumDecision.SEAL:
                return replace(round_, state=RoundState.AGGREGATING)
            case QuorumDecision.ABANDON:
                return replace(round_, state=RoundState.ABANDONED)
