"""The compiled loops of the exact sum: what each adds is what exact fractions say, for any size, split and address."""

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_service.domain import exact_sum
from aggregator_service.domain.exact_sum import Quantised, Sparse
from fl_protocol.dtypes import from_float64
from fl_protocol.specs.strategies import MAX_WEIGHT

SIZES = [0, 1, 2, 7, 8, 9, 63, 64, 65, 71, 128, 200]
WEIGHTS = st.one_of(st.integers(1, MAX_WEIGHT), st.floats(1e-3, 1e6))
FLOAT_TYPES = ["F64", "F32", "F16", "BF16"]


def rounded(values, factors):
    """Gives round_half_even of exact products, as what is added modulo 2^64."""
    return np.array(
        [round(Fraction(float(v)) * Fraction(float(f))) for v, f in zip(values, factors, strict=True)], "i8"
    )


def unaligned(values):
    return np.frombuffer(b"\0" + values.tobytes(), dtype=values.dtype, offset=1)


def as_float(values, dtype):
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values


def drawn(source, size, dtype):
    return from_float64(source.standard_normal(size) * 10.0 ** source.integers(-6, 3), dtype)


def packed(codes, first_in_byte):
    nibbles = np.zeros((first_in_byte + codes.size + 1) // 2 * 2, dtype=np.uint8)
    # What shares a byte with the codes must not count.
    nibbles[:] = 0xA
    nibbles[first_in_byte : first_in_byte + codes.size] = codes.view(np.uint8) & 0xF
    return nibbles[::2] | nibbles[1::2] << 4


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SIZES),
    st.lists(WEIGHTS, min_size=1, max_size=5),
    st.integers(0, 2**32),
    st.integers(-(2**63), 2**63 - 1),
)
def test_floats_are_added_as_exact_fractions_are_to_what_is_there(dtype, size, weights, seed, before):
    source = np.random.default_rng(seed)
    updates = [drawn(source, size, dtype) for _ in weights]
    shift = exact_sum.shift(
        (float(np.abs(as_float(one, dtype)).max(initial=0)), weight)
        for one, weight in zip(updates, weights, strict=True)
    )
    expected = np.full(size, before, dtype=np.int64)
    for one, weight in zip(updates, weights, strict=True):
        expected += rounded(as_float(one, dtype), [math.ldexp(weight, shift)] * size)
    accumulator = np.full(size, before, dtype=np.int64)
    exact_sum.fold_all(accumulator, [unaligned(one) for one in updates], weights=weights, shift=shift)
    np.testing.assert_array_equal(accumulator, expected)


def test_every_float16_and_bfloat16_is_read_as_it_is():
    for dtype, infinity in (("<f2", 0x7C00), ("<u2", 0x7F80)):
        bits = np.arange(2**16, dtype=np.uint16)
        values = bits[(bits & 0x7FFF) < infinity].view(dtype)
        floats = as_float(values, "BF16" if dtype == "<u2" else "F16").astype(np.float64)
        # Float16 has 40 bits in all; of bfloat16 what the grid does not hold is rounded to zero.
        held = np.abs(floats) < 2.0**26
        accumulator = np.zeros(np.count_nonzero(held), dtype=np.int64)
        exact_sum.fold(accumulator, values[held], weight=1, shift=24)
        np.testing.assert_array_equal(accumulator, np.rint(floats[held] * 2.0**24).astype(np.int64))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(SIZES),
    st.sampled_from([8, 4]),
    st.integers(1, 90),
    st.integers(0, 89),
    st.integers(0, 1),
    WEIGHTS,
    st.integers(0, 2**32),
)
def test_codes_are_added_with_the_scale_of_their_row(
    size, bits, row_elements, first_in_row, first_in_byte, weight, seed
):
    first_in_row %= row_elements
    source, most = np.random.default_rng(seed), 2 ** (bits - 1)
    codes = source.integers(-most, most, size).astype(np.int8)
    num_rows = -(-(first_in_row + size) // row_elements)
    scales = (source.random(num_rows) * 1e-3).astype(np.float32)
    shift = exact_sum.shift([(float(scales.max(initial=0)) * most, weight)])
    accumulator = np.zeros(size, dtype=np.int64)
    if bits == 8:
        summand = Quantised(codes, scales, row_elements, first_in_row)
    else:
        summand = Quantised(packed(codes, first_in_byte), scales, row_elements, first_in_row, first_in_byte)
    exact_sum.fold(accumulator, summand, weight=weight, shift=shift)
    factors = np.ldexp(scales.astype(np.float64) * weight, shift)[(first_in_row + np.arange(size)) // row_elements]
    np.testing.assert_array_equal(accumulator, rounded(codes, factors))


def test_several_updates_of_codes_are_added_in_one_pass():
    source = np.random.default_rng(3)
    codes = [source.integers(-127, 128, 100).astype(np.int8) for _ in range(5)]
    scales, weights = [source.random(3).astype(np.float32) for _ in codes], [5, 1, 7, 2, 9]
    together, apart = np.zeros(100, dtype=np.int64), np.zeros(100, dtype=np.int64)
    summands = [Quantised(one, scale, 40, 3) for one, scale in zip(codes, scales, strict=True)]
    exact_sum.fold_all(together, summands, weights=weights, shift=30)
    for one, weight in zip(summands, weights, strict=True):
        exact_sum.fold(apart, one, weight=weight, shift=30)
    np.testing.assert_array_equal(together, apart)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 99), max_size=99), WEIGHTS, st.integers(0, 2**32))
