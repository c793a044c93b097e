"""The clip that adapts: the count's noise, and where the clip goes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator_service.domain.privacy import adaptive_clipping
from fl_protocol.privacy import noise

BOUNDS = (1e-3, 1e3)


def next_norm(clipping_norm, share, *, target=0.5, rate=0.2, bounds=BOUNDS):
    return adaptive_clipping.next_clipping_norm(
        clipping_norm, share, target_unclipped_quantile=target, learning_rate=rate, bounds=bounds
    )


def test_one_bit_changes_the_noised_sum_by_half_a_count():
    shares = [
        adaptive_clipping.noised_unclipped_share(ones, updates, noise=0, denominator=1.0) - 0.5
        for ones, updates in ((0, 0), (1, 1), (0, 1), (7, 10))
    ]
    assert shares == [0, 0.5, -0.5, 2]
    assert adaptive_clipping.noised_unclipped_share(7, 10, noise=0, denominator=10) == 0.7
    assert adaptive_clipping.noised_unclipped_share(0, 0, noise=0, denominator=10) == 0.5


def test_the_count_s_noise_lies_on_its_grid_and_has_its_width():
    steps = adaptive_clipping.lattice_count_stddev(2.5)
    drawn = noise.lattice_gaussian(bytes(32), first=0, count=200_000, stddev=steps)
    sums = np.array(
        [
            adaptive_clipping.noised_unclipped_share(3, 4, noise=int(one), denominator=1.0) - 0.5
            for one in drawn[:10_000]
        ]
    )
    np.testing.assert_array_equal(np.rint(sums * 2**adaptive_clipping.COUNT_SHIFT), drawn[:10_000] + 2**20)
    assert (drawn / 2**adaptive_clipping.COUNT_SHIFT).std() == pytest.approx(2.5, rel=0.01)


@pytest.mark.parametrize("start", [0.1, 10.0])
@pytest.mark.parametrize("count_stddev", [5.0, 0.5])
def test_the_clip_finds_the_median_norm_from_both_sides(start, count_stddev):
    """With the bit inverted it would run away from it."""
    source = np.random.default_rng(2)
    steps = adaptive_clipping.lattice_count_stddev(count_stddev)
    clip = start
    for number in range(60):
        norms = source.lognormal(0.0, 0.5, 100)
        drawn = noise.lattice_gaussian(bytes([number] * 32), first=0, count=1, stddev=steps)
        share = adaptive_clipping.noised_unclipped_share(
            int(np.count_nonzero(norms <= clip)), norms.size, noise=int(drawn[0]), denominator=norms.size
        )
        clip = next_norm(clip, share)
    assert clip == pytest.approx(1.0, abs=0.15)


def test_the_clip_finds_another_quantile():
    norms = np.random.default_rng(3).lognormal(0.0, 0.5, (200, 1000))
    clip = 0.1
    for row in norms:
        clip = next_norm(clip, float(np.mean(row <= clip)), target=0.9)
    assert clip == pytest.approx(math.exp(0.5 * 1.2816), rel=0.05)


@given(st.floats(1e-3, 1e3), st.floats(-1e9, 1e9), st.floats(0.01, 0.99), st.floats(1e-3, 1))
def test_the_clip_moves_towards_the_quantile_within_its_bounds(clip, share, target, rate):
    moved = next_norm(clip, share, target=target, rate=rate)
    assert BOUNDS[0] <= moved <= BOUNDS[1]
    assert (moved <= clip) if share >= target else (moved >= clip)
    freely = clip * math.exp(-rate * (share - target)) if abs(share) < 10 else moved
    assert moved == pytest.approx(min(max(freely, BOUNDS[0]), BOUNDS[1]))
