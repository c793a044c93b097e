"""What decides a round's result: rows read in one view of the database, and its updates as the fold reads them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from aggregator_service.domain import staleness, weighting
from aggregator_service.domain.fednova import normalised_weights
from aggregator_service.domain.helper_mode.records import MaskSumRecord
from aggregator_service.domain.records import ModelRecord, RoundRecord, RunRecord, UpdateRecord
from aggregator_service.domain.sessions.records import SessionRecord
from aggregator_service.domain.weighting import Weighed
from aggregator_service.flow.context import Flow
from aggregator_service.flow.contributions import SealedUpdate
from aggregator_service.flow.helper_mode.reading import sums_of_round
from aggregator_service.flow.read_ahead import ReadAhead
from aggregator_service.flow.windows import RangeReader
from aggregator_service.storage import ledger, models, noise_keys, noise_states, rounds, runs, updates
from aggregator_service.storage.blobs import CHUNK_NUM_BYTES
from aggregator_service.storage.transactions import ReadTx
from fl_protocol.rounds import RoundState
from fl_protocol.specs.algorithms import FedNovaAlgorithm
from fl_protocol.specs.privacy import CentralGaussianAdaptivePrivacy, CentralPrivacy
from fl_protocol.specs.rounds import BufferedRoundSpec
from fl_protocol.specs.secure_aggregation import Masking
from fl_protocol.specs.selection import fixed_denominator
from fl_protocol.specs.strategies import InverseStratumSizeWeighting, MeanStrategy
from fl_protocol.specs.training import local_learning_rate


@dataclass(frozen=True, slots=True)
class SealedRound:
    """Everything that decides a round's result."""

    run: RunRecord
    round: RoundRecord
    base: ModelRecord
    updates: list[UpdateRecord]
    weights: list[int]
    noise_key: bytes | None = field(default=None, repr=False)
    clipping_norm: float | None = None
    noise_state_id: str | None = None
    sums: Sequence[SessionRecord | MaskSumRecord] = ()

    @property
    def masked(self) -> Masking | None:
        """Says how the round's updates were masked; None where they were not."""
        chosen = self.run.spec.secure_aggregation
        return chosen if isinstance(chosen, Masking) else None


class AggregationStoppedError(Exception):
    """The server stops; the round is aggregated again after the next start."""


def load_sealed(tx: ReadTx, round_id: str) -> SealedRound | None:
    """Reads a sealed round; None if it no longer waits for its aggregate, or still for its helpers or a buffer."""
    round_ = rounds.get(tx, round_id)
    if round_ is None or round_.state is not RoundState.AGGREGATING:
        return None
    run, base = runs.get(tx, round_.run_id), models.get(tx, round_.run_id, round_.base_version)
    if run is not None and (run.latest_version or 0) < round_.base_version:
        return None
    if run is None or base is None:
        raise LookupError(f"round {round_id} lacks its run or base model")
    accepted = updates.of_round(tx, round_id)
    weights, key = effective_weights(tx, run, accepted), noise_keys.get(tx, round_id)
    state_id = noise_states.get(tx, run.run_id)
    summed = sums_of_round(tx, run, round_id)
    if summed is None:
        return None
    return SealedRound(run, round_, base, accepted, weights, key, _adapted_norm(tx, run), state_id, summed)


def load_collecting(tx: ReadTx, round_id: str) -> SealedRound | None:
    """Reads a round as if it were sealed with the updates that it has; None if it does not collect any more."""
    round_ = rounds.get(tx, round_id)
    if round_ is None or round_.state is not RoundState.COLLECTING:
        return None
    run = runs.get(tx, round_.run_id)
    # A buffer may collect before the model that it moves on from is there; all versions have the same tensors.
    base = None if run is None else models.get(tx, run.run_id, min(round_.base_version, run.latest_version or 0))
    if run is None or base is None:
        raise LookupError(f"round {round_id} lacks its run or a model")
    accepted = updates.of_round(tx, round_id)
    return SealedRound(run, round_, base, accepted, effective_weights(tx, run, accepted), None, _adapted_norm(tx, run))


