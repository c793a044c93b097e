"""The weighted mean (FedAvg, McMahan et al. 2017): the weights of updates and the mean of what they reported."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from fractions import Fraction

from fl_protocol.specs.strategies import GeometricMedianStrategy, MeanStrategy, Strategy


def weight_of(num_examples: int, strategy: Strategy) -> int:
    """Gives an update's integer weight by itself: its examples up to `max_weight`, or 1 where they do not matter."""
    if isinstance(strategy, MeanStrategy | GeometricMedianStrategy) and strategy.weighting == "num_examples":
        return min(num_examples, strategy.max_weight)
    return 1


def weighted_metrics(reports: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Gives each metric's mean over the (weight, metrics) that report it, rounded once; the order does not matter."""
    sums: defaultdict[str, Fraction] = defaultdict(Fraction)
    weights: defaultdict[str, int] = defaultdict(int)
    for weight, metrics in reports:
        for name, value in metrics.items():
            sums[name] += Fraction(value) * weight
            weights[name] += weight
    return {name: float(sums[name] / weights[name]) for name in sorted(sums)}