def test_sparse_values_are_added_at_their_indices_and_nowhere_else(indices, weight, seed):
    source = np.random.default_rng(seed)
    values, places = drawn(source, len(indices), "F32"), np.array(sorted(indices), dtype=np.uint32)
    shift = exact_sum.shift([(float(np.abs(values).max(initial=0)), weight)])
    accumulator, expected = np.full(100, -5, dtype=np.int64), np.full(100, -5, dtype=np.int64)
    exact_sum.fold(accumulator, Sparse(places, values), weight=weight, shift=shift)
    expected[places] += rounded(values, [math.ldexp(weight, shift)] * values.size)
    np.testing.assert_array_equal(accumulator, expected)


def test_nothing_beyond_the_accumulator_is_touched():
    around = np.full(300, 7, dtype=np.int64)
    exact_sum.fold(around[100:171], np.ones(71, dtype=np.float32), weight=1, shift=0)
    assert around.tolist() == [7] * 100 + [8] * 71 + [7] * 129


ONE = np.ones(3, dtype=np.float32)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda sums: exact_sum.fold(sums, ONE, weight=1, shift=0),
        lambda sums: exact_sum.fold(sums, np.ones(8, np.float32)[::2], weight=1, shift=0),
        lambda sums: exact_sum.fold(sums, np.ones(4, np.int32), weight=1, shift=0),
        lambda sums: exact_sum.fold(sums, np.ones(4, ">f4"), weight=1, shift=0),
        lambda sums: exact_sum.fold(np.zeros(8, np.int64)[::2], np.ones(4, np.float32), weight=1, shift=0),
        lambda sums: exact_sum.fold(np.zeros(4), np.ones(4, np.float32), weight=1, shift=0),
        lambda sums: exact_sum.fold(sums, Sparse(np.array([0, 2, 4], np.uint32), ONE), weight=1, shift=0),
        lambda sums: exact_sum.fold(sums, Sparse(np.array([0, 2], np.uint32), ONE), weight=1, shift=0),
        lambda sums: exact_sum.fold(sums, Quantised(np.ones(4, np.int8), ONE[:1], 2), weight=1, shift=0),
        lambda sums: exact_sum.fold(sums, Quantised(np.ones(4, np.int8), ONE[:2], 2, 2), weight=1, shift=0),
        lambda sums: exact_sum.fold(sums, Quantised(np.ones(4, np.int8), ONE[:1], 4, 0, 1), weight=1, shift=0),
        lambda sums: exact_sum.fold(sums, Quantised(np.ones(1, np.uint8), ONE[:1], 4), weight=1, shift=0),
        lambda sums: exact_sum.fold_all(sums, [np.ones(4), np.ones(4, np.float32)], weights=[1, 1], shift=0),
        lambda sums: exact_sum.fold_all(sums, [np.ones(4), np.ones(4)], weights=[1], shift=0),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_anything_is_read(wrong):
    sums = np.zeros(4, dtype=np.int64)
    with pytest.raises(ValueError, match=r"added|accumulator|beyond"):
        wrong(sums)
    assert not sums.any()


def test_threads_that_meet_at_the_first_use_all_get_the_sum():
    program = """
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from aggregator_service.domain import exact_sum
from aggregator_service.domain.exact_sum import Quantised, Sparse
def add(number):
    sums = np.zeros(1000, dtype=np.int64)
    exact_sum.fold(sums, np.full(1000, number, dtype=np.float32), weight=3, shift=4)
    return set(sums.tolist())
with ThreadPoolExecutor(8) as pool:
    assert list(pool.map(add, range(8))) == [{48 * number} for number in range(8)]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


WHOLE, FRACTIONAL, TINY = 0.25, 0.1, 1e-9


@pytest.mark.parametrize("num_updates", [7, 8, 9, 16])
@pytest.mark.parametrize(("row", "first", "size"), [(256, 0, 1024), (300, 211, 1000), (784, 0, 3136), (5000, 7, 900)])
@pytest.mark.parametrize("kinds", [[WHOLE], [WHOLE, FRACTIONAL], [WHOLE, TINY, WHOLE, WHOLE]])
def test_int8_of_many_updates_is_added_as_of_one_after_the_other(num_updates, row, first, size, kinds):
    """Codes of rows whose factors are whole may be multiplied by another loop; one update alone never is."""
    source = np.random.default_rng(num_updates)
    num_rows = (first + size - 1) // row + 1
    scales = np.array([kinds[number % len(kinds)] for number in range(num_rows)], dtype=np.float32)
    updates = [
        Quantised(unaligned(source.integers(-128, 128, size, dtype=np.int8)), scales * np.float32(part), row, first)
        for part in source.integers(1, 2**20, num_updates)
    ]
    weights = source.integers(1, 2**9, num_updates).tolist()
    before = source.integers(-(2**63), 2**63 - 1, size)
    expected, accumulator = before.copy(), before.copy()
    for one, weight in zip(updates, weights, strict=True):
        exact_sum.fold(expected, one, weight=weight, shift=16)
    exact_sum.fold_all(accumulator, updates, weights=weights, shift=16)
    np.testing.assert_array_equal(accumulator, expected)


def test_the_largest_and_smallest_codes_meet_the_largest_factors():
    size, row = 512, 256
    # Just below the most that a contribution may be, 2^51, in every update.
    factor = float(2**44 - 2**20)
    for code in (-128, -127, 127):
        updates = [Quantised(np.full(size, code, dtype=np.int8), np.ones(2, dtype=np.float32), row) for _ in range(8)]
        accumulator = np.zeros(size, dtype=np.int64)
        exact_sum.fold_all(accumulator, updates, weights=[factor] * 8, shift=0)
        np.testing.assert_array_equal(accumulator, np.full(size, 8 * code * int(factor)))
