"""What a run's privacy costs a client: the calibrated noise keeps the budget, and nobody's spending ever shrinks."""

import builtins
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.privacy import releases as releases_module
from fl_protocol.privacy.accounting import (
    calibrated,
    delta_of,
    epsilon_spent,
    releases,
    renyi_epsilon_spent,
    value_noise_multiplier,
)
from fl_protocol.privacy.utility import local_noise, loudness
from fl_protocol.runs import RunSpec
from fl_protocol.specs.privacy import CentralGaussianAdaptivePrivacy

KINDS = ("central_gaussian", "central_gaussian_adaptive", "central_blt", "local_laplace", "local_gaussian")


def spec_of(
    kind: str = "central_gaussian",
    *,
    epsilon: float = 8.0,
    rounds: int = 10,
    participations: int | None = None,
    **more: Any,
) -> RunSpec:
    privacy = {"kind": kind, "target_epsilon": epsilon, **({} if kind == "local_laplace" else {"delta": 1e-6}), **more}
    return RunSpec.model_validate(
        {
            "num_rounds": rounds,
            "round": {"quorum": 100},
            "selection": {"max_participations": participations},
            "strategy": {"kind": "mean", "weighting": "uniform"},
            "privacy": privacy,
        }
    )


def multiplier(spec: RunSpec) -> float:
    return float(getattr(spec.privacy, "noise_multiplier"))  # noqa: B009 - one of many kinds


def spent(spec: RunSpec, count: int, rounds: int | None = None) -> float:
    return epsilon_spent(spec, num_participations=count, num_rounds=spec.num_rounds if rounds is None else rounds)


@pytest.mark.parametrize(
    ("epsilon", "multipliers"),
    [
        (1, (4.22468, 9.44667, 13.35961)),
        (2, (2.23048, 4.98750, 7.05339)),
        (4, (1.19352, 2.66879, 3.77424)),
        (8, (0.65294, 1.46001, 2.06476)),
    ],
)
def test_the_calibrated_noise(epsilon: float, multipliers: tuple[float, ...]) -> None:
    plans = [spec_of(epsilon=epsilon, rounds=20, participations=count) for count in (1, 5, 10)]
    found = [multiplier(calibrated(plan)) for plan in plans]
    assert found == pytest.approx(multipliers, abs=1.01e-5)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(
    epsilon=st.floats(0.05, 50),
    delta=st.floats(1e-12, 1e-3),
    rounds=st.integers(1, 300),
    participations=st.none() | st.integers(1, 400),
)
def test_the_calibrated_noise_keeps_the_budget_and_hardly_less_would(
    kind: str, epsilon: float, delta: float, rounds: int, participations: int | None
) -> None:
    more = {} if kind == "local_laplace" else {"delta": delta}
    if kind == "central_gaussian_adaptive":
        more["count_stddev"] = 9999
    plan = calibrated(spec_of(kind, epsilon=epsilon, rounds=rounds, participations=participations, **more))
    assert calibrated(plan) == plan
    most = min(rounds, participations or rounds)
    assert spent(plan, most) <= epsilon
    noise = multiplier(plan)
    assert noise == round(noise, 5)
    less = noise - 2.1e-5
    if noise > 0.01 and less >= 0.01:
        louder = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"noise_multiplier": less})})
        assert spent(louder, most) > epsilon


@pytest.mark.parametrize("kind", KINDS)
def test_spending_starts_at_nothing_and_never_shrinks(kind: str) -> None:
    plan = calibrated(spec_of(kind, rounds=30, participations=12))
    assert spent(plan, 0) == 0.0
    assert spent(plan, 3, 0) == 0.0
    counts = [spent(plan, count) for count in range(16)]
    assert counts == sorted(counts)
    assert counts[1] > 0
    rounds = [spent(plan, min(3, done), done) for done in range(31)]
    assert rounds == sorted(rounds)
    assert counts[12] <= 8 < counts[13]


def test_correlated_noise_is_charged_whole_with_the_first_release() -> None:
    plan = calibrated(spec_of("central_blt", rounds=30, participations=5))
    assert multiplier(plan) == pytest.approx(0.65294, abs=1.01e-5)
    assert {spent(plan, count) for count in range(1, 6)} == {spent(plan, 5)}
    assert spent(plan, 0) == 0.0
    assert spent(plan, 5) == pytest.approx(8, rel=1e-4)


