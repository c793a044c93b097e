"""Discounts against the papers' formulas, and a buffer's step against exact fractions, in any order of arrival."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_service.domain.staleness import discount, discounted
from aggregator_service.flow.fold import SealedUpdate, aggregate
from fl_protocol.arrays import decode, encode
from fl_protocol.runs import RunSpec
from fl_protocol.specs.staleness import ConstantStaleness, HingeStaleness, PolynomialStaleness
from fl_protocol.specs.strategies import MAX_WEIGHT

VERSIONS = st.integers(0, 1_000_000)
SPECS = st.one_of(
    st.just(ConstantStaleness()),
    st.builds(PolynomialStaleness, exponent=st.floats(0.01, 10)),
    st.builds(HingeStaleness, slope=st.floats(0.01, 1000), threshold=st.integers(0, 20)),
)
NEAREST = Fraction(1, 2**53)


def reference(spec, staleness):
    """The papers' formulas to 60 digits."""
    with localcontext() as context:
        context.prec = 60
        if isinstance(spec, PolynomialStaleness):
            return Fraction((-Decimal(spec.exponent) * Decimal(1 + staleness).ln()).exp())
        if isinstance(spec, HingeStaleness) and staleness > spec.threshold:
            return 1 / (Fraction(spec.slope) * (staleness - spec.threshold) + 1)
        return Fraction(1)


@pytest.mark.parametrize(("staleness", "expected"), [(0, 1.0), (1, 2**-0.5), (3, 0.5), (8, 1 / 3), (99, 0.1)])
def test_the_default_is_fedbuffs_one_over_the_root(staleness, expected):
    assert float(discount(PolynomialStaleness(), staleness)) == expected


@pytest.mark.parametrize(("staleness", "expected"), [(0, 1), (4, 1), (5, 1 / 11), (7, 1 / 31)])
def test_the_hinge_is_fedasyncs(staleness, expected):
    assert float(discount(HingeStaleness(slope=10, threshold=4), staleness)) == expected


@settings(max_examples=300, deadline=None)
@given(SPECS, VERSIONS)
def test_every_discount_is_the_papers_to_more_digits_than_float64_has(spec, staleness):
    exact = reference(spec, staleness)
    assert abs(discount(spec, staleness) - exact) <= exact * Fraction(1, 10**36)


@given(SPECS, st.lists(VERSIONS, min_size=2, max_size=10))
def test_an_older_update_never_counts_more_and_always_something(spec, ages):
    found = [discount(spec, age) for age in sorted(ages)]
    assert found == sorted(found, reverse=True)
    assert 0 < found[-1] <= found[0] <= 1


@given(SPECS, st.lists(st.tuples(st.integers(1, MAX_WEIGHT), VERSIONS), max_size=12))
def test_a_discounted_weight_is_rounded_once(spec, told):
    for (weight, staleness), found in zip(told, discounted(told, spec), strict=True):
        exact = weight * reference(spec, staleness)
        assert abs(Fraction(found) - exact) <= exact * NEAREST * (1 + NEAREST)


@given(SPECS, st.lists(st.integers(1, MAX_WEIGHT), max_size=12))
def test_fresh_updates_weigh_what_they_weigh_in_a_synchronous_round(spec, weights):
    assert discounted([(weight, 0) for weight in weights], spec) == weights


def blob_of(arrays):
    return b"".join(encode(arrays, {}))


def reader(blob):
    return lambda begin, end: memoryview(blob)[begin:end]


def sealed(number, values, weight, factor):
    largest = {"w": float(np.abs(values).max())}
    return SealedUpdate(f"u{number}", f"sha256:{number:064}", weight, largest, reader(blob_of({"w": values})), factor)


def step(base, updates, divisor):
    written = bytearray()
    aggregate(
        reader(blob_of({"w": base})),
        updates,
        spec=RunSpec(),
        round_number=1,
        optimizer_state=None,
        write_model=written.extend,
        write_state=written.extend,
        divisor=divisor,
    )
    return bytes(written)


@settings(max_examples=60, deadline=None)
@given(SPECS, st.integers(2, 40), st.integers(0, 2**32), st.sampled_from([10, 10**6, MAX_WEIGHT]))
def test_a_buffer_of_mixed_staleness_is_as_exact_as_the_contract_says_in_any_order(spec, number, seed, heaviest):
    source = np.random.default_rng(seed)
    base = source.standard_normal(6).astype(np.float32)
    deltas = [(source.standard_normal(6) * 10.0 ** source.uniform(-6, 1)).astype(np.float32) for _ in range(number)]
    weights = [int(one) for one in source.integers(1, heaviest, number, endpoint=True)]
    ages = [int(one) for one in source.integers(0, 30, number)]
    factors = discounted(list(zip(weights, ages, strict=True)), spec)
    updates = [sealed(at, *one) for at, one in enumerate(zip(deltas, weights, factors, strict=True))]
    found = step(base, updates, sum(weights))
    assert step(base, [updates[at] for at in source.permutation(number)], sum(weights)) == found
    counted = [weight * reference(spec, age) for weight, age in zip(weights, ages, strict=True)]
    largest = max(weight * Fraction(float(np.abs(delta).max())) for weight, delta in zip(weights, deltas, strict=True))
    for element, value in enumerate(decode(found)["w"]):
        moved = sum(part * Fraction(float(delta[element])) for part, delta in zip(counted, deltas, strict=True))
        exact = Fraction(float(base[element])) + moved / sum(weights)
        unit = Fraction(float(np.spacing(np.float32(abs(float(exact))))))
        assert abs(Fraction(float(value)) - exact) <= max(unit, number * Fraction(2) ** -45 * largest / sum(weights))
