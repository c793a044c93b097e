"""Noise from a key: each element depends on the key and its number alone, and has the distribution it claims."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fl_protocol.privacy import noise

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
UNLIKELY = 1e-6
TILE = 1 << 14

DRAWS = {
    "gaussian": noise.gaussian,
    "laplace": noise.laplace,
    "lattice_gaussian": lambda key, **which: noise.lattice_gaussian(key, stddev=5e9, **which),
    "lattice_laplace": lambda key, **which: noise.lattice_laplace(key, scale=5e9, **which),
}


def words(element):
    """Gives the two words of an element by encrypting its counter block alone."""
    ecb = Cipher(algorithms.AES256(KEY), modes.ECB()).encryptor()
    block = ecb.update(element.to_bytes(16, "big"))
    return int.from_bytes(block[:8], "little"), int.from_bytes(block[8:], "little")


def gaussian_by_hand(element):
    (high, angle), (low, _) = words(element // 2 * 2), words(element // 2 * 2 + 1)
    radius = math.sqrt(-2 * math.log((high * 2**64 + low + 1) / 2**128))
    turn = 2 * math.pi * (angle / 2**64)
    return radius * (math.sin(turn) if element % 2 else math.cos(turn))


def laplace_by_hand(element):
    first, second = words(element)
    magnitude = -math.log(((first >> 1) * 2**64 + second + 1) / 2**127)
    return -magnitude if first % 2 else magnitude


@pytest.mark.parametrize("first", [0, 1, 127, 128, TILE - 3, 2**40 + 1, 2**64 - 2, 2**90])
def test_an_element_is_a_function_of_the_key_and_its_number(first):
    count = 300
    by_hand = [gaussian_by_hand(first + offset) for offset in range(count)]
    np.testing.assert_allclose(noise.gaussian(KEY, first=first, count=count), by_hand, rtol=1e-13, atol=1e-15)
    by_hand = [laplace_by_hand(first + offset) for offset in range(count)]
    np.testing.assert_allclose(noise.laplace(KEY, first=first, count=count), by_hand, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=[*DRAWS])
@settings(max_examples=20, deadline=None)
@given(first=st.integers(0, 3 * TILE), cuts=st.lists(st.integers(0, 3 * TILE), max_size=8))
def test_any_split_gives_the_same_bits(draw, first, cuts):
    whole = draw(KEY, first=first, count=3 * TILE)
    edges = [0, *sorted(cuts), 3 * TILE]
    parts = [draw(KEY, first=first + begin, count=end - begin) for begin, end in itertools.pairwise(edges)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_single_elements_have_the_bits_of_a_long_run():
    whole = noise.gaussian(KEY, first=0, count=1000)
    assert b"".join(noise.gaussian(KEY, first=at, count=1).tobytes() for at in range(1000)) == whole.tobytes()


def test_noise_on_the_lattice_is_the_rounded_draw_and_is_added_in_place():
    totals = np.arange(50_000) - 25_000
    before = totals.copy()
    noise.add_lattice_gaussian(totals, key=KEY, first=77, stddev=1234.5)
    added = noise.lattice_gaussian(KEY, first=77, count=totals.size, stddev=1234.5)
    np.testing.assert_array_equal(totals - before, added)
    np.testing.assert_array_equal(added, np.rint(1234.5 * noise.gaussian(KEY, first=77, count=totals.size)))
    noise.add_lattice_laplace(totals, key=KEY, first=77, scale=9.5)
    np.testing.assert_array_equal(
        totals - before - added, np.rint(9.5 * noise.laplace(KEY, first=77, count=totals.size))
    )


def test_another_key_gives_other_noise():
    ours, others = (noise.gaussian(key, first=0, count=1_000_000) for key in (KEY, OTHER_KEY))
    assert abs(np.corrcoef(ours, others)[0, 1]) < 5e-3
    assert np.unique(np.concatenate((ours, others))).size == 2_000_000


def test_no_draw_is_farther_out_than_the_bounds_say():
    normals, variables = np.empty(2), np.empty(1)
    noise._box_muller(np.zeros(4, dtype=np.uint64), normals)
    assert normals[0] == pytest.approx(math.sqrt(2 * 128 * math.log(2)))
    assert normals[0] <= noise.MAX_ABS_GAUSSIAN
    noise._inverse_laplace(np.zeros(2, dtype=np.uint64), variables)
    assert variables[0] == pytest.approx(127 * math.log(2))
    assert variables[0] <= noise.MAX_ABS_LAPLACE
    noise._box_muller(np.full(4, 2**64 - 1, dtype=np.uint64), normals)
    noise._inverse_laplace(np.full(2, 2**64 - 1, dtype=np.uint64), variables)
    assert normals.tolist() == [0, 0]
    assert variables.tolist() == [0]


def test_the_tails_are_finer_than_the_grid():
    """Draws of one in 2^60 still differ by less than a step of a grid that the noise spans 2^33 steps of."""
    pairs = np.zeros((3, 4), dtype=np.uint64)
    pairs[:, 0] = 12
    pairs[:, 2] = [2**63, 2**63 + 2**28, 2**63 + 2**29]
    normals = np.empty(6)
    noise._box_muller(pairs.reshape(-1), normals)
    far = normals[::2] * 2**33
    assert 0 < far[0] - far[1] < 1
    assert 0 < far[1] - far[2] < 1


@pytest.mark.parametrize(("key", "which"), [(KEY[:31], (0, 1)), (b"", (0, 1)), (KEY, (-1, 5))])
def test_what_is_not_a_key_or_a_number_of_an_element_is_refused(key, which):
    with pytest.raises(ValueError, match=r"noise key has 32 bytes|counted from 0") as error:
        noise.gaussian(key, first=which[0], count=which[1])
    assert key.hex() == "" or key.hex() not in str(error.value)


@pytest.mark.parametrize("width", [0.0, -1.0, math.nan, math.inf, 2.0**56])
def test_noise_of_no_width_or_beyond_64_bits_is_refused(width):
    for add in (
        lambda totals: noise.add_lattice_gaussian(totals, key=KEY, first=0, stddev=width),
        lambda totals: noise.add_lattice_laplace(totals, key=KEY, first=0, scale=width),
    ):
        totals = np.zeros(10, dtype=np.int64)
        with pytest.raises(ValueError, match="width"):
            add(totals)
        assert not totals.any()


def test_memory_does_not_grow_with_the_totals():
    totals = np.zeros(4_000_000, dtype=np.int64)
    tracemalloc.start()
    noise.add_lattice_gaussian(totals, key=KEY, first=0, stddev=1e9)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert totals.any()
    assert peak < 2 << 20


def chi_squared_p(drawn, distribution, *, reach):
    """Compares integers with rint of a continuous variable; what is beyond `reach` counts together."""
    edges = np.arange(-reach, reach + 1) + 0.5
    probabilities = np.diff(np.concatenate(([0.0], distribution.cdf(edges), [1.0])))
    counted = np.bincount(np.clip(drawn, -reach, reach + 1) + reach, minlength=2 * reach + 2)
    return stats.chisquare(counted, probabilities * drawn.size).pvalue


@pytest.mark.parametrize(("width", "reach"), [(2.0, 9), (50.0, 190)])
def test_draws_on_the_lattice_have_the_exact_distribution(width, reach):
    drawn = noise.lattice_gaussian(KEY, first=5, count=2_000_000, stddev=width)
    assert chi_squared_p(drawn, stats.norm(scale=width), reach=reach) > UNLIKELY
    drawn = noise.lattice_laplace(KEY, first=5, count=2_000_000, scale=width)
    assert chi_squared_p(drawn, stats.laplace(scale=width), reach=2 * reach) > UNLIKELY


def test_standard_normals_have_the_moments_and_no_memory():
    count = 2_000_000
    drawn = noise.gaussian(KEY, first=0, count=count)
    # Five standard errors of each statistic.
    assert abs(drawn.mean()) < 5 / math.sqrt(count)
    assert abs(drawn.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs(stats.skew(drawn)) < 5 * math.sqrt(6 / count)
    assert abs(stats.kurtosis(drawn)) < 5 * math.sqrt(24 / count)
    assert stats.kstest(drawn[:200_000], "norm").pvalue > UNLIKELY
    for values in (drawn, drawn**2, np.abs(drawn)):
        for lag in (1, 2, 3, 128, TILE):
            assert abs(np.corrcoef(values[lag:], values[:-lag])[0, 1]) < 5 / math.sqrt(count)
    pairs = drawn.reshape(-1, 2)
    assert abs(np.corrcoef(pairs[:, 0] ** 2, pairs[:, 1] ** 2)[0, 1]) < 5 / math.sqrt(count / 2)
    beyond = np.count_nonzero(np.abs(drawn) > 4)
    assert stats.binomtest(beyond, count, 2 * stats.norm.sf(4)).pvalue > UNLIKELY


def test_laplace_variables_have_the_moments_and_a_fair_sign():
    count = 2_000_000
    drawn = noise.laplace(KEY, first=0, count=count)
    assert abs(drawn.mean()) < 5 * math.sqrt(2 / count)
    assert abs(np.abs(drawn).mean() - 1) < 5 / math.sqrt(count)
    assert stats.binomtest(np.count_nonzero(drawn < 0), count).pvalue > UNLIKELY
    assert abs(np.corrcoef(np.sign(drawn), np.abs(drawn))[0, 1]) < 5 / math.sqrt(count)
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 5 / math.sqrt(count)
