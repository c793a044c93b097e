"""Skellam noise from a key: exactly the distribution it claims, alone and summed over clients, and the same bits."""

import itertools
import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from fl_protocol.privacy import skellam as module
from fl_protocol.privacy.shared_noise import MAX_PART_VARIANCE, MAX_PARTS
from fl_protocol.privacy.skellam import add_skellam, parts_of, skellam, thresholds

KEY = bytes(range(32))
UNLIKELY = 1e-6
TILE = 1 << 14
DRAWS = 1_000_000


def mass(variance, magnitudes):
    """The probability of each value and of its opposite, by scipy's exponentially scaled Bessel functions."""
    return special.ive(magnitudes, variance)


def word(element, part=0):
    """Gives an element's word by encrypting its counter block alone: stream 2^8 + part, two words a block."""
    ecb = Cipher(algorithms.AES256(KEY), modes.ECB()).encryptor()
    block = ecb.update((256 + part).to_bytes(8, "big") + (element // 2).to_bytes(8, "big"))
    return int.from_bytes(block[element % 2 * 8 :][:8], "little")


def by_hand(element, variance):
    """Inverts the distribution of the magnitude at the upper 63 bits; the lowest one is the sign."""
    uniform, magnitude = (word(element) >> 1) / 2**63, 0
    below = mass(variance, 0)
    while below <= uniform:
        magnitude += 1
        below += 2 * mass(variance, magnitude)
    return -magnitude if word(element) % 2 else magnitude


@pytest.mark.parametrize("first", [0, 1, TILE - 3, 2**40 + 1])
def test_an_element_is_a_function_of_the_key_and_its_number(first):
    expected = [by_hand(first + offset, 6.25) for offset in range(200)]
    assert skellam(KEY, first=first, count=200, variance=6.25).tolist() == expected


@pytest.mark.parametrize("variance", [6.25, 2.0**24, 2.5e9])
@settings(max_examples=8, deadline=None)
@given(first=st.integers(0, 3 * TILE), cuts=st.lists(st.integers(0, 2 * TILE), max_size=6))
def test_any_split_gives_the_same_bits(variance, first, cuts):
    whole = skellam(KEY, first=first, count=2 * TILE, variance=variance)
    edges = [0, *sorted(cuts), 2 * TILE]
    parts = [
        skellam(KEY, first=first + begin, count=end - begin, variance=variance)
        for begin, end in itertools.pairwise(edges)
    ]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("variance", [0.3, 7.0, 2.0**24 * 1.2, MAX_PART_VARIANCE])
def test_the_table_has_the_exact_probabilities_and_adds_up_to_one(variance):
    table = thresholds(variance)
    assert int(table[-1]) == 2**63
    # To where a probability is some thousand steps of the table, 2^-63 each.
    magnitudes = np.arange(1, int(7 * math.sqrt(variance)) + 2)
    counts = np.diff(table)[: magnitudes.size].astype(np.float64)
    exact = 2 * mass(variance, magnitudes)[: counts.size]
    np.testing.assert_allclose(counts / 2**63, exact, rtol=1e-9, atol=2**-63)
    assert int(table[0]) / 2**63 == pytest.approx(mass(variance, 0), rel=1e-9)


def test_a_uniform_on_an_edge_of_the_table_belongs_to_the_larger_magnitude(monkeypatch):
    table = thresholds(7.0)
    uniforms = np.concatenate((table[:5] - 1, table[:5]))

    def given_words(_key, *, words, **_which):
        words[:] = uniforms << np.uint64(1)

    monkeypatch.setattr(module, "keystream", given_words)
    assert skellam(KEY, first=0, count=10, variance=7.0).tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 4, 5]


def fit(drawn, variance, *, num_bins=60):
    """Gives the probability of a chi-squared statistic as large, over bins of about equal expected counts."""
    reach = math.ceil(9 * math.sqrt(variance)) + 40
    values = np.arange(-reach, reach + 1)
    cumulated = np.cumsum(mass(variance, np.abs(values)))
    edges = np.unique(np.searchsorted(cumulated, np.linspace(0, 1, num_bins + 1)[1:-1]))
    inside = np.diff(np.concatenate(([0], cumulated[edges], [1])))
    counted = np.bincount(np.searchsorted(values[edges], drawn, side="left"), minlength=inside.size)
    return stats.chisquare(counted, inside * drawn.size).pvalue


@pytest.mark.parametrize("variance", [0.4, 12.5, 1e4, 2.0**24 * 1.25])
def test_draws_have_the_exact_distribution(variance):
    assert fit(skellam(KEY, first=0, count=DRAWS, variance=variance), variance) > UNLIKELY


def test_the_fit_tells_another_distribution():
    drawn = skellam(KEY, first=0, count=DRAWS, variance=1e4)
    assert fit(drawn, 1.02e4) < UNLIKELY
    assert fit(drawn + 1, 1e4) < UNLIKELY
    assert fit(np.rint(np.random.default_rng(1).normal(0, math.sqrt(12.5), DRAWS)), 12.5) < UNLIKELY


@pytest.mark.parametrize("variance", [3.0, 2.0**20])
def test_the_sum_of_clients_has_their_summed_variance_and_is_skellam_again(variance):
    total = np.zeros(DRAWS, dtype=np.int64)
    for client in range(10):
        add_skellam(total, key=bytes([client, *range(31)]), first=0, variance=variance)
    assert fit(total, 10 * variance) > UNLIKELY
    assert total.var() == pytest.approx(10 * variance, rel=6 * math.sqrt(2 / DRAWS))


def test_a_large_variance_is_a_sum_of_parts_of_other_streams():
    variance = 2.4e9
    drawn = skellam(KEY, first=5, count=200_000, variance=variance)
    assert parts_of(variance) == 3
    assert drawn.var() == pytest.approx(variance, rel=6 * math.sqrt(2 / drawn.size))
    assert stats.kstest(drawn / math.sqrt(variance), stats.norm.cdf).pvalue > UNLIKELY
    expected = skellam(KEY, first=5, count=1000, variance=8e8)
    assert abs(np.corrcoef(drawn[:1000] - expected, expected)[0, 1]) < 0.2


def test_noise_is_added_in_place_and_another_key_gives_other_noise():
    totals = np.arange(50_000) - 25_000
    before = totals.copy()
    add_skellam(totals, key=KEY, first=77, variance=9e6)
    drawn = skellam(KEY, first=77, count=totals.size, variance=9e6)
    np.testing.assert_array_equal(totals - before, drawn)
    others = skellam(bytes(32), first=77, count=totals.size, variance=9e6)
    assert abs(np.corrcoef(drawn, others)[0, 1]) < 0.03


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, MAX_PARTS * MAX_PART_VARIANCE * 1.001])
def test_a_variance_that_is_not_offered_is_refused(variance):
    with pytest.raises(ValueError, match="variance"):
        skellam(KEY, first=0, count=1, variance=variance)


def test_what_is_not_a_key_or_an_element_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        skellam(KEY[:31], first=0, count=1, variance=1.0)
    with pytest.raises(ValueError, match="counted from 0"):
        skellam(KEY, first=-1, count=1, variance=1.0)
