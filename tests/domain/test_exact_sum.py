"""The exact sum: the grid's rules, the same bits in any order and on any split, and what each term is rounded to."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_service.domain import exact_sum
from fl_protocol.specs.rounds import MAX_COHORT_SIZE
from fl_protocol.specs.strategies import MAX_WEIGHT

MAGNITUDES = st.one_of(st.just(0.0), st.floats(0, 1024), st.floats(0, 1e30), st.floats(1e-45, 1e-30))
CONTRIBUTIONS = st.lists(st.tuples(MAGNITUDES, st.integers(1, MAX_WEIGHT)), min_size=1, max_size=20)


def grid(contributions):
    return [Fraction(magnitude) * weight for magnitude, weight in contributions]


def total(values, weights, shift, together=3):
    """Adds so many updates in one pass."""
    accumulator = np.zeros(values[0].size, dtype=np.int64)
    for begin in range(0, len(values), together):
        part = slice(begin, begin + together)
        exact_sum.fold_all(accumulator, values[part], weights=weights[part], shift=shift)
    return accumulator


@settings(max_examples=400, deadline=None)
@given(CONTRIBUTIONS)
def test_nothing_wraps_and_enough_bits_are_kept(contributions):
    shift = exact_sum.shift(contributions)
    terms = grid(contributions)
    scale = Fraction(2) ** shift
    assert shift % 4 == 0
    assert max(terms) * scale <= 2**51
    assert sum(terms) * scale <= 2**62
    assert max(terms) == 0 or max(terms) * scale > 2**46 or shift == exact_sum.MAX_SHIFT
    assert exact_sum.shift(reversed(contributions)) == shift


@pytest.mark.parametrize("magnitude", [1.0, math.nextafter(1.0, 2), math.nextafter(1.0, 0), 1.5, 5e-39, 1e-45, 1e30])
@pytest.mark.parametrize("weight", [1, 3, 2**20 - 1, MAX_WEIGHT])
@pytest.mark.parametrize("number", [1, 2047, 2048, 2049, MAX_COHORT_SIZE])
def test_the_largest_cohorts_keep_the_contracts_bits(magnitude, weight, number):
    shift = exact_sum.shift([(magnitude, weight)] * number)
    term = Fraction(magnitude) * weight * Fraction(2) ** shift
    assert 2**46 < term <= 2**51
    assert term * number <= 2**62


def test_the_sum_of_a_full_cohort_does_not_wrap():
    shift = exact_sum.shift([(1.0, MAX_WEIGHT)] * MAX_COHORT_SIZE)
    ones = np.array([1.0, -1.0], dtype=np.float32)
    summed = total([ones] * MAX_COHORT_SIZE, [MAX_WEIGHT] * MAX_COHORT_SIZE, shift)
    assert summed.tolist() == [MAX_COHORT_SIZE * MAX_WEIGHT * 2**shift, -MAX_COHORT_SIZE * MAX_WEIGHT * 2**shift]


@given(CONTRIBUTIONS, st.data())
def test_the_grid_of_contributions_that_come_in_parts_is_that_of_all(contributions, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(contributions)), max_size=3)))
    known = exact_sum.Magnitudes()
    for begin, end in pairwise([0, *cuts, len(contributions)]):
        known = known.extended(contributions[begin:end])
    assert known.shift == exact_sum.shift(contributions[::-1])


def test_zeros_and_the_ends_of_float64_have_a_grid():
    assert exact_sum.shift([(0.0, 5), (0.0, 1)]) == 0
    for magnitude in (5e-324, 2.0**-1022, 2.0**-960, 2.0**1000, 1.7e308):
        shift = exact_sum.shift([(magnitude, MAX_WEIGHT)])
        factor = math.ldexp(MAX_WEIGHT, shift)
        assert math.isfinite(factor)
        assert math.ldexp(1.0, shift) >= 2.0**-1022
        assert Fraction(magnitude) * MAX_WEIGHT * Fraction(2) ** shift <= 2**51


@pytest.mark.parametrize("contribution", [(math.nan, 1), (math.inf, 1), (-1.0, 1), (1.0, 0)])
def test_what_was_never_accepted_has_no_grid(contribution):
    with pytest.raises(ValueError, match="finite magnitude"):
        exact_sum.shift([contribution])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1024, 1024, width=32), min_size=1, max_size=30),
    st.integers(1, MAX_WEIGHT),
)
def test_each_term_is_rounded_half_to_even_once(values, weight):
    array = np.array(values, dtype=np.float32)
    shift = exact_sum.shift([(float(np.abs(array).max()), weight)])
    expected = [round(Fraction(float(value)) * weight * Fraction(2) ** shift) for value in array]
    assert total([array], [weight], shift).tolist() == expected


def test_ties_go_to_even():
    halves = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 2.0**51, -(2.0**51)])
    assert total([halves], [1], 0).tolist() == [0, 2, 2, 0, -2, -2, 2**51, -(2**51)]


def updates(number, size, seed=5):
    source = np.random.default_rng(seed)
    scale = 10.0 ** source.uniform(-6, 2, number)
    values = [(source.standard_normal(size) * scale[at]).astype(np.float32) for at in range(number)]
    return values, [int(weight) for weight in source.integers(1, 10**6, number)]


def shift_of(values, weights):
    return exact_sum.shift((float(np.abs(array).max()), weight) for array, weight in zip(values, weights, strict=True))


def test_200_permutations_give_the_same_bits():
    values, weights = updates(30, 500)
    shift = shift_of(values, weights)
    expected = total(values, weights, shift)
    source = np.random.default_rng(6)
    for _ in range(200):
        order = source.permutation(30)
        shuffled = total(
            [values[at] for at in order], [weights[at] for at in order], shift, int(source.integers(1, 31))
        )
        np.testing.assert_array_equal(shuffled, expected)


def test_any_split_over_workers_gives_the_same_bits():
    values, weights = updates(20, 300)
    shift = shift_of(values, weights)
    expected = total(values, weights, shift)
    source = np.random.default_rng(7)
    for _ in range(50):
        worker = source.integers(0, 4, 20)
        parts = [[at for at in range(20) if worker[at] == one] for one in range(4)]
        partial = [total([values[at] for at in part], [weights[at] for at in part], shift) for part in parts if part]
        np.testing.assert_array_equal(np.sum(partial, axis=0), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 100), st.integers(0, 2**32))
def test_the_mean_stays_within_half_the_contracts_bound(number, seed):
    values, weights = updates(number, 8, seed)
    shift = shift_of(values, weights)
    result = exact_sum.mean(total(values, weights, shift), total_weight=sum(weights), shift=shift)
    largest = max(Fraction(float(np.abs(array).max())) * weight for array, weight in zip(values, weights, strict=True))
    bound = number * Fraction(2) ** -46 * largest / sum(weights)
    for element in range(8):
        exact = sum(Fraction(float(a[element])) * w for a, w in zip(values, weights, strict=True)) / sum(weights)
        assert abs(Fraction(float(result[element])) - exact) <= bound


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_views_that_are_not_aligned_are_folded(dtype):
    values = np.arange(-20, 21).astype(dtype)
    unaligned = np.frombuffer(b"\0" + values.tobytes(), dtype=dtype, offset=1)
    np.testing.assert_array_equal(total([unaligned], [3], 4), total([values], [3], 4))


@pytest.mark.parametrize("shift", [-1002, -500, -4, 0, 52, 500, 994])
def test_the_mean_is_scaled_to_the_bit(shift: int) -> None:
    """At both ends of what a shift may be, with results that are subnormal, infinite or zero."""
    sums = np.random.default_rng(0).integers(-(2**62), 2**62, 10_000)
    sums[::3] >>= 50
    with np.errstate(all="ignore"):
        expected = np.ldexp(sums.astype(np.float64) / 7.0, -shift)
    assert exact_sum.mean(sums, total_weight=7, shift=shift).tobytes() == expected.tobytes()
