"""Conversions to and from float64: exact one way, one rounding the other, for every type."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from fl_protocol.dtypes import CARRIERS, as_float64, from_float64, is_finite, magnitude_bits, magnitude_from_bits

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PRECISION = {"F16": (11, -24), "BF16": (8, -133), "F32": (24, -149)}


def through_torch(values, dtype):
    converted = torch.from_numpy(values).to(TORCH[dtype])
    return converted.view(torch.int16).numpy().view(np.uint16) if dtype == "BF16" else converted.numpy()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_16_bit_pattern_survives_a_round_trip(dtype):
    values = np.arange(1 << 16, dtype=np.uint16).view(CARRIERS[dtype])
    wide = as_float64(values, dtype)
    back = from_float64(wide, dtype)
    finite = np.isfinite(wide)
    np.testing.assert_array_equal(back.view(np.uint16)[finite], values.view(np.uint16)[finite])
    expected = torch.from_numpy(values.view(np.int16).copy()).view(TORCH[dtype]).to(torch.float64).numpy()
    np.testing.assert_array_equal(wide, expected)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_rounding_agrees_with_torch_from_float32(dtype):
    source = np.random.default_rng(3)
    values = source.integers(0, 1 << 32, 300_000, dtype=np.uint32).view(np.float32)
    values = values[np.isfinite(values)].astype(np.float64)
    np.testing.assert_array_equal(
        from_float64(values, dtype).view(np.uint8), through_torch(values, dtype).view(np.uint8)
    )


def nearest_even(value, dtype):
    precision, smallest = PRECISION[dtype]
    exact = Fraction(float(value))
    if exact == 0:
        return 0.0
    exponent = max(int(np.frexp(abs(float(value)))[1]) - precision, smallest)
    return float(round(exact / Fraction(2) ** exponent) * Fraction(2) ** exponent)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_ties_and_their_neighbours_are_rounded_once(dtype):
    precision, smallest = PRECISION[dtype]
    source = np.random.default_rng(4)
    kept = source.integers(1 << (precision - 1), 1 << precision, 400).astype(np.float64)
    ties = np.ldexp(kept + 0.5, source.integers(smallest, 0, 400))
    ties = np.concatenate([ties, np.ldexp([0.5, 1.5, 2.5, 1.0], smallest)])
    values = np.concatenate([ties, np.nextafter(ties, 0), np.nextafter(ties, np.inf)])
    values = np.concatenate([values, -values])
    expected = [nearest_even(value, dtype) for value in values]
    np.testing.assert_array_equal(as_float64(from_float64(values, dtype), dtype), expected)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_what_is_too_large_becomes_infinite_and_is_seen(dtype):
    largest = {"F32": float(np.finfo(np.float32).max), "F16": 65504.0, "BF16": 2.0**128 - 2.0**120}[dtype]
    values = np.array([largest, -largest])
    assert is_finite(from_float64(values, dtype), dtype)
    for value in (1e300, -1e300, largest * 1.01, np.inf, np.nan):
        assert not is_finite(from_float64(np.array([0.0, value]), dtype), dtype)


@pytest.mark.parametrize("dtype", TORCH)
def test_the_largest_magnitude_is_found_among_both_signs(dtype):
    for values in ([1.0, -3.0, 2.0], [-1.0], [3.0, -0.0], [0.0], [-0.0]):
        bits = magnitude_bits(from_float64(np.array(values), dtype), dtype)
        assert magnitude_from_bits(bits, dtype) == max(map(abs, values))
    assert magnitude_bits(np.zeros(0, dtype=CARRIERS[dtype]), dtype) == 0


def test_integers_are_no_floats():
    with pytest.raises(ValueError, match="I64 is not"):
        as_float64(np.array([1]), "I64")
