"""Integer tensors: the exact weighted mean, rounded half to even, stopping at the type's bounds."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_service.domain import integer_mean

TYPES = [np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8]


def result(base, deltas, weights):
    held = [(float(np.abs(delta.astype(object)).max()), weight) for delta, weight in zip(deltas, weights, strict=True)]
    accumulator = np.zeros(base.size, dtype=integer_mean.sum_type(held))
    for delta, weight in zip(deltas, weights, strict=True):
        integer_mean.fold(accumulator, delta, weight=weight)
    return integer_mean.add_saturating(base, integer_mean.rounded_mean(accumulator, sum(weights)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_mean_is_exact(data):
    dtype = data.draw(st.sampled_from(TYPES))
    bounds = np.iinfo(dtype)
    delta = st.integers(max(bounds.min, -(2**53)), min(bounds.max, 2**53))
    number, size = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    rows = data.draw(st.lists(st.lists(delta, min_size=size, max_size=size), min_size=number, max_size=number))
    weights = data.draw(st.lists(st.integers(1, 2**29), min_size=number, max_size=number))
    base = data.draw(st.lists(st.integers(int(bounds.min), int(bounds.max)), min_size=size, max_size=size))
    found = result(np.array(base, dtype=dtype), [np.array(row, dtype=dtype) for row in rows], weights)
    assert found.dtype == dtype
    for at in range(size):
        mean = round(Fraction(sum(row[at] * weight for row, weight in zip(rows, weights, strict=True)), sum(weights)))
        assert int(found[at]) == min(max(base[at] + mean, bounds.min), bounds.max)


def test_ties_go_to_even():
    deltas = [np.array([0, 1, 2, -1, -2, -3]), np.array([1, 2, 3, 0, -1, -2])]
    assert result(np.zeros(6, dtype=np.int64), deltas, [1, 1]).tolist() == [0, 2, 2, 0, -2, -2]


@pytest.mark.parametrize("dtype", TYPES)
def test_both_sums_agree_and_stop_at_the_bounds(dtype):
    bounds = np.iinfo(dtype)
    base = np.array([bounds.max, bounds.min, 7], dtype=dtype)
    delta = np.array([100, 0 if bounds.min == 0 else -100, 3], dtype=dtype)
    for kind in (np.int64, object):
        accumulator = np.zeros(3, dtype=kind)
        integer_mean.fold(accumulator, delta, weight=5)
        found = integer_mean.add_saturating(base, integer_mean.rounded_mean(accumulator, 5))
        assert found.tolist() == [bounds.max, bounds.min, 10]
        assert found.dtype == dtype


def test_large_sums_take_pythons_integers():
    assert integer_mean.sum_type([(2.0**53, 2**8)]) == np.int64
    assert integer_mean.sum_type([(2.0**53, 2**9)]).hasobject
