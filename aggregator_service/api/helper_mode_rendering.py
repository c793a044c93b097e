"""Renders what helper mode remembers as messages of the wire."""

from aggregator_service.flow.helper_mode.asking import Asked
from aggregator_service.flow.helper_mode.contributing import Contributed
from aggregator_service.flow.helper_mode.reading import SeenMaskSum
from fl_protocol.helper_mode import MaskAnswer, MaskContributor, MaskedRoundReport, MaskRequestEntry
from fl_protocol.tasks import Receipt


def render_contributed(taken: Contributed) -> Receipt:
    """Renders the receipt of a contribution."""
    contribution = taken.contribution
    return Receipt(
        update_id=contribution.update_id,
        task_id=contribution.task_id,
        run_id=contribution.run_id,
        round=taken.round.number,
        digest=contribution.digest,
        num_bytes=contribution.num_bytes,
        accepted_at=contribution.accepted_at,
    )


def render_request(asked: Asked) -> MaskRequestEntry:
    """Renders what waits for a helper."""
    return MaskRequestEntry(
        request_id=asked.request.request_id,
        run_id=asked.request.run_id,
        round=asked.round.number,
        attempt=asked.round.attempt,
        helper=asked.request.helper,
        state=asked.request.state,
        phase=asked.mask_sum.state,
        num_members=asked.mask_sum.num_members,
        num_bytes=asked.num_bytes,
        deadline_at=asked.mask_sum.deadline_at,
    )


def render_mask_sum(seen: SeenMaskSum) -> MaskedRoundReport:
    """Renders what a closed round came to."""
    mask_sum = seen.mask_sum
    return MaskedRoundReport(
        run_id=mask_sum.run_id,
        round=seen.round.number,
        attempt=seen.round.attempt,
        state=mask_sum.state,
        reason=mask_sum.reason,
        context=mask_sum.context.hex(),
        members_digest=mask_sum.members_digest.hex(),
        deadline_at=mask_sum.deadline_at,
        ended_at=mask_sum.ended_at,
        total_weight=mask_sum.total_weight,
        sum_digest=mask_sum.sum_digest,
        contributors=[
            MaskContributor(
                client_id=one.client_id, vector_digest=f"sha256:{one.vector_digest.hex()}", refused=one.refused
            )
            for one in seen.contributions
        ],
        helpers=[
            MaskAnswer(
                name=request.name,
                signing_key=request.signing_key.hex(),
                state=request.state,
                sum_digest=request.sum_digest,
                signature=None if request.signature is None else request.signature.hex(),
            )
            for request in seen.requests
        ],
    )
