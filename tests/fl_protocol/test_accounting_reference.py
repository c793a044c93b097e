"""Epsilons that were computed beforehand by dp-accounting 0.6, Opacus 1.6 and from published runs."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from fl_protocol.privacy.distributed import (
    DistributedRelease,
    discrete_gaussian_epsilon,
    rounded_norm,
    skellam_epsilon,
)
from fl_protocol.privacy.releases import (
    FixedSizeSampling,
    Noise,
    PoissonSampling,
    Release,
    Sampling,
    TruncatedPoissonSampling,
    concentrated_epsilon,
    epsilon,
    gaussian_noise_multiplier,
    renyi_epsilon,
)
from fl_protocol.privacy_claims import Adjacency

PLD = 2e-3
RDP = 1e-4
RELATIONS = dp_accounting.NeighboringRelation


def gaussian(
    sigma: float,
    *,
    sensitivity: float = 1.0,
    count: int = 1,
    adjacency: Adjacency = Adjacency.ZERO_OUT,
    sampling: Sampling | None = None,
) -> Release:
    return Release(Noise.GAUSSIAN, sigma, sensitivity, adjacency, sampling=sampling, count=count)


def poisson(sigma: float, probability: float, count: int) -> Release:
    sampling = PoissonSampling(probability)
    return gaussian(sigma, count=count, adjacency=Adjacency.ADD_OR_REMOVE_ONE, sampling=sampling)


@pytest.mark.parametrize(
    ("sigma", "probability", "count", "delta", "renyi", "pld"),
    [
        (1.0, 0.01, 1000, 1e-5, 2.101367, 1.828244),
        (1.0, 0.01, 10000, 1e-5, 6.712757, 6.187745),
        (1.1, 256 / 60000, 14040, 1e-5, 2.594363, 2.379644),
        (0.8, 0.01, 1000, 1e-5, 3.695613, 3.141018),
        (0.5, 0.1, 100, 1e-5, 36.966665, 31.370995),
        (2.0, 0.1, 100, 1e-5, 2.580571, 2.337400),
        (1.0, 0.1, 100, 1e-6, 8.921392, 8.058608),
        (1.0, 0.05, 500, 1e-6, 9.260984, 8.489058),
        (0.6, 0.001, 10000, 1e-6, 3.999186, 3.152227),
        (1.0, 0.0128, 1580, 1e-5, 3.335327, 3.007893),
    ],
)
def test_poisson_sampled_gaussian_noise(
    sigma: float, probability: float, count: int, delta: float, renyi: float, pld: float
) -> None:
    releases = [poisson(sigma, probability, count)]
    assert epsilon(releases, delta=delta) == pytest.approx(pld, rel=PLD)
    assert renyi_epsilon(releases, delta=delta) == pytest.approx(renyi, rel=RDP)


@pytest.mark.parametrize(
    ("sigma", "count", "delta", "renyi", "analytic"),
    [
        (1.0, 1, 1e-5, 4.728507, 4.377178),
        (1.0, 100, 1e-5, 96.116308, 91.817290),
        (5.0, 100, 1e-5, 10.725510, 9.997256),
        (4.0, 1, 1e-6, 1.143169, 1.060702),
        (10.0, 1000, 1e-6, 20.551992, 19.423656),
        (7.0, 2000, 1e-10, 62.455883, 60.356500),
    ],
)
def test_gaussian_noise(sigma: float, count: int, delta: float, renyi: float, analytic: float) -> None:
    for adjacency in (Adjacency.ZERO_OUT, Adjacency.ADD_OR_REMOVE_ONE):
        releases = [gaussian(sigma, count=count, adjacency=adjacency)]
        assert epsilon(releases, delta=delta) == pytest.approx(analytic, rel=1e-6)
        assert renyi_epsilon(releases, delta=delta) == pytest.approx(renyi, rel=RDP)


def test_the_closed_form_is_what_the_distribution_says() -> None:
    accountant = PLDAccountant(RELATIONS.REPLACE_SPECIAL)
    accountant.compose(dp_accounting.GaussianDpEvent(5.0), 100)
    assert epsilon([gaussian(5.0, count=100)], delta=1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=PLD)


@pytest.mark.parametrize(
    ("multiplier", "epsilons"),
    [
        (1, (4.8866, 7.2861, 12.5952, 19.4237, 57.8485)),
        (2, (2.2541, 3.3076, 5.5509, 8.3062, 22.4245)),
        (4, (1.0607, 1.5436, 2.5487, 3.7472, 9.4822)),
        (5, (0.8341, 1.2120, 1.9945, 2.9216, 7.2861)),
        (10, (0.3969, 0.5751, 0.9405, 1.3676, 3.3076)),
    ],
)
def test_capped_participation(multiplier: float, epsilons: tuple[float, ...]) -> None:
    spent = [epsilon([gaussian(multiplier, count=count)], delta=1e-6) for count in (1, 2, 5, 10, 50)]
    assert spent == pytest.approx(epsilons, abs=6e-5)


def test_one_client_for_another_lies_twice_as_far_apart() -> None:
    apart = Adjacency.REPLACE_ONE
    assert epsilon([gaussian(1, sensitivity=2, adjacency=apart)], delta=1e-5) == pytest.approx(9.997256, rel=PLD)
    sampled = gaussian(1, sensitivity=2, adjacency=apart, sampling=PoissonSampling(0.01), count=1000)
    assert epsilon([sampled], delta=1e-5) == pytest.approx(2.843446, rel=PLD)
    assert renyi_epsilon([sampled], delta=1e-5) is None


@pytest.mark.parametrize(
    ("sigma", "sensitivity", "sampling", "count", "delta", "renyi"),
    [
        (1.0, 2.0, FixedSizeSampling(1000, 10), 1000, 1e-5, 20.987072),
        (2.0, 2.0, FixedSizeSampling(1000, 10), 1000, 1e-5, 3.576111),
        (2.0, 2.0, FixedSizeSampling(1000, 100), 100, 1e-6, 15.205043),
    ],
)
def test_a_draw_of_fixed_size(
    sigma: float, sensitivity: float, sampling: Sampling, count: int, delta: float, renyi: float
) -> None:
    apart = Adjacency.REPLACE_ONE
    releases = [gaussian(sigma, sensitivity=sensitivity, adjacency=apart, sampling=sampling, count=count)]
    assert epsilon(releases, delta=delta) == pytest.approx(renyi, rel=RDP)
    assert renyi_epsilon(releases, delta=delta) == epsilon(releases, delta=delta)


def test_the_library_still_takes_noise_over_sensitivity_in_a_draw_of_fixed_size() -> None:
    """The day this fails it doubles the sensitivity itself (google/differential-privacy issue 378): so must not we."""
    accountant = RdpAccountant(neighboring_relation=RELATIONS.REPLACE_ONE)
    event = dp_accounting.SampledWithoutReplacementDpEvent(1000, 10, dp_accounting.GaussianDpEvent(0.5))
    accountant.compose(event, 1000)
    assert accountant.get_epsilon(1e-5) == pytest.approx(20.987072, rel=RDP)


def test_the_library_still_disagrees_with_itself_on_one_client_for_another() -> None:
    event, renyi = dp_accounting.GaussianDpEvent(1.0), RdpAccountant(neighboring_relation=RELATIONS.REPLACE_ONE)
    distribution = PLDAccountant(RELATIONS.REPLACE_ONE)
    assert renyi.compose(event).get_epsilon(1e-5) == pytest.approx(4.728507, rel=RDP)
    assert distribution.compose(event).get_epsilon(1e-5) == pytest.approx(9.997256, rel=PLD)


@pytest.mark.parametrize(
    ("cap", "truncated"),
    [pytest.param(15, 6.1785, marks=pytest.mark.soak), (20, 3.8340), pytest.param(30, 1.8285, marks=pytest.mark.soak)],
)
def test_coins_of_which_a_cap_cuts_some(cap: int, truncated: float) -> None:
    sampling = TruncatedPoissonSampling(probability=0.01, population=1000, cap=cap)
    releases = [gaussian(1.0, sampling=sampling, count=1000)]
    assert epsilon(releases, delta=1e-5) == pytest.approx(truncated, rel=PLD)
    assert renyi_epsilon(releases, delta=1e-5) is None


@pytest.mark.soak
def test_a_cap_at_the_mean_costs_three_times_as_much() -> None:
    sampling = TruncatedPoissonSampling(probability=0.1, population=1000, cap=100)
    assert epsilon([gaussian(2.0, sampling=sampling, count=100)], delta=1e-6) == pytest.approx(7.97, rel=PLD)


@pytest.mark.parametrize(
    ("multiplier", "count", "delta", "pld"),
    [(1, 1, 0, 1.0), (1, 1, 1e-5, 0.99998), (2, 10, 1e-5, 4.98996), (10, 100, 1e-5, 4.220347), (10, 100, 0, 10.0)],
)
def test_laplace_noise(multiplier: float, count: int, delta: float, pld: float) -> None:
    releases = [Release(Noise.LAPLACE, multiplier * 0.5, 0.5, Adjacency.ZERO_OUT, count=count)]
    assert epsilon(releases, delta=delta) == pytest.approx(pld, rel=PLD)


def test_laplace_noise_in_each_message() -> None:
    """Between any two messages: the sensitivity that is given says it already."""
    releases = [Release(Noise.LAPLACE, 4, 2, Adjacency.REPLACE_ONE, count=10)]
    assert epsilon(releases, delta=1e-5) == pytest.approx(4.98996, rel=PLD)


def test_laplace_noise_by_renyi() -> None:
    releases = [Release(Noise.LAPLACE, 10, 1, Adjacency.ZERO_OUT, count=100)]
    assert renyi_epsilon(releases, delta=1e-5) == pytest.approx(4.532686, rel=RDP)
    assert renyi_epsilon(releases, delta=0) is None


def test_what_tutorials_add_to_weights_even_with_a_clip() -> None:
    naive = Release(Noise.LAPLACE, 0.01, 2 * math.sqrt(110_000), Adjacency.REPLACE_ONE)
    assert epsilon([naive], delta=0) == pytest.approx(66_332, abs=1)


def test_concentrated_privacy() -> None:
    assert concentrated_epsilon(0.5, delta=1e-5) == pytest.approx(4.728507, rel=RDP)
    assert concentrated_epsilon(0.5, delta=1e-5) < 0.5 + 2 * math.sqrt(0.5 * math.log(1e5)) == pytest.approx(5.298526)
    assert epsilon([gaussian(1.0)], delta=1e-5) < concentrated_epsilon(0.5, delta=1e-5)
    assert concentrated_epsilon(0.81, delta=1e-10) == pytest.approx(8.922258, rel=RDP)


def test_the_published_figure_of_a_keyboards_language_model() -> None:
    """Tree aggregation with noise 7, a squared sensitivity of 79: published as 8.90 (arXiv 2305.18465)."""
    assert concentrated_epsilon(79 / (2 * 7**2), delta=1e-10) == pytest.approx(8.898605, rel=RDP)


@pytest.mark.parametrize(
    ("multiplier", "steps", "trees", "delta", "renyi"),
    [(10.0, 1024, 1, 1e-6, 1.549397), (7.0, 2000, 4, 1e-10, 6.448917)],
)
def test_tree_aggregation(multiplier: float, steps: int, trees: int, delta: float, renyi: float) -> None:
    """Each of a tree's levels holds a client once."""
    levels = math.floor(math.log2(steps)) + 1
    assert concentrated_epsilon(trees * levels / (2 * multiplier**2), delta=delta) == pytest.approx(renyi, rel=RDP)


