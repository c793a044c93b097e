"""What clients and the operator may look at of a round in helper mode, and the sums of which its model is made."""

from collections.abc import Sequence
from dataclasses import dataclass

from aggregator_service.domain.helper_mode.records import ContributionRecord, MaskRequestRecord, MaskSumRecord
from aggregator_service.domain.records import RoundRecord, RunRecord
from aggregator_service.domain.sessions.records import SessionRecord
from aggregator_service.flow.context import Flow
from aggregator_service.storage import contributions, mask_sums, rounds, runs, sessions
from aggregator_service.storage.transactions import ReadTx
from fl_protocol.helper_mode import MaskSumState
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.specs.secure_aggregation import HelperSecureAggregation


@dataclass(frozen=True, slots=True)
class SeenMaskSum:
    """A closed round with its contributions and what its helpers have done."""

    round: RoundRecord
    mask_sum: MaskSumRecord
    contributions: list[ContributionRecord]
    requests: list[MaskRequestRecord]


async def get_mask_sum(flow: Flow, run_id: str, *, number: int) -> SeenMaskSum:
    """Gives where the newest attempt at a round that has closed stands; raises `not-found`."""

    def body(tx: ReadTx) -> SeenMaskSum:
        if runs.get(tx, run_id) is None:
            raise ProblemError(ProblemType.NOT_FOUND, f"there is no run {run_id!r}; list them with GET /v1/runs")
        mask_sum = mask_sums.newest(tx, run_id, number)
        round_ = None if mask_sum is None else rounds.get(tx, mask_sum.round_id)
        if mask_sum is None or round_ is None:
            raise ProblemError(
                ProblemType.NOT_FOUND, f"round {number} of the run has asked no helpers: it has none, or has not closed"
            )
        return SeenMaskSum(
            round_, mask_sum, contributions.of_round(tx, round_.round_id), mask_sums.requests(tx, round_.round_id)
        )

    return await flow.transactions.read("get_mask_sum", body)


def sums_of_round(tx: ReadTx, run: RunRecord, round_id: str) -> Sequence[SessionRecord | MaskSumRecord] | None:
    """Gives the sums of a masked round, none of a plain one; None while its helpers have not made one."""
    if not isinstance(run.spec.secure_aggregation, HelperSecureAggregation):
        return sessions.done_of_round(tx, round_id)
    mask_sum = mask_sums.get(tx, round_id)
    return [mask_sum] if mask_sum is not None and mask_sum.state is MaskSumState.DONE else None
