"""Draws without replacement and secret coins: fair, independent, and the same for everyone who asks again."""

import hashlib
import hmac
from collections import Counter
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from aggregator_service.domain import cohort
from aggregator_service.domain.quorum import QuorumDecision, decide
from tests.support.records import later, round_record

CLIENTS = [f"client_{index:032x}" for index in range(8)]
KEYS = [hashlib.sha256(str(index).encode()).digest() for index in range(2800)]


def _chi_squared(observed: dict[object, int], expected: float, cells: int) -> float:
    """Gives (chi2 - degrees) / sqrt(2 x degrees): some standard deviations from what chance makes."""
    statistic = sum((count - expected) ** 2 / expected for count in observed.values())
    statistic += (cells - len(observed)) * expected
    return float((statistic - (cells - 1)) / (2 * (cells - 1)) ** 0.5)


def test_every_subset_is_drawn_equally_often() -> None:
    """Chi-squared over the 56 subsets of 3 of 8, 50 draws each; the keys are fixed, so the outcome is."""
    counts = Counter[object](frozenset(cohort.draw(key, CLIENTS, 3)) for key in KEYS)
    subsets = list(combinations(CLIENTS, 3))
    assert abs(_chi_squared(counts, len(KEYS) / len(subsets), len(subsets))) < 3


@given(
    key=st.binary(min_size=32, max_size=32),
    order=st.permutations(CLIENTS),
    count=st.integers(0, 10),
)
def test_a_draw_is_without_replacement_and_no_matter_of_order(key: bytes, order: list[str], count: int) -> None:
    drawn = cohort.draw(key, order, count)
    assert len(drawn) == len(set(drawn)) == min(count, len(CLIENTS))
    assert drawn == cohort.draw(key, CLIENTS, count)


@given(key=st.binary(min_size=32, max_size=32), first=st.integers(0, 8), more=st.integers(0, 8))
def test_a_later_draw_goes_on_where_the_first_one_ended(key: bytes, first: int, more: int) -> None:
    drawn = cohort.draw(key, CLIENTS, first)
    left = [client for client in CLIENTS if client not in drawn]
    assert drawn + cohort.draw(key, left, more) == cohort.draw(key, CLIENTS, first + more)


def test_a_seeded_draw_can_be_repeated_by_its_documented_rule() -> None:
    key = hashlib.sha256(b"fedquorum selection 42 7 2").digest()
    expected = sorted(CLIENTS, key=lambda client: hmac.new(key, client.encode(), hashlib.sha256).digest())
    assert cohort.draw(cohort.seeded_key(42, number=7, attempt=2), CLIENTS, 5) == expected[:5]
    others = [
        cohort.seeded_key(*seed[:1], number=seed[1], attempt=seed[2]) for seed in ((42, 7, 1), (42, 72, 2), (4, 27, 2))
    ]
    assert len({key, *others}) == 4


def test_coins_come_up_with_their_probability_in_every_client_and_every_round() -> None:
    """Chi-squared of 200 clients x 2800 rounds: over clients, over rounds, and of pairs, which shows independence."""
    clients = [f"client_{index:032x}" for index in range(20)]
    for probability in (0.1, 0.5, 0.93):
        tosses = [[cohort.coin(key, client, probability) for client in clients] for key in KEYS]
        deviations = []
        for client in range(len(clients)):
            heads = sum(row[client] for row in tosses)
            deviations.append((heads - len(KEYS) * probability) ** 2 / (len(KEYS) * probability * (1 - probability)))
        assert abs(sum(deviations) - len(clients)) / (2 * len(clients)) ** 0.5 < 3
        spread = [sum(row) for row in tosses]
        mean, variance = len(clients) * probability, len(clients) * probability * (1 - probability)
        statistic = sum((heads - mean) ** 2 / variance for heads in spread)
        # The variance of chi-squared with binomial cells is 2 + (1 - 6pq) / npq for each of them.
        excess = (1 - 6 * probability * (1 - probability)) / variance
        assert abs(statistic - len(KEYS)) / (len(KEYS) * (2 + excess)) ** 0.5 < 3
        together = sum(row[0] and row[1] for row in tosses)
        due = probability**2
        assert abs(together - len(KEYS) * due) / (len(KEYS) * due * (1 - due)) ** 0.5 < 3


@given(key=st.binary(min_size=32, max_size=32), client=st.text(max_size=40))
def test_a_coin_is_the_same_at_every_toss_and_monotone_in_its_probability(key: bytes, client: str) -> None:
    outcomes = [cohort.coin(key, client, step / 64) for step in range(65)]
    assert outcomes == [cohort.coin(key, client, step / 64) for step in range(65)]
    assert outcomes == sorted(outcomes)
    assert not outcomes[0]
    assert outcomes[64]


def test_a_draw_waits_for_a_full_cohort_at_first_and_for_the_least_at_last() -> None:
    round_ = round_record(cohort_size=10, min_updates=3, deadline_at=later(100))
    assert cohort.may_draw(round_, num_candidates=10, now=later(0))
    assert not cohort.may_draw(round_, num_candidates=9, now=later(24.9))
    assert cohort.may_draw(round_, num_candidates=3, now=later(25))
    assert not cohort.may_draw(round_, num_candidates=2, now=later(99))
    assert cohort.gathering_ends(round_record(deadline_at=later(86400))) == later(60)


def test_a_round_of_coins_closes_when_all_have_answered_and_at_no_quorum() -> None:
    round_ = round_record(quorum=2, min_updates=2, num_awaited=5, num_updates=4)
    assert decide(round_, later(1)) is QuorumDecision.COLLECT
    assert decide(round_record(quorum=2, num_awaited=5, num_updates=5), later(1)) is QuorumDecision.SEAL
    assert decide(round_, later(60)) is QuorumDecision.SEAL
    assert decide(round_record(min_updates=2, num_awaited=1, num_updates=1), later(1)) is QuorumDecision.COLLECT
    assert decide(round_record(min_updates=2, num_awaited=1, num_updates=1), later(60)) is QuorumDecision.ABANDON
