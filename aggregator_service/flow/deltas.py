"""The combined deltas of one window after the other: as exact sums, or coordinate by coordinate."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from aggregator_service.domain import exact_sum, integer_mean
from aggregator_service.domain.encoded_runs import DenseRun, fold_run
from aggregator_service.domain.exact_sum import Int64Array
from aggregator_service.domain.integer_mean import IntegerArray
from aggregator_service.domain.privacy.noised_sum import NoisedSum
from aggregator_service.domain.strategies.decision import CoordinateWise, Decision, WeightedMean
from aggregator_service.domain.strategies.median import integer_median
from aggregator_service.flow.contributions import Block, Contribution, blocks
from aggregator_service.flow.windows import WINDOW_ELEMENTS, Segment, windows
from fl_protocol.dtypes import Float64Array, Values
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
) -> Iterator[tuple[Sequence[Segment], Deltas]]:
    """Yields the model window by window with its deltas, each valid until the next one is asked for.

    Only what is `moving` has deltas. `divisor` replaces the sum of the weights in a weighted mean, to which `noised`
    adds noise on a grid that does not depend on what the updates hold.
    """
    if noised is not None:
        return _noised_sums(noised, contributions, model=model, moving=moving, divisor=divisor or 1)
    if isinstance(decision, WeightedMean):
        return _sums(decision, contributions, model=model, moving=moving, divisor=divisor)
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


@dataclass(frozen=True, slots=True)
class _Plan:
    """The updates that count, with their integer weights, each tensor's grid, and what a sum is divided by."""

    weighted: Sequence[tuple[Contribution, int]]
    shifts: Mapping[int, int]
    divisor: float
    moves_integers: bool = True


def _sums(
    decision: WeightedMean,
    contributions: Sequence[Contribution],
    *,
    model: Header,
    moving: Header,
    divisor: float | None,
) -> Iterator[tuple[Sequence[Segment], Deltas]]:
    weighted = [(one, weight) for one, weight in zip(contributions, decision.weights, strict=True) if weight]
    shifts = {
        tensor: exact_sum.shift((one.update.max_abs[spec.name], _delta_weight(one, weight)) for one, weight in weighted)
        for tensor, spec in enumerate(model.tensors)
        if spec.is_float and spec.name in moving.by_name
    }
    plan = _Plan(weighted, shifts, sum(weight for _, weight in weighted) if divisor is None else divisor)
    yield from _summed(plan, model)


def _noised_sums(
    noised: NoisedSum, contributions: Sequence[Contribution], *, model: Header, moving: Header, divisor: float
) -> Iterator[tuple[Sequence[Segment], Deltas]]:
    shifts = {number: noised.shift for number, spec in enumerate(model.tensors) if spec.name in moving.by_name}
    plan = _Plan([(one, 1) for one in contributions], shifts, divisor, moves_integers=False)
    first = 0
    for window, sums in _summed(plan, model):
        for segment in window:
            if segment.tensor in shifts:
                end = segment.offset + segment.num_elements
                noised.add(sums.totals[segment.offset : end], first=first + segment.offset)
        first += len(sums.totals)
        yield window, sums


def _summed(plan: "_Plan", model: Header) -> Iterator[tuple[Sequence[Segment], "_Sums"]]:
    floats, scratch = np.empty(WINDOW_ELEMENTS, dtype=np.int64), np.empty(exact_sum.SCRATCH_ELEMENTS)
    for window in windows(model):
        sums = _Sums(plan, floats[: window[-1].offset + window[-1].num_elements])
        sums.fold(window, scratch=scratch)
        yield window, sums


def _delta_weight(contribution: Contribution, weight: int) -> float:
    own = contribution.update.delta_weight
    return (weight if own is None else own) * contribution.factor


@dataclass(slots=True)
class _Sums:
    """The sums of one window; integer tensors have their own, by the segment's offset in the window."""

    plan: _Plan
    totals: Int64Array
    integer_totals: dict[int, IntegerArray] = field(default_factory=dict)
    integer_weights: dict[int, int] = field(default_factory=dict)

    def fold(self, window: Sequence[Segment], *, scratch: Float64Array) -> None:
        """Adds up the whole window, update after update."""
        self.totals.fill(0)
        num_biased: Counter[int] = Counter()
        for one, weight in self.plan.weighted:
            for segment, run in one.runs(window):
                if segment.spec.is_float:
                    shift, by = self.plan.shifts[segment.tensor], _delta_weight(one, weight)
                    fold_run(self._of(segment), run, weight=by, shift=shift, scratch=scratch)
                    num_biased[segment.offset] += isinstance(run, DenseRun)
                elif self.plan.moves_integers and isinstance(run, DenseRun):
                    self._fold_integers(segment, run.values, weight=weight)
        for segment in window:
            exact_sum.settle(self._of(segment), num_biased[segment.offset])

    def floats(self, segment: Segment, tile: slice) -> Float64Array:
        total = self._of(segment)[tile]
        return exact_sum.mean(total, total_weight=self.plan.divisor, shift=self.plan.shifts[segment.tensor])

    def integers(self, segment: Segment) -> IntegerArray | None:
        total = self.integer_totals.get(segment.offset)
        return None if total is None else integer_mean.rounded_mean(total, self.integer_weights[segment.offset])

    def _of(self, segment: Segment) -> Int64Array:
        return self.totals[segment.offset : segment.offset + segment.num_elements]

    def _fold_integers(self, segment: Segment, values: Values, *, weight: int) -> None:
        at, name = segment.offset, segment.spec.name
        if at not in self.integer_totals:
            held = ((one.update.max_abs.get(name, 0.0), weight) for one, weight in self.plan.weighted)
            self.integer_totals[at] = np.zeros(segment.num_elements, dtype=integer_mean.sum_type(held))
        integer_mean.fold(self.integer_totals[at], values, weight=weight)
        self.integer_weights[at] = self.integer_weights.get(at, 0) + weight
