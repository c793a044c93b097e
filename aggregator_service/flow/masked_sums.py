"""The mean deltas of a masked round, window by window: the sums of its sessions, noised if the run is private."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from aggregator_service.domain.exact_sum import Int64Array
from aggregator_service.domain.integer_mean import IntegerArray
from aggregator_service.domain.privacy.noised_sum import NoisedSum
from aggregator_service.flow.deltas import Deltas
from aggregator_service.flow.windows import Layout, RangeReader, Segment, read_window, window_of_sums, windows
from fl_protocol.dtypes import Float64Array
from fl_protocol.masked_vectors import METRIC_SCALE
from fl_protocol.masking.ring import WEIGHT
from fl_protocol.tensors import Header

_ELEMENT_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class MaskedSum:
    """The sum of one session: what its members weigh, the sums of the extras by name, and how to read its bytes."""

    digest: str
    total_weight: int
    extras: Mapping[str, int]
    read: RangeReader


@dataclass(frozen=True, slots=True)
class MaskedRound:
    """What a masked round adds up: sessions' sums on one grid, whose mean is step * sum / divisor."""

    sums: Sequence[MaskedSum]
    step: float
    divisor: float

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric that travelled as a masked coordinate, by the weights."""
        total_weight = sum(one.total_weight for one in self.sums)
        names = [name for name in self.sums[0].extras if name != WEIGHT]
        return {name: sum(one.extras[name] for one in self.sums) / METRIC_SCALE / total_weight for name in names}


def sum_layout(model: Header, moving: Header) -> Layout:
    """Gives where each tensor of the model begins in a sum, in bytes; -1: left out."""
    begins, places = 0, {}
    for tensor in moving.tensors:
        places[tensor.name] = begins
        begins += _ELEMENT_BYTES * tensor.num_elements
    return np.array([places.get(tensor.name, -1) for tensor in model.tensors], dtype=np.int64)


def means_of(totals: Int64Array, step: float, divisor: float) -> Float64Array:
    """Gives step * total / divisor, rounded as float64 rounds."""
    means = totals.astype(np.float64)
    np.multiply(means, step, out=means)
    return np.divide(means, divisor, out=means)


def combine_masked(
    masked: MaskedRound, model: Header, *, moving: Header, noised: NoisedSum | None
) -> Iterator[tuple[Sequence[Segment], Deltas]]:
    """Yields the model window by window with its mean deltas, each valid until the next one is asked for.

    `moving` are the floating-point tensors that travel, in the order of a sum's coordinates.
    """
    layout = sum_layout(model, moving)
    size = window_of_sums(sum(tensor.num_elements for tensor in model.tensors))
    kept = np.empty(size, dtype=np.int64)
    first = 0
    for window in windows(model, size):
        totals = kept[: window[-1].offset + window[-1].num_elements]
        totals.fill(0)
        for one in masked.sums:
            _add(one.read, window, layout=layout, totals=totals)
        if noised is not None:
            _noise(noised, window, layout=layout, totals=totals, first=first)
        first += len(totals)
        yield window, _Means(totals, masked.step, masked.divisor)


def _add(read: RangeReader, window: Sequence[Segment], *, layout: Layout, totals: Int64Array) -> None:
    # One element is as long as a float64 of an optimizer's state, and is read like one.
    wide = [segment.as_state(1) for segment in window]
    for segment, values in read_window(read, wide, layout=layout):
        into = totals[segment.offset : segment.offset + segment.num_elements]
        np.add(into, values.view("<i8"), out=into)


def _noise(noised: NoisedSum, window: Sequence[Segment], *, layout: Layout, totals: Int64Array, first: int) -> None:
    for segment in window:
        if layout[segment.tensor] >= 0:
            end = segment.offset + segment.num_elements
            noised.add(totals[segment.offset : end], first=first + segment.offset)


@dataclass(frozen=True, slots=True)
class _Means:
    """The means of one window; integer tensors are not masked and stay as they are."""

    totals: Int64Array
    step: float
    divisor: float

    def floats(self, segment: Segment, tile: slice) -> Float64Array:
        totals = self.totals[segment.offset : segment.offset + segment.num_elements]
        return means_of(totals[tile], self.step, self.divisor)

    def integers(self, segment: Segment) -> IntegerArray | None:  # noqa: ARG002 - as Deltas has it
        return None
