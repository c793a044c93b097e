"""The combined deltas of a masked round whose strategy is not the mean: it takes each session's mean for an update.

Nobody sees a single update, so a session is what can be told from others: whoever is wrong spoils the mean of its own
session, and the strategy outvotes that one (docs/learning/strategies.md).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from aggregator_service.domain.strategies.decision import compares, decide
from aggregator_service.flow.comparison import inner_products
from aggregator_service.flow.contributions import Contribution, SealedUpdate
from aggregator_service.flow.deltas import Deltas, combine
from aggregator_service.flow.masked_sums import MaskedRound, MaskedSum, means_of, sum_layout
from aggregator_service.flow.windows import Layout, RangeReader, Segment, read_window, windows
from fl_protocol.specs.strategies import Strategy
from fl_protocol.tensors import Header


def combine_shards(
    masked: MaskedRound, model: Header, *, moving: Header, strategy: Strategy
) -> Iterator[tuple[Sequence[Segment], Deltas]]:
    """Yields the model window by window with its combined deltas, each valid until the next one is asked for.

    Every session counts the same. They are taken in the order of their sums' digests, whenever they ended; memory is a
    window of each, as it is for updates.
    """
    layout, wide = sum_layout(model, moving), _as_float64(model, moving)
    in_order = sorted(masked.sums, key=lambda one: (one.digest, one.total_weight))
    shards = [_shard(one, masked.step, wide=wide, layout=layout, is_measured=compares(strategy)) for one in in_order]
    products = inner_products(shards, wide, moving=moving) if compares(strategy) else None
    decision = decide(strategy, [1] * len(shards), inner_products=products)
    for window, deltas in combine(decision, shards, wide, moving=moving):
        yield [replace(segment, spec=model.tensors[segment.tensor]) for segment in window], deltas


def _shard(one: MaskedSum, step: float, *, wide: Header, layout: Layout, is_measured: bool) -> Contribution:
    read = _mean_reader(one, step)
    max_abs = _max_abs(read, wide, layout=layout) if is_measured else {}
    return Contribution(SealedUpdate(one.digest, one.digest, 1, max_abs, read), layout)


def _mean_reader(one: MaskedSum, step: float) -> RangeReader:
    """Gives the session's mean as the bytes of float64, which are where the sum's int64 are."""

    def read(begin: int, end: int) -> bytes:
        return means_of(np.frombuffer(one.read(begin, end), dtype="<i8"), step, one.total_weight).tobytes()

    return read


def _max_abs(read: RangeReader, wide: Header, *, layout: Layout) -> dict[str, float]:
    largest: dict[str, float] = {}
    for window in windows(wide):
        for segment, values in read_window(read, window, layout=layout):
            name = segment.spec.name
            largest[name] = max(largest.get(name, 0.0), float(np.abs(values).max()))
    return largest


def _as_float64(model: Header, moving: Header) -> Header:
    """Gives the model with the types that sessions' means have: not rounded to its own before they are combined."""
    tensors = (replace(spec, dtype="F64") if spec.name in moving.by_name else spec for spec in model.tensors)
    return replace(model, tensors=tuple(tensors))
