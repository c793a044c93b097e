"""Weights of updates and the mean of their metrics."""

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator_service.domain.strategies.mean import weight_of, weighted_metrics
from fl_protocol.specs.strategies import MeanStrategy


@pytest.mark.parametrize(("number", "weight"), [(1, 1), (999, 999), (1000, 1000), (1001, 1000), (2**53 - 1, 1000)])
def test_the_weight_is_the_number_of_examples_up_to_the_bound(number, weight):
    assert weight_of(number, MeanStrategy(max_weight=1000)) == weight
    assert weight_of(number, MeanStrategy(max_weight=1000, weighting="uniform")) == 1


REPORTS = st.lists(
    st.tuples(
        st.integers(1, 2**53 - 1),
        st.dictionaries(st.sampled_from("abc"), st.floats(-1e300, 1e300), max_size=3),
    ),
    max_size=12,
)


@given(REPORTS, st.randoms(use_true_random=False))
def test_the_mean_is_exact_and_knows_no_order(reports, source):
    found = weighted_metrics(reports)
    assert list(found) == sorted(found)
    for name, value in found.items():
        held = [(weight, Fraction(metrics[name])) for weight, metrics in reports if name in metrics]
        assert value == float(sum(weight * metric for weight, metric in held) / sum(weight for weight, _ in held))
    shuffled = list(reports)
    source.shuffle(shuffled)
    assert weighted_metrics(shuffled) == found


def test_a_metric_counts_only_those_who_report_it():
    assert weighted_metrics([(1, {"loss": 1.0}), (3, {"loss": 2.0, "accuracy": 0.5})]) == {
        "accuracy": 0.5,
        "loss": 1.75,
    }
    assert weighted_metrics([]) == {}


def test_cancellation_loses_nothing():
    reports = [(1, {"m": 1e300}), (1, {"m": 1.0}), (1, {"m": -1e300})]
    random.Random(1).shuffle(reports)
    assert weighted_metrics(reports) == {"m": 1 / 3}
