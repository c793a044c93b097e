"""Turns a sealed round into a candidate model: a function of the sealed set alone, run on a worker thread."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

import structlog

from aggregator_service import failpoints
from aggregator_service.domain import staleness, weighting
from aggregator_service.domain.fednova import normalised_weights
from aggregator_service.domain.helper_mode.records import MaskSumRecord
from aggregator_service.domain.privacy import blt
from aggregator_service.domain.privacy.blt import Participation
from aggregator_service.domain.privacy.ledger import ReleasedNoise
from aggregator_service.domain.privacy.noised_sum import (
    Adaptation,
    Grid,
    NoisedSum,
    correlated_sum,
    gaussian_sum,
    masked_grid,
)
from aggregator_service.domain.records import ModelRecord, RoundRecord, RunRecord, UpdateRecord
from aggregator_service.domain.sessions.records import SessionRecord
from aggregator_service.domain.strategies.mean import weighted_metrics
from aggregator_service.domain.weighting import Weighed
from aggregator_service.flow.context import Flow
from aggregator_service.flow.controls import fold_controls
from aggregator_service.flow.correlation import Correlation
from aggregator_service.flow.fold import RangeReader, SealedUpdate, aggregate, aggregate_masked
from aggregator_service.flow.helper_mode.reading import sums_of_round
from aggregator_service.flow.masked_sums import MaskedRound, MaskedSum
from aggregator_service.flow.read_ahead import ReadAhead
from aggregator_service.flow.windows import read_header
from aggregator_service.storage import (
    ledger,
    models,
    noise_keys,
    noise_states,
    rounds,
    runs,
    updates,
)
from aggregator_service.storage.blobs import BlobUpload
from aggregator_service.storage.transactions import ReadTx
from fl_protocol.masked_vectors import coordinates_of, ring_of
from fl_protocol.masking.ring import Ring
from fl_protocol.privacy.accounting import count_stddev, value_noise_multiplier
from fl_protocol.rounds import RoundState
from fl_protocol.runs import RunSpec
from fl_protocol.specs.algorithms import FedNovaAlgorithm, ScaffoldAlgorithm
from fl_protocol.specs.privacy import (
    CentralBltPrivacy,
    CentralGaussianAdaptivePrivacy,
    CentralGaussianPrivacy,
    CentralPrivacy,
    num_participations,
)
from fl_protocol.specs.rounds import BufferedRoundSpec
from fl_protocol.specs.secure_aggregation import Masking, clipping_norm
from fl_protocol.specs.selection import fixed_denominator
from fl_protocol.specs.strategies import InverseStratumSizeWeighting, MeanStrategy
from fl_protocol.specs.training import local_learning_rate
from fl_protocol.tensors import Header
from fl_protocol.updates import update_layout

_log = structlog.get_logger()


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


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that was computed and stored but is not published; what goes with it may be empty."""

    model: BlobUpload
    optimizer: BlobUpload
    control: BlobUpload
    noise_state: BlobUpload
    digest: str
    control_digest: str
    metrics: Mapping[str, float]
    noise: ReleasedNoise | None = None

    @property
    def uploads(self) -> tuple[BlobUpload, ...]:
        return self.model, self.optimizer, self.control, self.noise_state


class AggregationStoppedError(Exception):
    """The server stops; the round is aggregated again after the next start."""


class _HashedUpload:
    """Stores bytes as they come and keeps their digest."""

    def __init__(self, flow: Flow) -> None:
        self.upload = BlobUpload(flow.new_id("blob"))
        self.hash = hashlib.sha256()
        self._flow = flow

    @property
    def digest(self) -> str:
        return f"sha256:{self.hash.hexdigest()}"

    def write(self, data: bytes) -> None:
        self.hash.update(data)
        self.upload.append(data)
        if self.upload.is_due:
            self._flow.blobs.flush_blocking(self.upload)


@dataclass(frozen=True, slots=True)
class _Files:
    """What a round writes."""

    model: _HashedUpload
    optimizer: _HashedUpload
    control: _HashedUpload
    noise: _HashedUpload


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


def _adapted_norm(tx: ReadTx, run: RunRecord) -> float | None:
    """Gives the clipping norm that the last release led to; None before the first, or where it does not change."""
    if not isinstance(run.spec.privacy, CentralGaussianAdaptivePrivacy):
        return None
    spent = ledger.last_spent(tx, run.run_id)
    return None if spent is None or spent.noise is None else spent.noise.next_clipping_norm


def effective_weights(tx: ReadTx, run: RunRecord, accepted: Sequence[UpdateRecord]) -> list[int]:
    """Gives what each update of a sealed round weighs, in their order."""
    strategy, strata = run.spec.strategy, {}
    weighs = strategy.weighting if isinstance(strategy, MeanStrategy) else None
    if accepted and isinstance(weighs, InverseStratumSizeWeighting):
        strata = updates.attributes_of_round(tx, accepted[0].round_id, weighs.attribute)
    return weighting.effective_weights(
        [Weighed(update.num_examples, strata.get(update.update_id)) for update in accepted], strategy
    )