@pytest.mark.parametrize(("count", "rounds"), [(6, 30), (1, 31)])
def test_correlated_noise_promises_nothing_beyond_its_plan(count: int, rounds: int) -> None:
    assert spent(calibrated(spec_of("central_blt", rounds=30, participations=5)), count, rounds) == math.inf


def test_a_cap_on_participation_is_what_makes_many_rounds_affordable() -> None:
    plan = spec_of(epsilon=100, rounds=500, noise_multiplier=5.0)
    assert spent(plan, 500) == pytest.approx(30.58, abs=0.005)
    assert spent(plan, 5) == pytest.approx(1.99, abs=0.005)


@pytest.mark.parametrize(("noise", "most"), [(1.0, 2), (2.0, 9), (4.0, 37), (5.0, 58)])
def test_how_often_a_budget_of_eight_lets_a_client_take_part(noise: float, most: int) -> None:
    plan = spec_of(rounds=100, noise_multiplier=noise)
    assert spent(plan, most) <= 8 < spent(plan, most + 1)


def test_local_noise_covers_twice_the_clipping_norm() -> None:
    for kind in ("local_laplace", "local_gaussian"):
        plan = calibrated(spec_of(kind, rounds=4))
        (release,) = releases(plan, num_participations=4)
        assert release.sensitivity == 2.0
        assert release.sigma == 2 * multiplier(plan)
    assert multiplier(calibrated(spec_of("local_laplace", rounds=4))) == 0.5
    assert delta_of(spec_of("local_laplace")) == 0.0
    assert delta_of(spec_of("local_gaussian")) == 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_accountant_never_says_less(kind: str) -> None:
    plan = calibrated(spec_of(kind, rounds=20))
    for count in (0, 1, 5, 20):
        other = renyi_epsilon_spent(plan, num_participations=count, num_rounds=20)
        if kind == "local_laplace" and count:
            assert other is None
        else:
            assert other is not None
            assert other >= spent(plan, count) - 1e-3


def test_without_a_promise_there_is_no_bound() -> None:
    dpsgd = RunSpec.model_validate({"privacy": {"kind": "example_dpsgd", "target_epsilon": 3, "delta": 1e-6}})
    for plan in (RunSpec(), dpsgd):
        assert calibrated(plan) == plan
        assert spent(plan, 0) == 0.0
        assert spent(plan, 1) == math.inf
        assert renyi_epsilon_spent(plan, num_participations=1, num_rounds=1) == math.inf
        with pytest.raises(ValueError, match=r"has no account of a client's updates"):
            releases(plan, num_participations=1)
    with pytest.raises(ValueError, match=r"privacy.noise_multiplier is not calibrated"):
        spent(spec_of(), 1)


@pytest.mark.parametrize(
    ("noise", "stddev", "value_noise"),
    [
        (0.5, 0.5, 0.57735),
        (1, 1, 1.1547),
        (1, 2.5, 1.02062),
        (1, 5, 1.00504),
        (2, 2.5, 2.18218),
        (5, 50, 5.00626),
    ],
)
def test_the_count_of_an_adaptive_clip_is_paid_from_the_same_budget(
    noise: float, stddev: float, value_noise: float
) -> None:
    privacy = spec_of("central_gaussian_adaptive", noise_multiplier=noise, count_stddev=stddev).privacy
    assert isinstance(privacy, CentralGaussianAdaptivePrivacy)
    assert value_noise_multiplier(privacy, quorum=100) == pytest.approx(value_noise, abs=1e-5)


@pytest.mark.parametrize(("noise", "quorum"), [(1.0, 10), (2.0, 20), (5.0, 50)])
def test_a_count_that_would_spend_everything_is_refused(noise: float, quorum: int) -> None:
    document = spec_of("central_gaussian_adaptive", epsilon=100, noise_multiplier=noise).model_dump(mode="json")
    document["round"] = {"quorum": quorum}
    with pytest.raises(ValueError, match=rf"privacy.count_stddev \(quorum / 20\) {quorum / 20:g} lets the count"):
        calibrated(RunSpec.model_validate(document))
    document["round"] = {"quorum": quorum + 1}
    calibrated(RunSpec.model_validate(document))


