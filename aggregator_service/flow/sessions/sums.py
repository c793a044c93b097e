"""The sum of masked vectors once its masks are off: stored window by window, and checked against what it can be."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from aggregator_service.flow.context import Flow
from aggregator_service.flow.sealed_rounds import AggregationStoppedError
from aggregator_service.flow.sessions.vectors import Vector
from aggregator_service.flow.windows import window_of_sums
from aggregator_service.storage.blobs import BlobUpload
from fl_protocol.masking import ring
from fl_protocol.masking.ring import Int64Array, SumMeasure, Words
from fl_protocol.runs import RunSpec
from fl_protocol.specs.privacy import DistributedSkellamPrivacy
from fl_protocol.specs.secure_aggregation import clipping_norm


@dataclass(frozen=True, slots=True)
class SessionSum:
    """A sum that was computed and stored but is not named yet: the model's coordinates and the extras as int64."""

    upload: BlobUpload
    digest: str
    total_weight: int
    totals: list[int]


def windows_of(vector: Vector) -> Iterator[tuple[int, int]]:
    """Gives where each window of a sum begins and ends, in elements."""
    size = window_of_sums(vector.num_elements)
    for first in range(0, vector.num_elements, size):
        yield first, min(first + size, vector.num_elements)


def add_up(flow: Flow, blob_ids: Iterable[str], *, vector: Vector, first: int, end: int) -> Words:
    """Adds up the elements [first, end) of stored vectors; raises AggregationStoppedError while the server drains."""
    sums, width = np.zeros(end - first, dtype=vector.ring.dtype), vector.ring.element_bytes
    for blob_id in blob_ids:
        if flow.wakeups.closed:
            raise AggregationStoppedError
        data = flow.blobs.read_blocking(blob_id, first * width, end * width)
        np.add(sums, ring.unpack(data, vector.ring.bits), out=sums)
    return sums


def write_sum(
    flow: Flow,
    upload: BlobUpload,
    windows: Iterable[tuple[int, Int64Array]],
    *,
    vector: Vector,
    spec: RunSpec,
    num_members: int,
) -> SessionSum:
    """Stores a sum that comes in windows; raises RingError if no honest members could have sent it."""
    hasher, measure, extras = hashlib.sha256(), SumMeasure(), np.empty(0, dtype=np.int64)
    for first, totals in windows:
        coordinates = totals[: max(vector.num_coordinates - first, 0)]
        measure += ring.measure_sum(coordinates)
        extras = np.concatenate([extras, totals[coordinates.size :]])
        data = totals.astype("<i8").tobytes()
        hasher.update(data)
        upload.append(data)
        if upload.is_due:
            flow.blobs.flush_blocking(upload)
    flow.blobs.finish_blocking(upload)
    ring.check_sum(
        measure,
        extras,
        ring=vector.ring,
        num_members=num_members,
        num_coordinates=vector.num_coordinates,
        # Noise that the clients share makes a sum longer than their updates are.
        clipping_norm=None if isinstance(spec.privacy, DistributedSkellamPrivacy) else clipping_norm(spec),
    )
    weight = vector.total_weight(extras.tolist(), num_members=num_members)
    return SessionSum(upload, f"sha256:{hasher.hexdigest()}", weight, extras.tolist())
