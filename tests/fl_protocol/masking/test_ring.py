"""The ring holds every sum that honest clients can make, by a hair; packing is exact; the range checks see the rest."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl_protocol.masking import ring
from fl_protocol.masking.errors import RingError
from fl_protocol.masking.quantisation import clipping_factor, quantise, weight_of
from fl_protocol.masking.ring import Extra, Ring, SumMeasure, choose_ring, ring_of_step

KEY = bytes(range(32))
WIDTHS = st.sampled_from(ring.WIDTHS)


@pytest.mark.parametrize(
    ("max_members", "bits", "levels"),
    [(10, 24, 838_859), (100, 24, 83_885), (250, 24, 33_553), (256, 32, 8_388_606), (1000, 32, 2_147_482)],
)
def test_the_widths_of_the_specification_for_unweighted_updates(max_members, bits, levels):
    chosen = choose_ring(max_members=max_members, max_abs=2.0)
    assert (chosen.bits, chosen.levels, chosen.step) == (bits, levels, 2.0 / levels)


def test_the_widths_of_the_specification_for_weights_up_to_255():
    assert choose_ring(max_members=256, max_weight=255, max_abs=1.0).bits == 32
    assert choose_ring(max_members=257, max_weight=255, max_abs=1.0).bits == 40


@settings(max_examples=200, deadline=None)
@given(
    max_members=st.integers(1, 10_000),
    max_weight=st.integers(1, 255),
    headroom=st.integers(0, 2**40),
    min_levels=st.sampled_from([32, 2**10, 2**15, 2**20]),
)
@example(max_members=256, max_weight=1, headroom=0, min_levels=32)
def test_a_full_sum_fits_and_a_finer_grid_would_wrap(max_members, max_weight, headroom, min_levels):
    chosen = choose_ring(
        max_members=max_members, max_weight=max_weight, max_abs=1.0, headroom=headroom, min_levels=min_levels
    )
    largest = 2 ** (chosen.bits - 1) - 1
    assert max_members * (chosen.levels * max_weight + 1) + headroom <= largest
    assert max_members * max_weight * (chosen.levels + 2) + headroom > largest
    narrower = ring.WIDTHS[: ring.WIDTHS.index(chosen.bits)]
    if narrower:
        assert max_members * max_weight * (min_levels + 1) + headroom > 2 ** (narrower[-1] - 1) - 1


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("max_members", "max_weight", "min_levels"),
    [(5, 1, 2**10), (100, 1, 2**15), (10, 255, 2**15), (300, 255, 2**15), (20, 255, 2**25), (100, 255, 2**30)],
)
def test_everybody_at_the_bound_adds_up_exactly_and_one_byte_less_would_wrap(max_members, max_weight, min_levels, sign):
    chosen = choose_ring(max_members=max_members, max_weight=max_weight, max_abs=0.5, min_levels=min_levels)
    values = np.full(3, 0.5 * sign)
    quantised = quantise(values, ring=chosen, key=KEY, weight=max_weight)
    assert quantised.tolist() == [sign * chosen.levels * max_weight] * 3
    packed = [ring.pack(ring.to_words(quantised, chosen), chosen.bits)] * max_members
    total = sum((ring.unpack(body, chosen.bits) for body in packed), np.zeros(3, dtype=chosen.dtype))
    expected = max_members * quantised
    np.testing.assert_array_equal(ring.signed(total, chosen.bits), expected)
    if chosen.bits > 16:
        narrower = ring.WIDTHS[ring.WIDTHS.index(chosen.bits) - 1]
        assert (ring.signed(total, narrower) != expected).all()


def test_in_64_bits_the_bound_is_the_next_float_towards_zero():
    chosen = choose_ring(max_members=100, max_weight=255, max_abs=0.5, min_levels=2**40)
    assert chosen.bits == 64
    (value,) = quantise(np.array([0.5]), ring=chosen, key=KEY, weight=255).tolist()
    assert chosen.levels * 255 * (1 - 2.0**-52) < value <= chosen.levels * 255
    total = np.full(1, value).astype(np.uint64) * np.uint64(100)
    assert ring.signed(total, 64).tolist() == [100 * value]


def test_an_extra_widens_the_ring():
    plain = choose_ring(max_members=10, max_abs=1.0)
    assert plain.bits == 24
    assert choose_ring(max_members=10, max_abs=1.0, extras=[Extra("loss", (2**23 - 1) // 10)]) == Ring(
        24, plain.step, plain.levels, 1.0, 10, extras=(Extra("loss", (2**23 - 1) // 10),)
    )
    assert choose_ring(max_members=10, max_abs=1.0, extras=[Extra("loss", (2**23 - 1) // 10 + 1)]).bits == 32


@pytest.mark.parametrize(
    ("choice", "field"),
    [
        ({"max_members": 2**30, "max_weight": 2**20, "max_abs": 1.0}, "max_members"),
        ({"max_members": 100, "max_abs": 1.0, "headroom": 2**63}, "max_members"),
        ({"max_members": 100, "max_abs": 1.0, "extras": [Extra("loss", 2**60)]}, "extras.loss"),
        ({"max_members": 0, "max_abs": 1.0}, "max_members"),
        ({"max_members": 1, "max_abs": 0.0}, "max_abs"),
        ({"max_members": 1, "max_abs": math.nan}, "max_abs"),
        ({"max_members": 1, "max_abs": math.inf}, "max_abs"),
        ({"max_members": 1, "max_weight": 0, "max_abs": 1.0}, "max_weight"),
        ({"max_members": 1, "headroom": -1, "max_abs": 1.0}, "headroom"),
    ],
)
def test_what_64_bits_do_not_hold_is_refused_by_name(choice, field):
    with pytest.raises(RingError) as refusal:
        choose_ring(**choice)
    assert refusal.value.field == field


def test_a_given_grid_takes_the_narrowest_ring_that_holds_it():
    chosen = ring_of_step(step=2.0**-12, max_members=100, max_abs=1.0, headroom=50_000)
    assert (chosen.bits, chosen.levels, chosen.step) == (24, 4096, 2.0**-12)
    fits = 2**23 - 1 - 100 * 4097
    assert ring_of_step(step=2.0**-12, max_members=100, max_abs=1.0, headroom=fits).bits == 24
    assert ring_of_step(step=2.0**-12, max_members=100, max_abs=1.0, headroom=fits + 1).bits == 32
    for step in (0.0, 1.1, math.nan):
        with pytest.raises(RingError, match="step"):
            ring_of_step(step=step, max_members=100, max_abs=1.0, headroom=0)
    with pytest.raises(RingError, match="64 bits"):
        ring_of_step(step=2.0**-60, max_members=100, max_abs=1.0, headroom=0)


@settings(max_examples=100, deadline=None)
@given(bits=WIDTHS, data=st.data())
def test_packing_keeps_every_integer_of_the_ring(bits, data):
    values = data.draw(st.lists(st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), max_size=40))
    words = np.array(values, dtype=np.int64).astype(np.uint32 if bits <= 32 else np.uint64)
    packed = ring.pack(words, bits)
    assert packed == b"".join(value.to_bytes(bits // 8, "little", signed=True) for value in values)
    for body in (packed, bytearray(packed), memoryview(packed)):
        assert ring.signed(ring.unpack(body, bits), bits).tolist() == values
    if bits > 16:
        with pytest.raises(RingError, match="multiple"):
            ring.unpack(packed + b"\0", bits)


def test_rounding_is_without_bias_and_off_by_less_than_a_step():
    chosen = choose_ring(max_members=100, max_abs=1.0)
    values = np.full(200_000, 1234.25 * chosen.step)
    quantised = quantise(values, ring=chosen, key=KEY)
    assert set(quantised.tolist()) == {1234, 1235}
    # The mean of 200000 coins of 1/4 has a standard deviation of 0.00097.
    assert abs(quantised.mean() - 1234.25) < 0.005
    other = quantise(values, ring=chosen, key=bytes(32))
    assert (other != quantised).any()


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(0, 1000), weight=st.integers(1, 255))
def test_windows_of_an_update_are_quantised_like_the_whole(cut, weight):
    chosen = choose_ring(max_members=100, max_weight=255, max_abs=3.0)
    values = np.linspace(-3, 3, 1000).astype(np.float32)
    whole = quantise(values, ring=chosen, key=KEY, factor=0.7, weight=weight)
    parts = [quantise(values[:cut], ring=chosen, key=KEY, factor=0.7, weight=weight)]
    parts.append(quantise(values[cut:], ring=chosen, key=KEY, factor=0.7, weight=weight, first=cut))
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    exact = weight * 0.7 * values.astype(np.float64) / chosen.step
    assert (np.abs(whole - exact) <= 1).all()


@pytest.mark.parametrize("value", [1.01, -1.01, math.inf, -math.inf, math.nan])
def test_a_value_beyond_the_bound_is_refused_with_its_place(value):
    chosen = choose_ring(max_members=100, max_abs=1.0)
    values = np.zeros(10)
    values[3] = value
    with pytest.raises(RingError, match="element 1003 is"):
        quantise(values, ring=chosen, key=KEY, first=1000)
    with pytest.raises(RingError, match="weight: 2 is not in 1 to 1"):
        quantise(np.zeros(1), ring=chosen, key=KEY, weight=2)


def test_what_float32_adds_to_the_bound_is_put_back_on_it():
    chosen = choose_ring(max_members=3, max_abs=0.1, min_levels=2**40)
    value = np.array([0.1], dtype=np.float32)
    assert float(value[0]) > 0.1
    assert quantise(value, ring=chosen, key=KEY).tolist() == [chosen.levels]
    assert quantise(-value, ring=chosen, key=KEY).tolist() == [-chosen.levels]


def test_clipping_and_weights():
    assert clipping_factor(0.0, clipping_norm=1.0) == 1.0
    assert clipping_factor(1.0, clipping_norm=1.0) == 1.0
    assert clipping_factor(16.0, clipping_norm=1.0) == 0.25
    chosen = choose_ring(max_members=100, max_weight=255, max_abs=1.0)
    weights = [weight_of(examples, unit=10, ring=chosen) for examples in (0, 4, 10, 26, 2549, 10**9)]
    assert weights == [1, 1, 1, 3, 255, 255]


EXTRAS = (Extra("weight", 7), Extra("accuracy", 2**16 * 7, scale=2.0**16))
SMALL = choose_ring(max_members=4, max_weight=7, max_abs=1.0, extras=EXTRAS)


def test_extras_are_encoded_in_the_rings_order():
    assert ring.encode_extras({"accuracy": 0.5, "weight": 3}, SMALL).tolist() == [3, 2**15]
    assert ring.encode_extras({"accuracy": -7, "weight": 7}, SMALL).tolist() == [7, -(2**16) * 7]


@pytest.mark.parametrize(
    ("extras", "field"),
    [
        ({"weight": 3}, "extras.accuracy"),
        ({"weight": 3, "accuracy": 0, "loss": 1}, "extras.loss"),
        ({"weight": 8, "accuracy": 0}, "extras.weight"),
        ({"weight": 3, "accuracy": math.nan}, "extras.accuracy"),
        ({"weight": 3, "accuracy": math.inf}, "extras.accuracy"),
        ({"weight": 3, "accuracy": -7.1}, "extras.accuracy"),
    ],
)
def test_extras_that_were_not_declared_so_are_refused_by_name(extras, field):
    with pytest.raises(RingError) as refusal:
        ring.encode_extras(extras, SMALL)
    assert refusal.value.field == field


def check(measure, extras, **changes):
    arguments = {"ring": SMALL, "num_members": 3, "num_coordinates": 100, "clipping_norm": 1.0} | changes
    ring.check_sum(measure, np.array(extras), **arguments)


def test_sums_of_honest_clients_pass_the_range_checks():
    levels = SMALL.levels
    check(SumMeasure(3 * (7 * levels + 1), 0.0), [21, 3 * 7 * 2**16])
    check(SumMeasure(0, (21 * levels) ** 2), [21, 0])
    check(SumMeasure(0, 0.0), [3, -3 * 7 * 2**16])
    check(SumMeasure(0, 1e300), [3, 0], clipping_norm=None)


@pytest.mark.parametrize(
    ("measure", "extras", "field"),
    [
        (SumMeasure(3 * (7 * SMALL.levels + 1) + 1, 0.0), [21, 0], "sum"),
        (SumMeasure(0, (21 * SMALL.levels * 1.002) ** 2), [21, 0], "sum.norm"),
        (SumMeasure(0, (21 * SMALL.levels) ** 2), [20, 0], "sum.norm"),
        (SumMeasure(0, math.nan), [21, 0], "sum.norm"),
        (SumMeasure(0, 0.0), [2, 0], "extras.weight"),
        (SumMeasure(0, 0.0), [22, 0], "extras.weight"),
        (SumMeasure(0, 0.0), [-(2**62), 0], "extras.weight"),
        (SumMeasure(0, 0.0), [3, -3 * 7 * 2**16 - 1], "extras.accuracy"),
    ],
)
def test_sums_that_no_honest_clients_could_have_sent_are_refused(measure, extras, field):
    with pytest.raises(RingError) as refusal:
        check(measure, extras)
    assert refusal.value.field == field


def test_head_room_is_for_noise_alone():
    wide = choose_ring(max_members=4, max_abs=1.0, headroom=1000)
    at_most = 3 * (wide.levels + 1) + 1000
    ring.check_sum(SumMeasure(at_most), np.array([]), ring=wide, num_members=3, num_coordinates=1)
    with pytest.raises(RingError, match="sum"):
        ring.check_sum(SumMeasure(at_most + 1), np.array([]), ring=wide, num_members=3, num_coordinates=1)


def test_measures_of_windows_join_to_that_of_the_whole():
    totals = np.array([1, -5, 3, 4, -(2**63), 2**62], dtype=np.int64)
    whole = ring.measure_sum(totals)
    assert whole.max_abs == 2**63
    joined = ring.measure_sum(totals[:4]) + ring.measure_sum(totals[4:]) + ring.measure_sum(totals[:0])
    assert joined.max_abs == whole.max_abs
    assert joined.squares == pytest.approx(whole.squares, rel=1e-15)
    assert ring.measure_sum(totals[:4]) == SumMeasure(5, 51.0)