def test_noise_with_which_no_round_could_be_published_is_refused() -> None:
    said = (
        r"privacy.noise_multiplier 0.1 spends epsilon \S+ with a client's first update, and privacy.target_epsilon is 8"
    )
    with pytest.raises(ValueError, match=said):
        calibrated(spec_of(noise_multiplier=0.1))
    first = spent(spec_of(noise_multiplier=1.0), 1)
    calibrated(spec_of(epsilon=first, noise_multiplier=1.0))
    with pytest.raises(ValueError, match=said.replace("0.1", "1").replace("is 8", "is 4.88")):
        calibrated(spec_of(epsilon=math.nextafter(first, 0), noise_multiplier=1.0))


def test_a_budget_that_needs_more_noise_than_there_is_says_what_would_do() -> None:
    with pytest.raises(ValueError, match=r"privacy.target_epsilon 0.001 over 1000000 participations .* at most 10000"):
        calibrated(spec_of(epsilon=1e-3, rounds=1_000_000))


def test_a_budget_that_needs_less_noise_than_there_is_has_the_least() -> None:
    assert multiplier(calibrated(spec_of(epsilon=1e6, rounds=1))) == 0.01


def test_secret_coins_are_not_charged_less() -> None:
    """Rounds tell how many took part, and fail with too few: then sampling amplifies nothing (docs/adr/0025)."""
    plan = spec_of(rounds=10)
    document = plan.model_dump(mode="json")
    document["selection"] = {"kind": "poisson", "probability": 0.1, "population": 2000}
    coins = RunSpec.model_validate(document)
    assert calibrated(coins).privacy == calibrated(plan).privacy
    assert spent(calibrated(coins), 4) == spent(calibrated(plan), 4)
    assert releases(calibrated(coins), num_participations=4)[0].sampling is None


def test_loudness() -> None:
    """Noise over signal, z = 1: 100 clients with 110,000 parameters 3.3, ten times the clients a tenth."""
    plan = spec_of(epsilon=1e6, noise_multiplier=1.0)
    loud = loudness(plan, num_parameters=110_000)
    assert loud.ratio == pytest.approx(3.3166, abs=1e-4)
    assert (loud.clients, loud.parameters) == (332, 10_000)
    local = loudness(spec_of("local_gaussian", epsilon=1e6, noise_multiplier=1.0), num_parameters=100)
    assert (local.ratio, local.clients, local.parameters) == (2.0, 400, 25)
    laplace = loudness(spec_of("local_laplace", epsilon=1e6, noise_multiplier=1.0), num_parameters=100)
    assert laplace.ratio == pytest.approx(2 * math.sqrt(2))
    blt = loudness(spec_of("central_blt", epsilon=1e6, noise_multiplier=1.0, participations=4), num_parameters=100)
    assert blt.ratio == pytest.approx(0.2)
    adaptive = loudness(spec_of("central_gaussian_adaptive", epsilon=1e6, noise_multiplier=1.0), num_parameters=110_000)
    assert adaptive.ratio == pytest.approx(3.3166 * 1.00504, abs=1e-4)
    with pytest.raises(ValueError, match=r"privacy.kind 'none' adds no noise"):
        loudness(RunSpec(), num_parameters=1)
    with pytest.raises(ValueError, match=r"not calibrated"):
        loudness(spec_of(), num_parameters=1)


@pytest.mark.parametrize(
    ("row", "noise", "clients"),
    [
        (0, 7.461, (5_567, 6.1e6, 557e6)),
        (1, 2.162, (467, 514_000, 47e6)),
        (2, 1.201, (144, 158_500, 14e6)),
    ],
)
def test_what_local_noise_really_gives(row: int, noise: float, clients: tuple[float, ...]) -> None:
    found = local_noise(delta=1e-5)[row]
    assert found.noise_stddev == pytest.approx(noise, abs=1e-3)
    assert list(found.clients.values()) == pytest.approx(clients, rel=0.03)


def test_the_accountant_is_imported_only_when_something_is_accounted() -> None:
    code = (
        "import sys, fl_protocol.privacy.accounting, fl_protocol.privacy.distributed\n"
        "assert not {'dp_accounting', 'scipy'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_accountant_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("dp_accounting"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    releases_module._gaussian_epsilon.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"install fedquorum\[privacy\]"):
        spent(spec_of(noise_multiplier=3.21), 1)