def compute(flow: Flow, sealed: SealedRound) -> Candidate:
    """Computes a round's model tile by tile.

    Raises BlobCorruptError, a typed error naming the tensor, or AggregationStoppedError while the server drains.
    """
    failpoints.reach("aggregation.started")
    files = _Files(*(_HashedUpload(flow) for _ in range(4)))
    try:
        released, metrics = (_fold if sealed.masked is None else _fold_masked)(flow, sealed, files)
    except BaseException:
        for file in (files.model, files.optimizer, files.control, files.noise):
            flow.blobs.discard_blocking(file.upload)
        raise
    failpoints.reach("aggregation.model_written")
    return Candidate(
        model=files.model.upload,
        optimizer=files.optimizer.upload,
        control=files.control.upload,
        noise_state=files.noise.upload,
        digest=files.model.digest,
        control_digest=files.control.digest,
        metrics=metrics,
        noise=released,
    )


def _fold(flow: Flow, sealed: SealedRound, files: _Files) -> tuple[ReleasedNoise | None, Mapping[str, float]]:
    spec, model = sealed.run.spec, sealed.base
    base = ReadAhead(_reader(flow, model.blob_id), num_bytes=model.num_bytes)
    updates = _sealed_updates(flow, sealed)
    factored, divisor = _factored(updates, sealed)
    model_header = read_header(base)
    layout = update_layout(model_header, spec)
    noised = _noised_sum(flow, sealed, model_header, layout=layout, write_state=files.noise.write)

    def write_model(data: bytes) -> None:
        files.model.write(data)
        failpoints.reach("aggregation.halfway")

    num_unclipped, num_judged = aggregate(
        base,
        factored,
        spec=spec,
        round_number=sealed.round.number,
        optimizer_state=None if model.optimizer_blob_id is None else _reader(flow, model.optimizer_blob_id),
        write_model=write_model,
        write_state=files.optimizer.write,
        holds=layout,
        divisor=divisor,
        noised=noised,
    )
    if isinstance(spec.algorithm, ScaffoldAlgorithm):
        previous = None
        if model.control_blob_id is not None and model.control_num_bytes is not None:
            previous = ReadAhead(_reader(flow, model.control_blob_id), num_bytes=model.control_num_bytes)
        fold_controls(
            previous,
            updates,
            layout=layout,
            num_clients=spec.algorithm.num_clients,
            write=files.control.write,
            encoding=spec.encoding,
        )
    metrics = weighted_metrics([(update.num_examples, update.metrics) for update in sealed.updates])
    if noised is None:
        return None, metrics
    if num_judged < len(updates):
        # For the operator alone, who sees the updates anyway: a metric or an answer would tell others.
        _log.warning("updates_counted_as_zero", round_id=sealed.round.round_id, count=len(updates) - num_judged)
    released = noised.released(num_unclipped=num_unclipped, num_judged=num_judged, num_updates=len(updates))
    return released, metrics


def _fold_masked(flow: Flow, sealed: SealedRound, files: _Files) -> tuple[ReleasedNoise | None, Mapping[str, float]]:
    spec, model, ring = sealed.run.spec, sealed.base, ring_of(sealed.run.spec)
    base = ReadAhead(_reader(flow, model.blob_id), num_bytes=model.num_bytes)
    masked = _masked_round(flow, sealed, ring)
    header = read_header(base)
    layout = coordinates_of(header, spec)
    noised = _noised_sum(flow, sealed, header, layout=layout, write_state=files.noise.write)

    def write_model(data: bytes) -> None:
        files.model.write(data)
        failpoints.reach("aggregation.halfway")

    aggregate_masked(
        base,
        masked,
        spec=spec,
        round_number=sealed.round.number,
        optimizer_state=None if model.optimizer_blob_id is None else _reader(flow, model.optimizer_blob_id),
        write_model=write_model,
        write_state=files.optimizer.write,
        noised=noised,
    )
    num_updates = len(sealed.updates)
    if noised is None:
        return None, masked.metrics
    released = noised.released(num_unclipped=num_updates, num_judged=num_updates, num_updates=num_updates)
    return released, masked.metrics


def _masked_round(flow: Flow, sealed: SealedRound, ring: Ring) -> MaskedRound:
    sums = []
    for one in sealed.sums:
        if one.sum_blob_id is None or one.sum_digest is None or one.total_weight is None or one.totals is None:
            raise LookupError(f"a masked sum of round {one.round_id} is done and is not there")
        extras = dict(zip((extra.name for extra in ring.extras), one.totals, strict=True))
        sums.append(MaskedSum(one.sum_digest, one.total_weight, extras, _reader(flow, one.sum_blob_id)))
    divisor = fixed_denominator(sealed.run.spec.selection) or sum(one.total_weight for one in sums)
    return MaskedRound(sums, ring.step, divisor)


