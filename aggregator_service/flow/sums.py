"""Exact weighted sums, one window of the model after the other; a sum may go on from one of some of the updates."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Final

import numpy as np

from aggregator_service.domain import exact_sum, integer_mean
from aggregator_service.domain.encoded_runs import DenseRun, summand
from aggregator_service.domain.exact_sum import Int64Array, Magnitudes, Summand
from aggregator_service.domain.integer_mean import IntegerArray
from aggregator_service.domain.strategies.decision import WeightedMean
from aggregator_service.flow.begun_sums import BegunSum
from aggregator_service.flow.contributions import Contribution
from aggregator_service.flow.windows import WINDOW_ELEMENTS, Segment, holds, windows
from fl_protocol.dtypes import Float64Array
from fl_protocol.encodings.forms import Quantised
from fl_protocol.tensors import Header

_TOGETHER: Final = 4
"""So many updates are added in one pass over the sums; of each a window is in memory."""

_TOGETHER_INT8: Final = 8
"""So many, or twice as many, of int8: in memory they are no larger, and the loop for eight is the fastest."""

_THREADS: Final = 2

Weighted = Sequence[tuple[Contribution, int]]


@dataclass(frozen=True, slots=True)
class _IntegerSum:
    """What an integer tensor is added up in, and what the updates that hold it weigh together."""

    dtype: np.dtype[Any]
    total_weight: int


@dataclass(frozen=True, slots=True)
class SumPlan:
    """What is added up: `shifts` has the grid of each floating-point tensor, by its number in the model.

    Of the updates those in `begun` are in the sums of its tensors that are `kept`, and are read for the others only.
    `magnitudes` are those of all updates, for each tensor that chooses its grid by them.
    """

    waiting: Weighted
    begun_members: Weighted
    begun: BegunSum | None
    shifts: Mapping[int, int]
    integers: Mapping[int, _IntegerSum] = field(default_factory=dict)
    magnitudes: Mapping[int, Magnitudes] = field(default_factory=dict)
    divisor: float = 1.0
    kept: frozenset[int] = frozenset()

    @property
    def grids(self) -> dict[int, int]:
        """The shift of each tensor whose sum an int64 holds; that of an integer tensor is 0."""
        fixed = {tensor: 0 for tensor, one in self.integers.items() if one.dtype == np.int64}
        return fixed | dict(self.shifts)


def plan_mean(
    decision: WeightedMean,
    contributions: Sequence[Contribution],
    *,
    model: Header,
    moving: Header,
    begun: BegunSum | None = None,
) -> SumPlan:
    """Plans a weighted mean, divided by the sum of the weights: each tensor has the grid that the updates choose.

    What was skipped weighs there, too, and is zero.
    """
    weighted = [(one, weight) for one, weight in zip(contributions, decision.weights, strict=True) if weight]
    waiting, members = _split([pair for pair in weighted if not pair[0].update.skipped], begun)
    known: Mapping[int, Magnitudes] = {} if begun is None else begun.magnitudes
    magnitudes = {
        tensor: known.get(tensor, Magnitudes()).extended(
            (one.update.max_abs[spec.name], _delta_weight(one, weight)) for one, weight in waiting
        )
        for tensor, spec in enumerate(model.tensors)
        if spec.is_float and spec.name in moving.by_name
    }
    return _keeping(
        SumPlan(
            waiting,
            members,
            begun,
            shifts={tensor: one.shift for tensor, one in magnitudes.items()},
            integers=_integer_sums(weighted, model),
            magnitudes=magnitudes,
            divisor=sum(weight for _, weight in weighted),
        )
    )


def plan_noised(
    contributions: Sequence[Contribution],
    shift: int,
    *,
    model: Header,
    moving: Header,
    begun: BegunSum | None = None,
) -> SumPlan:
    """Plans a sum of updates that count the same, on one grid whatever they hold; integer tensors have none."""
    waiting, members = _split([(one, 1) for one in contributions], begun)
    shifts = {number: shift for number, spec in enumerate(model.tensors) if spec.name in moving.by_name}
    return _keeping(SumPlan(waiting, members, begun, shifts))


def _split(weighted: Weighted, begun: BegunSum | None) -> tuple[Weighted, Weighted]:
    """Parts the updates into those that wait and the members of a begun sum."""
    if begun is None:
        return weighted, ()
    waiting = [pair for pair in weighted if pair[0].update.update_id not in begun.members]
    return waiting, [pair for pair in weighted if pair[0].update.update_id in begun.members]


def _keeping(plan: SumPlan) -> SumPlan:
    if plan.begun is None:
        return plan
    return replace(plan, kept=frozenset(dict(plan.grids.items() & plan.begun.grids.items())))


def _integer_sums(weighted: Weighted, model: Header) -> dict[int, _IntegerSum]:
    sums = {}
    for tensor, spec in enumerate(model.tensors):
        holders = [] if spec.is_float else [(one, weight) for one, weight in weighted if holds(one.layout, tensor)]
        if holders:
            dtype = integer_mean.sum_type((one.update.max_abs[spec.name], weight) for one, weight in holders)
            sums[tensor] = _IntegerSum(dtype, sum(weight for _, weight in holders))
    return sums


def summed(plan: SumPlan, model: Header) -> Iterator[tuple[Sequence[Segment], "Sums"]]:
    """Yields the model window by window with its sums, each valid until the next one is asked for.

    Another thread adds up the next window meanwhile, and one more helps it where there are many updates.
    """
    first, buffers = 0, [np.empty(WINDOW_ELEMENTS, dtype=np.int64) for _ in range(2)]
    before: tuple[Sequence[Segment], Sums] | None = None
    folding: Future[None] | None = None
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="sums") as pool:
        for number, window in enumerate(windows(model)):
            # One window after the other: updates are read in order.
            if folding is not None:
                folding.result()
            sums = Sums(plan, first, buffers[number % 2][: window[-1].offset + window[-1].num_elements], pool)
            folding = pool.submit(sums.fold, window)
            if before is not None:
                yield before
            before, first = (window, sums), first + sums.totals.size
        if before is not None and folding is not None:
            folding.result()
            yield before


def _together(weighted: Weighted) -> int:
    """Tells how many updates are added in one pass."""
    encoded = weighted[0][0].encoded if weighted else None
    if encoded is None or not any(isinstance(form, Quantised) and form.bits == 8 for form in encoded.forms):
        return _TOGETHER
    return _TOGETHER_INT8 if len(weighted) < 2 * _THREADS * _TOGETHER_INT8 else 2 * _TOGETHER_INT8


def _delta_weight(contribution: Contribution, weight: int) -> float:
    own = contribution.update.delta_weight
    return (weight if own is None else own) * contribution.factor


@dataclass(slots=True)
class Sums:
    """The sums of the window that begins at the model's element `first`.

    Integer tensors have their own, by the segment's offset in the window.
    """

    plan: SumPlan
    first: int
    totals: Int64Array
    pool: ThreadPoolExecutor
    integer_totals: dict[int, IntegerArray] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def fold(self, window: Sequence[Segment]) -> None:
        """Adds up the whole window, some updates at a time."""
        anew = self._begin(window)
        self._add(self.plan.waiting, window)
        if self.plan.begun_members and anew:
            self._add(self.plan.begun_members, anew)

    def floats(self, segment: Segment, tile: slice) -> Float64Array:
        total = self.of(segment)[tile]
        return exact_sum.mean(total, total_weight=self.plan.divisor, shift=self.plan.shifts[segment.tensor])

    def integers(self, segment: Segment) -> IntegerArray | None:
        total = self.integer_totals.get(segment.offset)
        if total is None:
            return None
        return integer_mean.rounded_mean(total, self.plan.integers[segment.tensor].total_weight)

    def of(self, segment: Segment) -> Int64Array:
        """Gives the sums of a floating-point segment."""
        return self.totals[segment.offset : segment.offset + segment.num_elements]

    def whole(self, window: Sequence[Segment]) -> Int64Array:
        """Gives all sums that int64 holds at the places of their elements; what is elsewhere means nothing."""
        for segment in window:
            total = self.integer_totals.get(segment.offset)
            if total is not None and total.dtype == np.int64:
                np.copyto(self.of(segment), total)
        return self.totals

    def _begin(self, window: Sequence[Segment]) -> list[Segment]:
        """Takes over the sums that are kept, and gives the segments that begin with zero."""
        anew = [segment for segment in window if segment.tensor not in self.plan.kept]
        if self.plan.begun is None or len(anew) == len(window):
            self.totals.fill(0)
        else:
            self.plan.begun.scratch.read(self.first, self.totals)
            for segment in anew:
                self.of(segment).fill(0)
        for segment in window:
            if segment.tensor in self.plan.integers:
                dtype = self.plan.integers[segment.tensor].dtype
                kept = self.of(segment).copy() if segment.tensor in self.plan.kept else None
                self.integer_totals[segment.offset] = np.zeros(segment.num_elements, dtype) if kept is None else kept
        return anew

    def _add(self, weighted: Weighted, segments: Sequence[Segment]) -> None:
        together = _together(weighted)
        groups = iter([weighted[begin : begin + together] for begin in range(0, len(weighted), together)])

        def add() -> None:
            for group in groups:
                self._add_together(group, segments)

        if len(weighted) <= together:
            return add()
        # Whoever is free takes the next group: a core that others need as well only takes fewer.
        helping = self.pool.submit(add)
        try:
            add()
        finally:
            helping.result()
        return None

    def _add_together(self, weighted: Weighted, segments: Sequence[Segment]) -> None:
        floats: dict[int, list[tuple[Summand, float]]] = {}
        integers: list[tuple[int, IntegerArray, int]] = []
        for one, weight in weighted:
            for segment, run in one.runs(segments):
                if segment.spec.is_float:
                    floats.setdefault(segment.offset, []).append((summand(run), _delta_weight(one, weight)))
                elif segment.offset in self.integer_totals and isinstance(run, DenseRun):
                    integers.append((segment.offset, run.values, weight))
        # Reading takes longer than adding, and so the other thread is seldom in the way.
        with self.lock:
            for offset, values, weight in integers:
                integer_mean.fold(self.integer_totals[offset], values, weight=weight)
            for segment in segments:
                if segment.offset in floats:
                    summands, weights = zip(*floats[segment.offset], strict=True)
                    shift = self.plan.shifts[segment.tensor]
                    exact_sum.fold_all(self.of(segment), summands, weights=weights, shift=shift)
