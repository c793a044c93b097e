"""The combined deltas of one window after the other: as exact sums, or coordinate by coordinate."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np

from aggregator_service.domain.integer_mean import IntegerArray
from aggregator_service.domain.privacy.noised_sum import NoisedSum
from aggregator_service.domain.strategies.decision import CoordinateWise, Decision, WeightedMean
from aggregator_service.domain.strategies.median import integer_median
from aggregator_service.flow.begun_sums import BegunSum
from aggregator_service.flow.contributions import Block, Contribution, blocks
from aggregator_service.flow.sums import SumPlan, plan_mean, plan_noised, summed
from aggregator_service.flow.windows import Segment
from fl_protocol.dtypes import Float64Array
from fl_protocol.tensors import Header

_CACHED_TILE_ELEMENTS: Final = 1 << 13


class Deltas(Protocol):
    """The combined delta of one window; each element may be asked for once."""

    def floats(self, segment: Segment, tile: slice) -> Float64Array:
        """Gives the elements `tile`, counted from the segment's first, of a floating-point segment."""

    def integers(self, segment: Segment) -> IntegerArray | None:
        """Gives a whole integer segment; None if no update that counts holds it."""


def combine(
    decision: Decision,
    contributions: Sequence[Contribution],
    model: Header,
    *,
    moving: Header,
    divisor: float | None = None,
    noised: NoisedSum | None = None,
    begun: BegunSum | None = None,
) -> Iterator[tuple[Sequence[Segment], Deltas]]:
    """Yields the model window by window with its deltas, each valid until the next one is asked for.

    Only what is `moving` has deltas. `divisor` replaces the sum of the weights in a weighted mean, to which `noised`
    adds noise on a grid that does not depend on what the updates hold. A sum goes on from one that was `begun` of some
    of the contributions, which changes no bit.
    """
    if noised is not None:
        plan = plan_noised(contributions, noised.shift, model=model, moving=moving, begun=begun)
        return _noised_sums(noised, replace(plan, divisor=divisor or 1), model=model)
    if isinstance(decision, WeightedMean):
        plan = plan_mean(decision, contributions, model=model, moving=moving, begun=begun)
        return summed(plan if divisor is None else replace(plan, divisor=divisor), model)
    return _coordinate_wise(decision, [contributions[number] for number in decision.chosen], model=model)


def _coordinate_wise(
    rule: CoordinateWise, contributions: Sequence[Contribution], *, model: Header
) -> Iterator[tuple[Sequence[Segment], Deltas]]:
    for window, block in blocks(contributions, model):
        yield window, _Coordinates(rule, block)


@dataclass(frozen=True, slots=True)
class _Coordinates:
    """Deltas that are a function of each coordinate's values in all updates."""

    rule: CoordinateWise
    block: Block

    def floats(self, segment: Segment, tile: slice) -> Float64Array:
        rows = self.block.floats[:, segment.offset : segment.offset + segment.num_elements][:, tile]
        combined = np.empty(rows.shape[1])
        for begin in range(0, combined.size, _CACHED_TILE_ELEMENTS):
            cached = slice(begin, begin + _CACHED_TILE_ELEMENTS)
            combined[cached] = self.rule.combine(rows[:, cached])
        return combined

    def integers(self, segment: Segment) -> IntegerArray | None:
        held = self.block.integers.get(segment.offset)
        return None if held is None else integer_median(np.stack(held))


def _noised_sums(noised: NoisedSum, plan: SumPlan, *, model: Header) -> Iterator[tuple[Sequence[Segment], Deltas]]:
    for window, sums in summed(plan, model):
        for segment in window:
            if segment.tensor in plan.shifts:
                noised.add(sums.of(segment), first=sums.first + segment.offset)
        yield window, sums
