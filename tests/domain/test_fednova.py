"""FedNova's weights against the paper's formula in exact fractions, and the fold that uses them within its bound."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_service.domain.fednova import normalised_weights, step_norm
from aggregator_service.flow.fold import SealedUpdate, aggregate
from fl_protocol.arrays import decode, encode
from fl_protocol.runs import RunSpec
from fl_protocol.specs.algorithms import MAX_LOCAL_STEPS
from fl_protocol.specs.strategies import MAX_WEIGHT

TOLD = st.lists(st.tuples(st.integers(1, MAX_WEIGHT), st.integers(1, MAX_LOCAL_STEPS)), min_size=1, max_size=12)
NEAREST = Fraction(1, 2**53)


def blob_of(arrays):
    return b"".join(encode(arrays, {}))


def reader(blob):
    return lambda begin, end: memoryview(blob)[begin:end]


def sealed(values, weight):
    blob = blob_of({"w": values})
    return SealedUpdate("u", "sha256:" + "0" * 64, weight, {"w": float(np.abs(values).max())}, reader(blob))


def fold(base, updates, divisor):
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
    return decode(bytes(written))["w"]


def exact_weights(told, norms):
    """The paper's tau_eff * p_i / a_i."""
    total = sum(weight for weight, _ in told)
    effective = sum(Fraction(weight, total) * steps for weight, steps in told)
    return [effective * Fraction(weight, total) / norm for (weight, _), norm in zip(told, norms, strict=True)]


@settings(max_examples=300, deadline=None)
@given(TOLD)
def test_the_weights_are_the_papers_rounded_once_each(told):
    found = normalised_weights(told, shrinkage=0.0)
    exact = exact_weights(told, [steps for _, steps in told])
    for factor, weight in zip(found.factors, exact, strict=True):
        assert abs(Fraction(factor) / Fraction(found.divisor) - weight) <= 3 * NEAREST * weight


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.floats(1e-9, 0.999))
def test_a_proximal_term_shortens_the_norm_as_in_the_paper(steps, shrinkage):
    kept = 1 - Fraction(shrinkage)
    for number in steps:
        exact = sum(kept**power for power in range(number))
        assert abs(step_norm(number, shrinkage=shrinkage) - exact) <= exact * Fraction(1, 10**36)


def test_the_longest_training_has_a_norm():
    assert step_norm(MAX_LOCAL_STEPS, shrinkage=0.0) == MAX_LOCAL_STEPS
    assert float(step_norm(MAX_LOCAL_STEPS, shrinkage=0.5)) == 2.0
    assert float(step_norm(MAX_LOCAL_STEPS, shrinkage=1e-300)) == pytest.approx(MAX_LOCAL_STEPS)


def test_equal_steps_give_the_plain_mean_and_no_order_matters():
    told = [(3, 17), (5, 17), (9, 17)]
    found = normalised_weights(told, shrinkage=0.0)
    assert [factor / found.divisor for factor in found.factors] == pytest.approx([3 / 17, 5 / 17, 9 / 17])
    turned = normalised_weights(told[::-1], shrinkage=0.1)
    assert turned == replace(normalised_weights(told, shrinkage=0.1), factors=turned.factors)
    assert turned.factors[::-1] == normalised_weights(told, shrinkage=0.1).factors


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32), st.sampled_from([1, 1000, MAX_LOCAL_STEPS]))
def test_the_step_stays_within_the_contracts_bound(number, seed, longest):
    source = np.random.default_rng(seed)
    told = [(int(source.integers(1, 10**6)), int(source.integers(1, longest, endpoint=True))) for _ in range(number)]
    deltas = [(source.standard_normal(6) * 10.0 ** source.uniform(-6, 2)) for _ in range(number)]
    weights = normalised_weights(told, shrinkage=0.0)
    updates = [
        replace(sealed(delta, weight), delta_weight=factor)
        for delta, (weight, _), factor in zip(deltas, told, weights.factors, strict=True)
    ]
    found = fold(np.zeros(6), updates, weights.divisor)
    exact = exact_weights(told, [steps for _, steps in told])
    largest = max(weight * Fraction(float(np.abs(delta).max())) for weight, delta in zip(exact, deltas, strict=True))
    for element in range(6):
        step = sum(weight * Fraction(float(delta[element])) for weight, delta in zip(exact, deltas, strict=True))
        unit = Fraction(float(np.spacing(abs(float(step)))))
        assert abs(Fraction(float(found[element])) - step) <= max(unit, number * Fraction(2) ** -45 * largest)
    order = source.permutation(number)
    assert fold(np.zeros(6), [updates[at] for at in order], weights.divisor).tobytes() == found.tobytes()
