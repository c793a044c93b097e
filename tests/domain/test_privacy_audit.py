"""Empirical audits: what an attacker measurably learns stays below the epsilon that is claimed, and not far below.

The attacker knows both possible inputs and tells them apart by a threshold, chosen on one half of the samples and
judged on the other; the bound is Clopper & Pearson's at 95%. Noise that is missing or too narrow exceeds the claim,
noise that is too wide stays under the floor.
"""

import math

import numpy as np
import pytest

from aggregator_service.domain.privacy import adaptive_clipping, blt
from aggregator_service.domain.privacy.blt import Participation
from fl_protocol.privacy import lattice, noise
from fl_protocol.privacy.accounting import epsilon_spent, value_noise_multiplier
from fl_protocol.privacy.shared_noise import shared_noise
from fl_protocol.privacy.skellam import add_skellam
from fl_protocol.runs import RunSpec
from fl_protocol.specs.privacy import CentralGaussianAdaptivePrivacy
from tests.support.audits import clopper_pearson

KEYS = bytes(range(32)), bytes(range(1, 33))
SAMPLES = 2_000_000
CLIPPING_NORM = 1.0
GAUSSIAN_EPSILON = 4.377178
"""Of one Gaussian with noise multiplier 1 at delta 1e-5, by the analytic formula (Balle & Wang 2018)."""
DELTA = 1e-5


def beyond(samples, threshold):
    return int(np.count_nonzero(samples > threshold))


def learned_at(without, with_client, *, threshold, delta):
    """Bounds from below the epsilon of an attack that says 'it took part' above the threshold."""
    wrong, right = beyond(without, threshold), beyond(with_client, threshold)
    # Each side at 97.5%, so that both hold at 95%.
    _, most_wrong = clopper_pearson(wrong, without.size)
    least_right = clopper_pearson(right, with_client.size)[0] if right else 0.0
    return math.log((least_right - delta) / most_wrong) if least_right > delta else 0.0


def learned(without, with_client, *, delta):
    """Chooses the best of many thresholds on one half of the samples, and judges it on the other half."""
    half = without.size // 2
    quantiles = np.concatenate((np.linspace(0.01, 0.99, 25), 1 - np.logspace(-2, -4.5, 15)))
    thresholds = np.quantile(with_client[:half], quantiles)
    best = max(thresholds, key=lambda one: learned_at(without[:half], with_client[:half], threshold=one, delta=delta))
    return learned_at(without[half:], with_client[half:], threshold=best, delta=delta)


def gaussian_sums(input_, *, key, noise_multiplier):
    totals = np.full(SAMPLES, input_, dtype=np.int64)
    stddev = lattice.noise_stddev(noise_multiplier, clipping_norm=CLIPPING_NORM, num_elements=1)
    noise.add_lattice_gaussian(totals, key=key, first=0, stddev=stddev)
    return totals


def test_the_audit_itself_finds_what_noise_that_is_too_narrow_gives_away():
    charged = lattice.sensitivity(CLIPPING_NORM, 1)
    sums = [gaussian_sums(held, key=key, noise_multiplier=0.5) for held, key in zip((0, charged), KEYS, strict=True)]
    assert learned(*sums, delta=DELTA) > GAUSSIAN_EPSILON


def test_gaussian_noise_on_the_lattice_keeps_its_claim():
    charged = lattice.sensitivity(CLIPPING_NORM, 1)
    sums = [gaussian_sums(held, key=key, noise_multiplier=1.0) for held, key in zip((0, charged), KEYS, strict=True)]
    assert 2 <= learned(*sums, delta=DELTA) <= GAUSSIAN_EPSILON


def test_a_gaussian_message_keeps_its_claim_between_any_two_updates():
    """Without a server between them, one update may stand for any other: the sensitivity is twice the clip's."""
    charged = lattice.sensitivity(CLIPPING_NORM, 1)
    messages = [
        gaussian_sums(held, key=key, noise_multiplier=2.0) for held, key in zip((-charged, charged), KEYS, strict=True)
    ]
    assert 2 <= learned(*messages, delta=DELTA) <= GAUSSIAN_EPSILON


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_a_laplace_message_keeps_its_claim_between_any_two_updates(epsilon):
    charged = lattice.l1_sensitivity(CLIPPING_NORM, 1)
    messages = []
    for held, key in zip((-charged, charged), KEYS, strict=True):
        message = np.full(SAMPLES, held, dtype=np.int64)
        scale = lattice.laplace_scale(2 / epsilon, clipping_norm=CLIPPING_NORM, num_elements=1)
        noise.add_lattice_laplace(message, key=key, first=0, scale=scale)
        messages.append(message)
    assert 0.9 * epsilon <= learned(*messages, delta=0.0) <= epsilon


@pytest.fixture(scope="module")
def shared_run():
    """A run of ten clients, all of whom its noise counts on, and one parameter."""
    return RunSpec.model_validate(
        {
            "round": {"quorum": 10},
            "strategy": {"kind": "mean", "weighting": "uniform"},
            "privacy": {
                "kind": "distributed_skellam",
                "target_epsilon": 100,
                "delta": DELTA,
                "noise_multiplier": 1.0,
                "assumed_colluders": 0,
                "max_parameters": 1,
            },
            "secure_aggregation": {"kind": "pairwise"},
        }
    )


