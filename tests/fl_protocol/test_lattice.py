"""The public grid: its step, what one clipped update can change on it, and when sums stay exact."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aggregator_service.domain import exact_sum
from aggregator_service.domain.update_norm import UpdateNorm, clip_factor
from fl_protocol.privacy import lattice
from fl_protocol.privacy.noise import MAX_ABS_GAUSSIAN
from fl_protocol.specs.rounds import MAX_COHORT_SIZE

NORMS = st.floats(1e-9, 1e9)
FLOATS = st.one_of(
    st.just(0.0),
    st.floats(-(2.0**99), 2.0**99, width=32),
    st.floats(-(2.0**-100), 2.0**-100, width=32),
    st.floats(-2, 2, width=32),
)


def squared_norm(integers):
    return sum(int(value) ** 2 for value in integers)


def norm_of(values):
    norm = UpdateNorm()
    norm.add("a", values, dtype={4: "F32", 8: "F64"}[values.itemsize])
    return norm.result()


def summed(values, *, clipping_norm, factor):
    totals = np.zeros(values.size, dtype=np.int64)
    exact_sum.fold(totals, values, weight=factor, shift=lattice.shift(clipping_norm))
    return totals


@given(NORMS)
@example(1.0)
@example(math.nextafter(1.0, 2))
@example(math.nextafter(1.0, 0))
@example(2.0**-29)
def test_the_step_is_a_power_of_two_and_the_clipping_norm_spans_many(clipping_norm):
    step = lattice.step(clipping_norm)
    assert math.frexp(step)[0] == 0.5
    assert step == 2.0 ** -lattice.shift(clipping_norm)
    assert 2**23 < Fraction(clipping_norm) / Fraction(step) <= 2**24


@settings(max_examples=300, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=40), NORMS, st.sampled_from([np.float32, np.float64]))
@example([1e30] * 40, 1e-9, np.float32)
@example([2.0**-149], 1e-9, np.float32)
@example([0.0], 1.0, np.float32)
@example([1.0 / math.sqrt(3)] * 3, 1.0, np.float64)
def test_a_clipped_update_never_exceeds_the_sensitivity(values, clipping_norm, dtype):
    values = np.array(values, dtype=dtype)
    factor = clip_factor(norm_of(values), clipping_norm)
    on_grid = lattice.quantise(values, factor=factor, clipping_norm=clipping_norm)
    assert squared_norm(on_grid) <= lattice.sensitivity(clipping_norm, values.size) ** 2
    assert math.sqrt(squared_norm(on_grid)) * lattice.step(clipping_norm) <= clipping_norm * (1 + 1e-6)
    np.testing.assert_array_equal(on_grid, summed(values, clipping_norm=clipping_norm, factor=factor))


@settings(max_examples=300, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=40), NORMS)
def test_an_update_clipped_in_the_l1_norm_never_exceeds_its_sensitivity(values, clipping_norm):
    values = np.array(values, dtype=np.float32)
    factor = clip_factor(math.fsum(np.abs(values.astype(np.float64))), clipping_norm)
    on_grid = lattice.quantise(values, factor=factor, clipping_norm=clipping_norm)
    assert sum(abs(int(value)) for value in on_grid) <= lattice.l1_sensitivity(clipping_norm, values.size)


@pytest.mark.parametrize("num_elements", [1, 2, 3, 4, 5, 1000, 110_000, 10_000_000, 10**9])
def test_rounding_is_charged_and_hardly_costs_anything(num_elements):
    """The bound holds if every coordinate is off by half a step in the update's own direction."""
    spans = Fraction(1) / Fraction(lattice.step(1.0))
    charged = lattice.sensitivity(1.0, num_elements)
    assert (charged - spans) ** 2 >= Fraction(num_elements, 4)
    assert charged <= spans * (1 + Fraction(1, 2**39)) + math.isqrt(num_elements) / 2 + 2
    assert lattice.l1_sensitivity(1.0, num_elements) - spans >= Fraction(num_elements, 2)


def test_every_coordinate_rounded_up_still_stays_below_the_sensitivity():
    num_elements = 2**20
    each = np.full(num_elements, 2.0**-10 - 0.4999 * lattice.step(1.0))
    on_grid = lattice.quantise(each, factor=1.0, clipping_norm=1.0)
    assert norm_of(each) <= 1.0
    assert int(on_grid[0]) == 2**14
    assert num_elements * int(on_grid[0]) ** 2 <= lattice.sensitivity(1.0, num_elements) ** 2


def test_the_noise_is_the_multiplier_times_the_sensitivity():
    charged = lattice.sensitivity(0.3, 5000)
    assert lattice.noise_stddev(1.5, clipping_norm=0.3, num_elements=5000) == 1.5 * charged
    l1 = lattice.l1_sensitivity(0.3, 5000)
    assert lattice.laplace_scale(2.5, clipping_norm=0.3, num_elements=5000) == 2.5 * l1


@pytest.mark.parametrize("clipping_norm", [1e-9, 0.1, 1.0, 1e9])
def test_the_largest_cohort_with_the_widest_noise_is_exact(clipping_norm):
    stddev = lattice.noise_stddev(1e4, clipping_norm=clipping_norm, num_elements=10**9)
    lattice.check_exact(MAX_COHORT_SIZE, clipping_norm=clipping_norm, num_elements=10**9, stddev=stddev)
    most = MAX_COHORT_SIZE * lattice.sensitivity(clipping_norm, 10**9) + 2 * MAX_ABS_GAUSSIAN * stddev
    assert most < 2**53


def test_a_sum_that_would_not_be_exact_is_refused_by_its_field():
    largest = 2**52 // lattice.sensitivity(1.0, 10)
    lattice.check_exact(largest, clipping_norm=1.0, num_elements=10, stddev=1.0)
    with pytest.raises(
        lattice.LatticeError, match=rf"^round\.cohort_size: .* at most {re.escape(f'{largest:.6g}')}"
    ) as error:
        lattice.check_exact(largest + 1, clipping_norm=1.0, num_elements=10, stddev=1.0)
    assert (error.value.field, error.value.value, error.value.bound) == ("round.cohort_size", largest + 1, largest)
    widest = 2**51 / MAX_ABS_GAUSSIAN
    lattice.check_exact(10, clipping_norm=1.0, num_elements=10, stddev=widest)
    with pytest.raises(lattice.LatticeError, match=r"^privacy\.noise_multiplier: ") as error:
        lattice.check_exact(10, clipping_norm=1.0, num_elements=10, stddev=1.01 * widest)
    assert (error.value.field, error.value.bound) == ("privacy.noise_multiplier", widest)