def _adapted_norm(tx: ReadTx, run: RunRecord) -> float | None:
    """Gives the clipping norm that the last release led to; None before the first, or where it does not change."""
    if not isinstance(run.spec.privacy, CentralGaussianAdaptivePrivacy):
        return None
    spent = ledger.last_spent(tx, run.run_id)
    return None if spent is None or spent.noise is None else spent.noise.next_clipping_norm


def noised_bound(sealed: SealedRound) -> float | None:
    """Gives the norm that the updates of a round are clipped to before its sum gets noise; None where it gets none."""
    privacy = sealed.run.spec.privacy
    if isinstance(privacy, CentralGaussianAdaptivePrivacy):
        return sealed.clipping_norm or privacy.initial_clipping_norm
    return privacy.clipping_norm if isinstance(privacy, CentralPrivacy) else None


def effective_weights(tx: ReadTx, run: RunRecord, accepted: Sequence[UpdateRecord]) -> list[int]:
    """Gives what each update of a sealed round weighs, in their order."""
    strategy, strata = run.spec.strategy, {}
    weighs = strategy.weighting if isinstance(strategy, MeanStrategy) else None
    if accepted and isinstance(weighs, InverseStratumSizeWeighting):
        strata = updates.attributes_of_round(tx, accepted[0].round_id, weighs.attribute)
    return weighting.effective_weights(
        [Weighed(update.num_examples, strata.get(update.update_id)) for update in accepted], strategy
    )


def sealed_updates(flow: Flow, sealed: SealedRound, *, num_read: int | None = None) -> list[SealedUpdate]:
    """Gives the updates of a round as the fold reads them; `num_read` says how many it will read, if not all.

    Those of one chunk are then kept whole from the first look at their header; of longer ones no more than otherwise.
    """
    num_updates = len(sealed.updates)
    return [
        SealedUpdate(
            update_id=update.update_id,
            digest=update.digest,
            weight=weight,
            max_abs=update.max_abs,
            read=ReadAhead(
                reader(flow, update.blob_id),
                num_bytes=update.num_bytes,
                num_readers=num_read if num_read and update.num_bytes <= CHUNK_NUM_BYTES else num_updates,
            ),
            skipped=update.skipped,
        )
        for update, weight in zip(sealed.updates, sealed.weights, strict=True)
    ]


def factored(members: Sequence[SealedUpdate], sealed: SealedRound) -> tuple[Sequence[SealedUpdate], float | None]:
    """Gives the updates with the factors of FedNova or of staleness, and the divisor of a sum that has its own."""
    spec = sealed.run.spec
    if isinstance(spec.round, BufferedRoundSpec):
        # Any other strategy chooses its own weights, and the spec lets it have no discounts.
        if not isinstance(spec.strategy, MeanStrategy):
            return members, None
        aged = zip(sealed.weights, (update.staleness for update in sealed.updates), strict=True)
        return _with_factors(members, staleness.discounted(list(aged), spec.round.staleness)), sum(sealed.weights)
    if not isinstance(spec.algorithm, FedNovaAlgorithm):
        return members, fixed_denominator(spec.selection)
    pairs = zip(sealed.updates, sealed.weights, strict=True)
    told = [(weight, update.local_steps or 1) for update, weight in pairs]
    rate = local_learning_rate(spec.training, sealed.round.number)
    weights = normalised_weights(told, shrinkage=rate * spec.training.proximal_mu)
    return _with_factors(members, weights.factors), weights.divisor


def _with_factors(members: Sequence[SealedUpdate], factors: Sequence[float]) -> Sequence[SealedUpdate]:
    return [replace(one, delta_weight=factor) for one, factor in zip(members, factors, strict=True)]


def reader(flow: Flow, blob_id: str) -> RangeReader:
    """Gives what reads a blob from a worker thread; it raises AggregationStoppedError once the server drains."""

    def read(begin: int, end: int) -> bytes:
        if flow.wakeups.closed:
            raise AggregationStoppedError
        return flow.blobs.read_blocking(blob_id, begin, end)

    return read