def shared_sums(spec, held, *, world):
    """Gives one coordinate of many sums: what one client holds, and the noise of four clients, and of all ten."""
    totals, few = np.full(SAMPLES // 2, held, dtype=np.int64), None
    for client in range(10):
        few = totals.copy() if client == 4 else few
        add_skellam(totals, key=bytes([world, client, *range(30)]), first=0, variance=shared_noise(spec).variance)
    return few, totals


def test_the_noise_of_all_clients_of_a_sum_together_keeps_its_claim(shared_run):
    held = int(shared_noise(shared_run).max_norm)
    worlds = [shared_sums(shared_run, each, world=at) for at, each in enumerate((0, held))]
    few, sums = zip(*worlds, strict=True)
    claimed = epsilon_spent(shared_run, num_participations=1, num_rounds=1)
    assert 2 <= learned(*sums, delta=DELTA) <= GAUSSIAN_EPSILON < claimed
    # With four of them alone it would not, which is why so small a sum is never unmasked.
    assert learned(*few, delta=DELTA) > claimed


def adaptive_releases(held, unclipped, *, split, count_noise):
    """Gives what one round of an adaptive clip releases in many runs: the noised sum and the noised share."""
    value_noise, count_stddev = split
    sums = gaussian_sums(held, key=bytes([held > 0, *range(31)]), noise_multiplier=value_noise)
    stddev = adaptive_clipping.lattice_count_stddev(count_stddev)
    drawn = noise.lattice_gaussian(count_noise, first=0, count=SAMPLES, stddev=stddev)
    shares = adaptive_clipping.noised_unclipped_share(unclipped, unclipped, noise=drawn, denominator=1)
    return sums, shares


def test_sum_and_count_of_an_adaptive_clip_together_keep_one_claim_and_the_best_attack_comes_near(monkeypatch):
    # The shares of many runs at once: numpy's own ldexp in place of the one for a single number.
    monkeypatch.setattr(adaptive_clipping.math, "ldexp", np.ldexp)
    count_stddev = 0.8
    privacy = CentralGaussianAdaptivePrivacy(
        kind="central_gaussian_adaptive",
        target_epsilon=GAUSSIAN_EPSILON,
        delta=DELTA,
        noise_multiplier=1.0,
        count_stddev=count_stddev,
    )
    value_noise = value_noise_multiplier(privacy, quorum=1)
    charged, split = lattice.sensitivity(CLIPPING_NORM, 1), (value_noise, count_stddev)
    without = adaptive_releases(0, 0, split=split, count_noise=KEYS[0])
    with_client = adaptive_releases(charged, 1, split=split, count_noise=KEYS[1])
    # Each release weighs by how far the client moves it over the variance of its noise.
    weights = 1 / (charged * value_noise**2), 0.5 / count_stddev**2
    attack = [sum(weight * part for weight, part in zip(weights, one, strict=True)) for one in (without, with_client)]
    assert 2 <= learned(*attack, delta=DELTA) <= GAUSSIAN_EPSILON
    sum_alone = learned(without[0], with_client[0], delta=DELTA)
    assert sum_alone < learned(*attack, delta=DELTA)


ROUNDS = Participation(num_rounds=200, separation=20, max_participations=10)
RUNS = 100_000


@pytest.fixture(scope="module")
def correlated_runs():
    """Gives the releases of many runs of one coordinate, without and with a client at its worst: rounds by runs."""
    chosen = blt.choose(ROUNDS)
    charged = lattice.sensitivity(CLIPPING_NORM, 1)
    stddev = lattice.noise_stddev(chosen.sensitivity, clipping_norm=CLIPPING_NORM, num_elements=1)
    without = np.zeros((ROUNDS.num_rounds, RUNS), dtype=np.int64)
    with_client = without.copy()
    with_client[:: ROUNDS.separation] = charged
    for world, releases in enumerate((without, with_client)):
        buffers = blt.init(chosen.blt, RUNS)
        for number, release in enumerate(releases):
            z = noise.gaussian(bytes([world, number, *range(30)]), first=0, count=RUNS)
            drawn, buffers = blt.step(chosen.blt, z, buffers=buffers)
            noise.add_rounded(release, drawn, scale=stddev)
    return without, with_client


def test_prefix_sums_of_correlated_noise_keep_the_run_s_one_claim(correlated_runs):
    for last in (1, 21, 100, 200):
        without, with_client = (releases[:last].sum(axis=0) for releases in correlated_runs)
        assert learned(without, with_client, delta=DELTA) <= GAUSSIAN_EPSILON


def test_all_releases_together_keep_the_claim_and_the_best_attack_comes_near(correlated_runs):
    """The best attack undoes the correlation, C y = z, and looks along what the client adds there."""
    column = blt.coefficients(blt.choose(ROUNDS).blt, ROUNDS.num_rounds)
    took_part = np.zeros(ROUNDS.num_rounds)
    took_part[:: ROUNDS.separation] = 1.0
    direction = np.convolve(column, took_part)[: ROUNDS.num_rounds]
    # <direction, C releases> = <C' direction, releases>
    weights = np.convolve(direction[::-1], column)[: ROUNDS.num_rounds][::-1]
    without, with_client = (weights @ releases.astype(np.float64) for releases in correlated_runs)
    assert 2 <= learned(without, with_client, delta=DELTA) <= GAUSSIAN_EPSILON