@pytest.mark.parametrize(
    ("target", "multiplier"), [(0.5, 7.031827), (1, 3.730632), (2, 1.993812), (4, 1.081162), (8, 0.600229)]
)
def test_the_noise_for_a_budget(target: float, multiplier: float) -> None:
    assert gaussian_noise_multiplier(target, 1e-5) == pytest.approx(multiplier, rel=2e-6)


def test_calibrated_noise_spends_its_budget() -> None:
    assert renyi_epsilon([poisson(1.022290, 0.01, 1000)], delta=1e-5) == pytest.approx(2, rel=RDP)
    assert renyi_epsilon([gaussian(6.893044, count=100)], delta=1e-6) == pytest.approx(8, rel=RDP)


@pytest.mark.parametrize(("sigma", "probability", "most"), [(1, 0.01, 11_476), (1, 0.05, 368), (0.8, 0.01, 4531)])
def test_how_many_rounds_of_coins_a_budget_lasts(sigma: float, probability: float, most: int) -> None:
    spent = [renyi_epsilon([poisson(sigma, probability, count)], delta=1e-6) or 0 for count in (most, most + 1)]
    assert spent[0] <= 8 < spent[1]


def test_releases_of_different_kinds_add_up_in_any_order() -> None:
    releases = [poisson(1.0, 0.01, 500), poisson(1.5, 0.02, 500)]
    for given in (releases, releases[::-1]):
        assert epsilon(given, delta=1e-5) == pytest.approx(1.897483, rel=PLD)
        assert renyi_epsilon(given, delta=1e-5) == pytest.approx(2.147668, rel=RDP)


