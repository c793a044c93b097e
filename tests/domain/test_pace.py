"""When idle clients come back, and how precisely they are seen."""

from collections import Counter
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator_service.domain import presence
from aggregator_service.domain.pace_steering import pause_seconds
from fl_protocol.specs.selection import OpenSelection, UniformSelection
from tests.support.records import NOON, later

FRACTIONS = st.floats(0, 1, exclude_max=True)


@given(
    num_clients=st.integers(0, 10**7),
    cohort_size=st.integers(1, 4096),
    round_seconds=st.floats(0, 1e7),
    is_drawn=st.booleans(),
    fraction=FRACTIONS,
)
def test_pause_is_bounded_whatever_the_run(
    num_clients: int, cohort_size: int, round_seconds: float, is_drawn: bool, fraction: float
) -> None:
    pause = pause_seconds(
        num_clients=num_clients,
        cohort_size=cohort_size,
        round_seconds=round_seconds,
        is_drawn=is_drawn,
        fraction=fraction,
    )
    assert 1 <= pause <= 300


@given(
    num_clients=st.integers(1, 100),
    round_seconds=st.floats(0, 1e5),
    fraction=FRACTIONS,
)
def test_clients_of_a_small_federation_ask_again_at_once(
    num_clients: int, round_seconds: float, fraction: float
) -> None:
    assert (
        pause_seconds(
            num_clients=num_clients, cohort_size=10, round_seconds=round_seconds, is_drawn=False, fraction=fraction
        )
        == 1
    )


@settings(deadline=None, max_examples=30)
@given(num_clients=st.integers(2_000, 20_000), is_drawn=st.booleans())
def test_a_crowd_is_spread_so_that_no_second_sees_many_more_than_a_hundred(num_clients: int, is_drawn: bool) -> None:
    """All are turned away at the same moment, each with a chance of its own."""
    pauses = Counter(
        pause_seconds(
            num_clients=num_clients, cohort_size=100, round_seconds=1, is_drawn=is_drawn, fraction=index / num_clients
        )
        for index in range(num_clients)
    )
    assert max(pauses.values()) <= 101
    mean = sum(pause * count for pause, count in pauses.items()) / num_clients
    assert abs(mean + 0.5 - num_clients / 100) < 1.5


def test_surplus_clients_of_open_rounds_are_ten_for_each_place_in_the_time_of_a_round() -> None:
    pauses = [
        pause_seconds(num_clients=1100, cohort_size=10, round_seconds=20, is_drawn=False, fraction=index / 1000)
        for index in range(1000)
    ]
    assert (min(pauses), max(pauses)) == (100, 299)
    drawn = pause_seconds(num_clients=1100, cohort_size=10, round_seconds=200, is_drawn=True, fraction=0.5)
    assert drawn == 20


def test_a_client_is_marked_as_seen_at_most_every_quarter_of_the_window_and_half_a_minute() -> None:
    coarse, fine = OpenSelection(), UniformSelection(seen_within_seconds=10)
    assert presence.is_due(coarse, seen_at=None, now=NOON)
    assert not presence.is_due(coarse, seen_at=NOON, now=later(30))
    assert presence.is_due(coarse, seen_at=NOON, now=later(30.1))
    assert not presence.is_due(fine, seen_at=NOON, now=later(2.5))
    assert presence.is_due(fine, seen_at=NOON, now=later(2.6))
    assert not presence.is_due(UniformSelection(seen_within_seconds=86400), seen_at=NOON, now=later(30))
    assert presence.seen_within(fine) == timedelta(seconds=10)
