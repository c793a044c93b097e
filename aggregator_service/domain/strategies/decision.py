"""What a strategy decides before the fold: a weighted mean of some updates, or a rule for each coordinate of some."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from aggregator_service.domain.inner_products import squared_distances
from aggregator_service.domain.strategies import bulyan, geometric_median, krum
from aggregator_service.domain.strategies.median import median
from aggregator_service.domain.strategies.trimmed_mean import trimmed_mean
from fl_protocol.dtypes import Float64Array, Values
from fl_protocol.specs.strategies import (
    BulyanStrategy,
    ComparingStrategy,
    GeometricMedianStrategy,
    KrumStrategy,
    MeanStrategy,
    MedianStrategy,
    MultiKrumStrategy,
    Strategy,
    TrimmedMeanStrategy,
)


@dataclass(frozen=True, slots=True)
class WeightedMean:
    """The mean of the updates with these integer weights, one for each update; 0 leaves it out."""

    weights: Sequence[int]


@dataclass(frozen=True, slots=True)
class CoordinateWise:
    """A function of each coordinate's values in the chosen updates: rows [n, k], which it overwrites, to [k]."""

    chosen: Sequence[int]
    combine: Callable[[Values], Float64Array]


Decision = WeightedMean | CoordinateWise


def compares(strategy: Strategy) -> bool:
    """Tells whether a strategy decides by the inner products of whole updates."""
    return isinstance(strategy, ComparingStrategy)


def decide(strategy: Strategy, weights: Sequence[int], *, inner_products: Float64Array | None) -> Decision:
    """Decides for the updates in the order of their digests; `inner_products` is there for a strategy that compares."""
    match strategy:
        case MeanStrategy():
            return WeightedMean(weights)
        case MedianStrategy():
            return CoordinateWise(range(len(weights)), median)
        case TrimmedMeanStrategy():
            num_trimmed = strategy.num_trimmed(len(weights))
            return CoordinateWise(range(len(weights)), partial(trimmed_mean, num_trimmed=num_trimmed))
    if inner_products is None:
        raise ValueError(f"{strategy.kind} decides by inner products, and there are none")
    return _decide_by_comparison(strategy, weights, inner_products=inner_products)


def _decide_by_comparison(
    strategy: ComparingStrategy, weights: Sequence[int], *, inner_products: Float64Array
) -> Decision:
    f = 0 if isinstance(strategy, GeometricMedianStrategy) else strategy.num_byzantine
    match strategy:
        case KrumStrategy():
            chosen = krum.multi_krum(squared_distances(inner_products), num_byzantine=f, num_selected=1)
        case MultiKrumStrategy():
            distances = squared_distances(inner_products)
            chosen = krum.multi_krum(distances, num_byzantine=f, num_selected=strategy.num_selected)
        case BulyanStrategy():
            chosen = bulyan.select(squared_distances(inner_products), num_byzantine=f)
            return CoordinateWise(chosen, partial(bulyan.mean_around_median, num_byzantine=f))
        case GeometricMedianStrategy():
            return WeightedMean(
                geometric_median.weights_of(
                    inner_products, weights, num_iterations=strategy.num_iterations, smoothing=strategy.smoothing
                )
            )
        case _:
            assert_never(strategy)
    return WeightedMean([int(number in chosen) for number in range(len(weights))])
