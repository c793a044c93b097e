"""Effective weights: exact integers that keep the largest share and weigh strata alike."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aggregator_service.domain.weighting import Weighed, effective_weights
from fl_protocol.specs.strategies import MAX_WEIGHT, InverseStratumSizeWeighting, MeanStrategy

EXAMPLES = st.lists(st.integers(1, 2**53 - 1), min_size=1, max_size=40)
BY_REGION = InverseStratumSizeWeighting(attribute="region")


def _weights(examples: list[int], **strategy: object) -> list[int]:
    return effective_weights([Weighed(number) for number in examples], MeanStrategy.model_validate(strategy))


def _reference(weights: list[int], share: float) -> np.ndarray:
    """Finds the level by bisection in float64: the largest cap under which nobody exceeds the share."""
    values = np.array(weights, dtype=np.float64)
    low, high = 0.0, float(values.max())
    for _ in range(200):
        middle = (low + high) / 2
        capped = np.minimum(values, middle)
        low, high = (middle, high) if capped.max() <= share * capped.sum() else (low, middle)
    capped = np.minimum(values, low)
    shares: np.ndarray = capped / capped.sum()
    return shares


@given(examples=EXAMPLES, max_weight=st.integers(1, MAX_WEIGHT))
def test_without_a_largest_share_a_weight_is_its_examples_up_to_the_bound(examples: list[int], max_weight: int) -> None:
    assert _weights(examples, max_weight=max_weight) == [min(number, max_weight) for number in examples]
    assert _weights(examples, weighting="uniform") == [1] * len(examples)


@given(examples=EXAMPLES, max_weight=st.integers(1, MAX_WEIGHT), percent=st.integers(1, 100))
def test_no_weight_exceeds_the_largest_share_of_the_sum(examples: list[int], max_weight: int, percent: int) -> None:
    assume(percent * len(examples) >= 100)
    share = percent / 100
    own = _weights(examples, max_weight=max_weight)
    found = _weights(examples, max_weight=max_weight, max_share=share)
    assert all(1 <= weight <= MAX_WEIGHT for weight in found)
    assert max(found) <= Fraction(percent, 100) * sum(found)
    if max(own) <= Fraction(percent, 100) * sum(own):
        assert found == own
        return
    np.testing.assert_allclose(np.array(found) / sum(found), _reference(own, share), rtol=2e-6)
    # The ones below the level keep their ratios exactly, and the order is kept.
    below = [(a, b) for a, b in zip(own, found, strict=True) if b < max(found)]
    assert len({Fraction(a, b) for a, b in below}) <= 1
    assert [found[index] for index in np.argsort(own, kind="stable")] == sorted(found)


def test_small_cases_by_hand() -> None:
    assert _weights([5, 1, 1], max_share=0.4) == [4, 3, 3]
    assert _weights([900, 50, 50], max_share=0.5) == [100, 50, 50]
    assert _weights([10, 10], max_share=0.5) == [10, 10]
    assert _weights([7], max_share=1.0) == [7]
    assert _weights([9, 3, 1, 1], max_share=0.25) == [1, 1, 1, 1]


def test_a_share_that_so_few_cannot_keep_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"max_share 0\.3 cannot hold among 3 updates"):
        _weights([1, 1, 1], max_share=0.3)


@given(strata=st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=60))
def test_every_stratum_weighs_the_same_exactly(strata: list[str | None]) -> None:
    found = effective_weights([Weighed(5, stratum) for stratum in strata], MeanStrategy(weighting=BY_REGION))
    sums = Counter[str | None]()
    for stratum, weight in zip(strata, found, strict=True):
        sums[stratum] += weight
    assert len(set(sums.values())) == 1
    assert len(set(zip(strata, found, strict=True))) == len(sums)


def test_sizes_without_a_small_common_multiple_are_rounded_within_the_stated_error() -> None:
    sizes = [1, 101, 103, 107, 109, 113, 127, 131]
    strata = [str(size) for size in sizes for _ in range(size)]
    found = effective_weights([Weighed(1, stratum) for stratum in strata], MeanStrategy(weighting=BY_REGION))
    assert max(found) == MAX_WEIGHT
    for stratum, weight in zip(strata, found, strict=True):
        assert abs(Fraction(weight * int(stratum), MAX_WEIGHT) - 1) < Fraction(1, 2**17)


def test_strata_and_a_largest_share_go_together() -> None:
    updates = [Weighed(1, stratum) for stratum in ("a", "b", "b", "b", "c", "c")]
    found = effective_weights(updates, MeanStrategy(weighting=BY_REGION, max_share=0.25))
    assert max(found) <= Fraction(1, 4) * sum(found)
    assert found[1:4] == [found[1]] * 3
