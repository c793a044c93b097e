"""Turns a sealed round into a candidate model: a function of the sealed set alone, run on a worker thread."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

import structlog

from aggregator_service import failpoints
from aggregator_service.allocator import give_back_free_pages
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
from aggregator_service.domain.strategies.mean import weighted_metrics
from aggregator_service.flow.begun_sums import BegunSum
from aggregator_service.flow.context import Flow
from aggregator_service.flow.controls import fold_controls
from aggregator_service.flow.correlation import Correlation
from aggregator_service.flow.fold import aggregate, aggregate_masked
from aggregator_service.flow.hashed_uploads import HashedUpload
from aggregator_service.flow.masked_sums import MaskedRound, MaskedSum
from aggregator_service.flow.read_ahead import ReadAhead
from aggregator_service.flow.sealed_rounds import SealedRound, factored, reader, sealed_updates
from aggregator_service.flow.windows import read_header
from aggregator_service.storage.blobs import BlobUpload
from fl_protocol.masked_vectors import coordinates_of, ring_of
from fl_protocol.masking.ring import Ring
from fl_protocol.privacy.accounting import count_stddev, value_noise_multiplier
from fl_protocol.runs import RunSpec
from fl_protocol.specs.algorithms import ScaffoldAlgorithm
from fl_protocol.specs.privacy import (
    CentralBltPrivacy,
    CentralGaussianAdaptivePrivacy,
    CentralGaussianPrivacy,
    CentralPrivacy,
    num_participations,
)
from fl_protocol.specs.secure_aggregation import clipping_norm
from fl_protocol.specs.selection import fixed_denominator
from fl_protocol.tensors import Header
from fl_protocol.updates import update_layout

_log = structlog.get_logger()


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


@dataclass(frozen=True, slots=True)
class _Files:
    """What a round writes."""

    model: HashedUpload
    optimizer: HashedUpload
    control: HashedUpload
    noise: HashedUpload

    @property
    def all(self) -> tuple[HashedUpload, ...]:
        return self.model, self.optimizer, self.control, self.noise


def compute(flow: Flow, sealed: SealedRound, *, begun: BegunSum | None = None) -> Candidate:
    """Computes a round's model tile by tile; a sum that was `begun` while it collected saves reading those updates.

    Raises BlobCorruptError, a typed error naming the tensor, or AggregationStoppedError while the server drains.
    """
    failpoints.reach("aggregation.started")
    files = _Files(*(HashedUpload(flow) for _ in range(4)))
    try:
        if sealed.masked is None:
            released, metrics = _fold(flow, sealed, files, begun=begun)
        else:
            released, metrics = _fold_masked(flow, sealed, files)
        for file in files.all:
            file.finish()
    except BaseException:
        for file in files.all:
            file.close()
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


def _fold(
    flow: Flow, sealed: SealedRound, files: _Files, *, begun: BegunSum | None
) -> tuple[ReleasedNoise | None, Mapping[str, float]]:
    spec, model = sealed.run.spec, sealed.base
    base = ReadAhead(reader(flow, model.blob_id), num_bytes=model.num_bytes)
    updates = sealed_updates(flow, sealed)
    weighted, divisor = factored(updates, sealed)
    model_header = read_header(base)
    layout = update_layout(model_header, spec)
    noised = _noised_sum(flow, sealed, model_header, layout=layout, write_state=files.noise.write)

    def write_model(data: bytes) -> None:
        files.model.write(data)
        failpoints.reach("aggregation.halfway")

    num_unclipped, num_judged = aggregate(
        base,
        weighted,
        spec=spec,
        round_number=sealed.round.number,
        optimizer_state=None if model.optimizer_blob_id is None else reader(flow, model.optimizer_blob_id),
        write_model=write_model,
        write_state=files.optimizer.write,
        holds=layout,
        divisor=divisor,
        noised=noised,
        begun=begun,
    )
    if isinstance(spec.algorithm, ScaffoldAlgorithm):
        previous = None
        if model.control_blob_id is not None and model.control_num_bytes is not None:
            previous = ReadAhead(reader(flow, model.control_blob_id), num_bytes=model.control_num_bytes)
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
    give_back_free_pages()
    spec, model, ring = sealed.run.spec, sealed.base, ring_of(sealed.run.spec)
    base = ReadAhead(reader(flow, model.blob_id), num_bytes=model.num_bytes)
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
        optimizer_state=None if model.optimizer_blob_id is None else reader(flow, model.optimizer_blob_id),
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
        sums.append(MaskedSum(one.sum_digest, one.total_weight, extras, reader(flow, one.sum_blob_id)))
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
            before = None if sealed.noise_state_id is None else reader(flow, sealed.noise_state_id)
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
