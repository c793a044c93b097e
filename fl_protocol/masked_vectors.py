"""What a masked run's clients add up: which coordinates a vector has, and the ring and the grid on which they lie.

Server and clients compute both from the RunSpec and the model, so that neither has to take the other's word.
"""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from fl_protocol.manifests import Manifest, ManifestModel, ManifestRing, ManifestTensor
from fl_protocol.masking.ring import WEIGHT, Extra, Ring, choose_ring, ring_of_step
from fl_protocol.privacy.shared_noise import shared_noise
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.runs import RunSpec
from fl_protocol.specs.privacy import DistributedSkellamPrivacy
from fl_protocol.specs.secure_aggregation import (
    Masking,
    clipping_norm,
    is_weighted,
    max_abs_delta,
    min_members,
    target_members,
)
from fl_protocol.tensors import Header
from fl_protocol.updates import floats_of, travelling_part

METRIC_SCALE: Final = 2.0**16
"""A metric is an integer of so many steps a unit, multiplied by its client's weight."""


def ring_of(spec: RunSpec) -> Ring:
    """Chooses the ring of a masked run; raises RingError naming what does not fit into 64 bits.

    Noise that the clients share lies on a grid of its own, and the ring has room for ten times its width.
    """
    masked = _masked(spec)
    if isinstance(spec.privacy, DistributedSkellamPrivacy):
        noise = shared_noise(spec)
        return ring_of_step(
            step=noise.step,
            max_members=target_members(spec),
            max_abs=max_abs_delta(spec),
            headroom=noise.headroom,
        )
    max_weight = masked.max_weight if is_weighted(spec) else 1
    metrics = [
        Extra(name, math.ceil(metric.max_abs * METRIC_SCALE) * max_weight, METRIC_SCALE)
        for name, metric in sorted(masked.metrics.items())
    ]
    weight = [Extra(WEIGHT, max_weight)] if is_weighted(spec) else []
    return choose_ring(
        max_members=target_members(spec),
        max_abs=max_abs_delta(spec),
        max_weight=max_weight,
        extras=[*weight, *metrics],
    )


def weight_of(num_examples: int, spec: RunSpec) -> int:
    """Gives the weight of a client with so many examples: 1 where the run is not weighted."""
    if not is_weighted(spec):
        return 1
    masked = _masked(spec)
    return min(max(round(num_examples / masked.examples_per_unit), 1), masked.max_weight)


def extras_of(weight: int, metrics: Mapping[str, float], spec: RunSpec) -> dict[str, float]:
    """Gives the extras of one vector: the weight, and the declared metrics times it, clamped to their bounds.

    A metric that was not measured, or is not finite, counts as zero.
    """
    extras = {WEIGHT: float(weight)} if is_weighted(spec) else {}
    for name, metric in _masked(spec).metrics.items():
        measured = metrics.get(name, 0.0)
        clamped = min(max(measured, -metric.max_abs), metric.max_abs) if math.isfinite(measured) else 0.0
        extras[name] = weight * clamped
    return extras


def coordinates_of(model: Header, spec: RunSpec) -> Header:
    """Gives the floating-point tensors that travel, in the model's order: a vector has their elements, then extras."""
    return floats_of(travelling_part(model, spec))


def manifest_of(
    spec: RunSpec,
    model: Header,
    *,
    run_id: str,
    round_number: int,
    attempt: int,
    sequence: int,
    previous_digest: str | None,
    not_after: datetime,
    base_version: int,
    model_digest: str,
    model_num_bytes: int,
) -> Manifest:
    """Writes the manifest of one attempt at a masked round."""
    coordinates, ring = coordinates_of(model, spec), ring_of(spec)
    return Manifest(
        version=1,
        run_id=run_id,
        round=round_number,
        attempt=attempt,
        sequence=sequence,
        previous_digest=previous_digest,
        not_after=not_after,
        model=ManifestModel(
            version=base_version,
            digest=model_digest,
            num_bytes=model_num_bytes,
            tensors=[
                ManifestTensor(
                    name=tensor.name, dtype=tensor.dtype, shape=list(tensor.shape), num_elements=tensor.num_elements
                )
                for tensor in coordinates.tensors
            ],
            num_elements=sum(tensor.num_elements for tensor in coordinates.tensors),
            extras=[extra.name for extra in ring.extras],
        ),
        secure_aggregation=manifest_ring(spec),
        spec=spec,
    )


def manifest_ring(spec: RunSpec) -> ManifestRing:
    """Gives what a manifest says of the ring, which follows from the run's specification alone."""
    masked, ring = _masked(spec), ring_of(spec)
    return ManifestRing(
        protocol="flsa/v1",
        bits=ring.bits,
        step=ring.step,
        clipping_norm=clipping_norm(spec),
        max_abs_delta=ring.max_abs,
        max_weight=ring.max_weight,
        examples_per_unit=masked.examples_per_unit,
        extra_bounds=[extra.bound for extra in ring.extras],
        min_members=min_members(spec),
        max_members=ring.max_members,
    )


def render_manifest(manifest: Manifest) -> bytes:
    """Gives the bytes that are signed and hashed; everyone hashes what it was sent, nobody writes them again."""
    return manifest.model_dump_json().encode()


def check_masked_model(model: Header, spec: RunSpec) -> None:
    """Raises ProblemError (structure-mismatch) for a model that has nothing to mask, or more than its noise covers."""
    if not isinstance(spec.secure_aggregation, Masking):
        return
    tensors, privacy = coordinates_of(model, spec).tensors, spec.privacy
    if not tensors:
        raise ProblemError(
            ProblemType.STRUCTURE_MISMATCH, "no floating-point tensor travels by the run's parameters: nothing to mask"
        )
    size = sum(tensor.num_elements for tensor in tensors)
    if isinstance(privacy, DistributedSkellamPrivacy) and size > privacy.max_parameters:
        raise ProblemError(
            ProblemType.STRUCTURE_MISMATCH,
            f"{size} parameters travel, and privacy.max_parameters {privacy.max_parameters} is for how many at most "
            "the noise was made; create the run with a larger one, or train fewer",
        )


def _masked(spec: RunSpec) -> Masking:
    if not isinstance(spec.secure_aggregation, Masking):
        raise TypeError("the run has no secure aggregation")
    return spec.secure_aggregation