def test_gaussian_releases_of_different_noise_are_one_gaussian() -> None:
    """The sum and the count of an adaptive clip: 1 / 1.00504^2 + 1 / 10^2 = 1."""
    pair = [gaussian((1 - 0.01) ** -0.5), gaussian(5.0, sensitivity=0.5)]
    assert epsilon(pair, delta=1e-5) == pytest.approx(4.377178, rel=1e-6)


ROWS = [
    (1, 1, 100, 2**17, 1, 1e-5, 7_896.3, 4.75437, 4.754366),
    (1, 1, 100, 2**17, 1, 1e-5, 2_021_456.8, 4.75273, 4.752730),
    (4, 1, 100, 2**17, 10, 1e-6, 32_690.2, 4.01175, 4.011750),
    (4, 1, 100, 2**24, 10, 1e-6, 32_767.4, 4.02023, 4.020232),
    (4, 1, 1000, 2**24, 10, 1e-6, 523_314.2, 4.01165, 4.011654),
    (5, 0.1, 10, 2**17, 5, 1e-5, 4_194_240, 1.91620, 1.916196),
]


@pytest.mark.parametrize(("z", "norm", "clients", "size", "count", "delta", "scale", "skellam", "discrete"), ROWS)
def test_noise_that_clients_add_on_the_grid(
    z: float,
    norm: float,
    clients: int,
    size: int,
    count: int,
    delta: float,
    scale: float,
    skellam: float,
    discrete: float,
) -> None:
    release = DistributedRelease(norm, size, scale, z * norm, count)
    assert skellam_epsilon([release], delta=delta) == pytest.approx(skellam, abs=6e-6)
    assert discrete_gaussian_epsilon(release, num_clients=clients, delta=delta) == pytest.approx(discrete, abs=1e-6)


