"""What a private round would release: integers on the public grid, with noise of the declared width."""

import math

import numpy as np
import pytest
from scipy import stats

from aggregator_service.domain import exact_sum
from fl_protocol.privacy import lattice, noise

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
NUM_ELEMENTS = 1_000_000
UNLIKELY = 1e-6


def noised_sum(updates, *, clipping_norm, noise_multiplier, key=KEY):
    totals = np.zeros(updates[0].size, dtype=np.int64)
    for values in updates:
        exact_sum.fold(totals, values, weight=1.0, shift=lattice.shift(clipping_norm))
    stddev = lattice.noise_stddev(noise_multiplier, clipping_norm=clipping_norm, num_elements=totals.size)
    noise.add_lattice_gaussian(totals, key=key, first=0, stddev=stddev)
    return totals


@pytest.mark.parametrize("num_updates", [10, 7])
def test_the_sum_of_zero_updates_has_the_declared_noise_however_many_there_are(num_updates):
    clipping_norm, noise_multiplier = 0.37, 1.3
    zeros = [np.zeros(NUM_ELEMENTS, dtype=np.float32)] * num_updates
    totals = noised_sum(zeros, clipping_norm=clipping_norm, noise_multiplier=noise_multiplier)
    released = exact_sum.mean(totals, total_weight=1.0, shift=lattice.shift(clipping_norm))
    declared = noise_multiplier * clipping_norm
    # The sensitivity is charged with what rounding adds: the noise may be wider by no more than that.
    charged = lattice.sensitivity(clipping_norm, NUM_ELEMENTS) * lattice.step(clipping_norm) / clipping_norm
    assert 1 <= charged < 1 + 1e-4
    statistic = float(np.sum((released / (declared * charged)) ** 2))
    tail = min(stats.chi2.cdf(statistic, NUM_ELEMENTS), stats.chi2.sf(statistic, NUM_ELEMENTS))
    assert 2 * tail > UNLIKELY
    assert abs(released.mean()) < 5 * declared / math.sqrt(NUM_ELEMENTS)
    np.testing.assert_array_equal(
        totals, noised_sum(zeros[:1], clipping_norm=clipping_norm, noise_multiplier=noise_multiplier)
    )


def test_every_released_coordinate_is_a_multiple_of_the_step():
    source = np.random.default_rng(7)
    updates = [(source.standard_normal(50_000) * 1e-3).astype(np.float32) for _ in range(4)]
    totals = noised_sum(updates, clipping_norm=0.5, noise_multiplier=2.0)
    released = exact_sum.mean(totals, total_weight=1.0, shift=lattice.shift(0.5))
    in_steps = released / lattice.step(0.5)
    assert np.array_equal(in_steps, np.rint(in_steps))
    np.testing.assert_array_equal(in_steps.astype(np.int64), totals)
    plain = noised_sum(updates, clipping_norm=0.5, noise_multiplier=2.0, key=OTHER_KEY)
    assert np.count_nonzero(plain == totals) < 5


def on_float_grid(released):
    """Tells how many of the outputs near zero are multiples of 2^-24, as sums of float32 above 1/2 always are."""
    near = released[np.abs(released) < 0.25]
    return float(np.mean(np.rint(near * 2.0**24) == near * 2.0**24))


def test_the_float_grid_gives_float_noise_away():
    """The positive control: with float32 added to float32 one coordinate often tells 0 from 1 (Mironov 2012)."""
    drawn = np.random.default_rng(1).standard_normal(NUM_ELEMENTS).astype(np.float32)
    shares = [on_float_grid((np.float32(value) + drawn).astype(np.float64)) for value in (0, 1)]
    assert shares[1] == 1.0
    assert shares[0] < 0.25


@pytest.mark.parametrize("value", [1.0, 0.7, 2.0**-20])
def test_the_float_grid_says_nothing_of_noise_on_the_lattice(value):
    step = lattice.step(1.0)
    totals = [
        noised_sum([np.full(NUM_ELEMENTS, held)], clipping_norm=1.0, noise_multiplier=1.0, key=key)
        for held, key in ((0.0, KEY), (value, OTHER_KEY))
    ]
    shares = [on_float_grid(one * step) for one in totals]
    assert abs(shares[1] - shares[0]) < 0.01
    for bits in range(1, 9):
        finer = [float(np.mean(one % 2**bits == 0)) for one in totals]
        assert finer == pytest.approx([2.0**-bits] * 2, abs=0.005)
