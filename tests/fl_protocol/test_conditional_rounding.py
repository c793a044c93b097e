"""Rounding on the grid that never lengthens an update beyond what its noise is made for, and on average not at all."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.privacy import conditional_rounding
from fl_protocol.privacy.distributed import DistributedRelease, rounded_norm

KEY = bytes(range(32))


def round_conditionally(tensors, **how):
    """Rounds windows of an update, and gives it in one."""
    return np.concatenate(list(conditional_rounding.round_conditionally(lambda: tensors, **how)))


def bound(size, scale, norm=1.0):
    return rounded_norm(DistributedRelease(norm, size, scale, 1.0)) * scale


def clipped(size, seed, norm=1.0):
    values = np.random.default_rng(seed).standard_normal(size)
    return values * norm / np.linalg.norm(values)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 400),
    scale=st.floats(0.5, 1e6),
    seed=st.integers(0, 2**20),
    key=st.binary(min_size=32, max_size=32),
)
def test_a_rounded_update_is_never_longer_than_the_noise_is_made_for(size, scale, seed, key):
    values = clipped(size, seed)
    rounded = round_conditionally([values], scale=scale, max_norm=bound(size, scale), key=key)
    assert math.isqrt(int(np.dot(rounded, rounded))) <= bound(size, scale)
    assert np.all((rounded == np.floor(values * scale)) | (rounded == np.ceil(values * scale)))


def test_a_draw_that_is_too_long_is_drawn_anew_with_other_coins():
    """One element halfway between two steps: its upper neighbour is too long, and half of the first draws are it."""
    values, keys = np.array([0.5]), [bytes([at, *range(31)]) for at in range(64)]
    free = [int(round_conditionally([values], scale=1.0, max_norm=1.0, key=key)[0]) for key in keys]
    held = [int(round_conditionally([values], scale=1.0, max_norm=0.9, key=key)[0]) for key in keys]
    assert set(free) == {0, 1}
    assert set(held) == {0}
    pairs = [np.array([0.5, 0.5])]
    drawn = [tuple(round_conditionally(pairs, scale=1.0, max_norm=1.0, key=key).tolist()) for key in keys]
    assert set(drawn) == {(0, 0), (0, 1), (1, 0)}
    # Every second draw of many is too long; were it drawn with the same coins again, all of these would end as zeros.
    many = [round_conditionally([np.full(21, 0.5)], scale=1.0, max_norm=math.sqrt(10), key=key) for key in keys]
    assert 1 < min(each.sum() for each in many) < max(each.sum() for each in many) <= 10


def test_after_the_last_try_an_update_is_rounded_towards_zero():
    tensors = [np.array([0.75, -0.75]), np.array([1.99])]
    rounded = round_conditionally(tensors, scale=1.0, max_norm=1.0, key=KEY, max_tries=3)
    assert rounded.tolist() == [0, 0, 1]


def test_rounding_is_right_on_average_and_its_coins_are_the_elements_own():
    size = 100_000
    values = np.full(size, 0.3)
    rounded = round_conditionally([values], scale=1.0, max_norm=size, key=KEY)
    assert rounded.mean() == pytest.approx(0.3, abs=6 * math.sqrt(0.21 / size))
    split = [values[:1], values[1:20_000], values[20_000:]]
    assert round_conditionally(split, scale=1.0, max_norm=size, key=KEY).tobytes() == rounded.tobytes()
    assert round_conditionally([values], scale=1.0, max_norm=size, key=bytes(32)).tobytes() != rounded.tobytes()


def test_hardly_any_draw_is_rejected_on_a_grid_as_fine_as_a_run_s():
    size = 2**17
    values, scale = clipped(size, 3), 8 * math.sqrt(2**17)
    first = [round_conditionally([values], scale=scale, max_norm=math.inf, key=bytes([at] * 32)) for at in range(20)]
    lengths = [math.sqrt(int(np.dot(each, each))) for each in first]
    assert sum(length <= bound(size, scale) for length in lengths) >= 18