def test_skellam_noise_on_a_coarse_grid_is_charged_for_not_being_gaussian() -> None:
    """One coordinate of at most 2, a grid of whole numbers, a variance of 3: Agarwal et al. 2021, theorem 3.5."""
    orders, variance, norm = np.array([*range(2, 129), *range(160, 513, 32)]), 3.0, math.sqrt(2**2 + 1 / 4 + 2.5)
    extra = np.minimum(((2 * orders - 1) * norm**2 + 6 * norm) / (4 * variance**2), 3 * norm / (2 * variance))
    divergences = 5 * (orders * norm**2 / (2 * variance) + extra)
    expected, _ = dp_accounting.rdp.compute_epsilon(orders, divergences, 1e-5)
    release = DistributedRelease(2.0, 1, 1.0, math.sqrt(variance), count=5)
    assert skellam_epsilon([release], delta=1e-5) == pytest.approx(expected, rel=1e-9)


def test_a_coarse_grid_costs_more_than_a_fine_one() -> None:
    releases = [DistributedRelease(1.0, 2**17, scale, 1.0) for scale in (1e2, 1e3, 1e6)]
    assert [rounded_norm(release) for release in releases] == sorted(map(rounded_norm, releases), reverse=True)
    for cost in (
        lambda release, delta: skellam_epsilon([release], delta=delta),
        lambda release, delta: discrete_gaussian_epsilon(release, num_clients=9, delta=delta),
    ):
        spent = [cost(release, delta=1e-5) for release in releases]
        assert spent == sorted(spent, reverse=True)
        assert spent[-1] > epsilon([gaussian(1.0)], delta=1e-5)


def test_the_second_accountant_never_says_less() -> None:
    """On a random grid, so that a fault of either shows wherever it lies."""
    draw = np.random.default_rng(4)
    for _ in range(200):
        plain = [gaussian(draw.uniform(0.3, 20), count=int(draw.integers(1, 500)))]
        delta = 10 ** draw.uniform(-10, -3)
        assert (renyi_epsilon(plain, delta=delta) or 0) >= epsilon(plain, delta=delta) - 1e-3
    for _ in range(5):
        sampled = [poisson(draw.uniform(0.7, 4), 10 ** draw.uniform(-3, -0.7), int(draw.integers(1, 300)))]
        delta = 10 ** draw.uniform(-8, -4)
        assert (renyi_epsilon(sampled, delta=delta) or 0) >= epsilon(sampled, delta=delta) - 1e-3


def test_nothing_released_costs_nothing() -> None:
    assert epsilon([], delta=1e-5) == 0.0
    assert renyi_epsilon([gaussian(1.0, count=0)], delta=1e-5) == 0.0


def test_what_has_no_account_is_refused_and_says_why() -> None:
    with pytest.raises(ValueError, match=r"releases under replace_one and zero_out have no epsilon together"):
        epsilon([gaussian(1), gaussian(1, adjacency=Adjacency.REPLACE_ONE)], delta=1e-5)
    fixed = gaussian(1, sampling=FixedSizeSampling(100, 10))
    with pytest.raises(ValueError, match=r"RdpAccountant has no account of gaussian noise under zero_out"):
        epsilon([fixed], delta=1e-5)
    cut = Release(Noise.LAPLACE, 1, 1, Adjacency.ZERO_OUT, sampling=TruncatedPoissonSampling(0.1, 100, 20))
    with pytest.raises(ValueError, match=r"PLDAccountant has no account of laplace noise under zero_out"):
        epsilon([cut], delta=1e-5)
