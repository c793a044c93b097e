"""Places of strata: exact to one client at every moment, a function of the round's number and the weights alone."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_service.domain.allocation import places

WEIGHTS = st.dictionaries(st.text(max_size=3), st.integers(1, 50), min_size=1, max_size=8)


@settings(deadline=None)
@given(weights=WEIGHTS, cohort_size=st.integers(1, 12))
def test_over_100_rounds_each_stratum_has_its_share_exact_to_one_client(
    weights: dict[str, int], cohort_size: int
) -> None:
    total = sum(weights.values())
    given_so_far = dict.fromkeys(weights, 0)
    for number in range(1, 101):
        found = places(weights, number=number, cohort_size=cohort_size)
        assert sum(found.values()) == cohort_size
        assert all(count > 0 for count in found.values())
        for stratum, count in found.items():
            given_so_far[stratum] += count
        for stratum, weight in weights.items():
            due = Fraction(number * cohort_size * weight, total)
            assert abs(given_so_far[stratum] - due) < 1, (number, stratum)


@settings(deadline=None)
@given(weights=WEIGHTS, number=st.integers(1, 1000), cohort_size=st.integers(1, 12))
def test_places_do_not_depend_on_the_order_or_the_unit_of_the_weights(
    weights: dict[str, int], number: int, cohort_size: int
) -> None:
    found = places(weights, number=number, cohort_size=cohort_size)
    turned = {stratum: 3 * weights[stratum] for stratum in reversed(weights)}
    assert places(turned, number=number, cohort_size=cohort_size) == found


def test_every_stratum_has_places_in_every_round_that_is_large_enough() -> None:
    weights = dict.fromkeys("abcdefg", 1)
    for number in range(1, 20):
        assert set(places(weights, number=number, cohort_size=7).values()) == {1}
    assert places({"large": 97, "small": 3}, number=1, cohort_size=100) == {"large": 97, "small": 3}


def test_a_far_round_of_many_clients_is_found_at_once() -> None:
    weights = {f"stratum-{index}": 997 + index for index in range(50)}
    found = places(weights, number=1_000_000, cohort_size=100)
    assert sum(found.values()) == 100
    assert set(found.values()) <= {1, 2, 3}