def _noised_sum(
    flow: Flow, sealed: SealedRound, model: Header, *, layout: Header, write_state: Callable[[bytes], None]
) -> NoisedSum | None:
    """Gives the noise of a private round, whose key was drawn when it was sealed."""
    spec, privacy, key = sealed.run.spec, sealed.run.spec.privacy, sealed.noise_key
    if not isinstance(privacy, CentralPrivacy):
        return None
    if key is None or privacy.noise_multiplier is None:
        raise LookupError(f"round {sealed.round.round_id} lacks the key of its noise or how much there is to be")
    num_elements = sum(one.num_elements for one in layout.tensors if one.is_float)
    grid = _grid(sealed, num_elements)
    match privacy:
        case CentralGaussianPrivacy():
            return gaussian_sum(
                privacy.noise_multiplier,
                clipping_norm=privacy.clipping_norm,
                num_elements=num_elements,
                key=key,
                grid=grid,
            )
        case CentralGaussianAdaptivePrivacy():
            quorum, place = sealed.round.quorum, sum(one.num_elements for one in model.tensors)
            return gaussian_sum(
                value_noise_multiplier(privacy, quorum=quorum),
                clipping_norm=sealed.clipping_norm or privacy.initial_clipping_norm,
                num_elements=num_elements,
                key=key,
                adaptation=Adaptation(privacy, count_stddev(privacy, quorum=quorum), place),
            )
        case CentralBltPrivacy():
            chosen = blt.choose(_participation(spec))
            before = None if sealed.noise_state_id is None else _reader(flow, sealed.noise_state_id)
            return correlated_sum(
                privacy.noise_multiplier,
                clipping_norm=privacy.clipping_norm,
                num_elements=num_elements,
                key=key,
                sensitivity=chosen.sensitivity,
                correlate=Correlation(chosen.blt, read=before, write=write_state),
                grid=grid,
            )
        case _:
            assert_never(privacy)


def _grid(sealed: SealedRound, num_elements: int) -> Grid | None:
    """Gives the grid of masked updates; None where they are plain, and a clipping norm alone decides it."""
    if sealed.masked is None:
        return None
    spec = sealed.run.spec
    return masked_grid(ring_of(spec).step, clipping_norm=clipping_norm(spec), num_elements=num_elements)


def _participation(spec: RunSpec) -> Participation:
    # Who was in round 5 may be in round 8 with a separation of 2: the matrix counts the step, not the rounds between.
    return Participation(
        num_rounds=spec.num_rounds,
        separation=spec.selection.min_separation + 1,
        max_participations=num_participations(spec),
    )


def _factored(updates: Sequence[SealedUpdate], sealed: SealedRound) -> tuple[Sequence[SealedUpdate], float | None]:
    """Gives the updates with the factors of FedNova or of staleness, and the divisor of a sum that has its own."""
    spec = sealed.run.spec
    if isinstance(spec.round, BufferedRoundSpec):
        # Any other strategy chooses its own weights, and the spec lets it have no discounts.
        if not isinstance(spec.strategy, MeanStrategy):
            return updates, None
        aged = zip(sealed.weights, (update.staleness for update in sealed.updates), strict=True)
        return _with_factors(updates, staleness.discounted(list(aged), spec.round.staleness)), sum(sealed.weights)
    if not isinstance(spec.algorithm, FedNovaAlgorithm):
        return updates, fixed_denominator(spec.selection)
    pairs = zip(sealed.updates, sealed.weights, strict=True)
    told = [(weight, update.local_steps or 1) for update, weight in pairs]
    rate = local_learning_rate(spec.training, sealed.round.number)
    weights = normalised_weights(told, shrinkage=rate * spec.training.proximal_mu)
    return _with_factors(updates, weights.factors), weights.divisor


def _with_factors(updates: Sequence[SealedUpdate], factors: Sequence[float]) -> Sequence[SealedUpdate]:
    return [replace(one, delta_weight=factor) for one, factor in zip(updates, factors, strict=True)]


def _sealed_updates(flow: Flow, sealed: SealedRound) -> list[SealedUpdate]:
    return [
        SealedUpdate(
            update_id=update.update_id,
            digest=update.digest,
            weight=weight,
            max_abs=update.max_abs,
            read=ReadAhead(_reader(flow, update.blob_id), num_bytes=update.num_bytes, num_readers=len(sealed.updates)),
        )
        for update, weight in zip(sealed.updates, sealed.weights, strict=True)
    ]


def _reader(flow: Flow, blob_id: str) -> RangeReader:
    def read(begin: int, end: int) -> bytes:
        if flow.wakeups.closed:
            raise AggregationStoppedError
        return flow.blobs.read_blocking(blob_id, begin, end)

    return read
