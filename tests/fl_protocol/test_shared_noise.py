"""Noise that the clients of a masked run share: who may declare it, how wide a share is, and what a sum costs."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fl_protocol.masked_vectors import check_masked_model, manifest_ring, ring_of
from fl_protocol.masking.graph import can_proceed, graph_of, neighbours
from fl_protocol.masking.ring import check_sum, measure_sum, pack, signed, to_words, unpack
from fl_protocol.presets import promise
from fl_protocol.privacy.accounting import calibrated, epsilon_spent, releases, renyi_epsilon_spent
from fl_protocol.privacy.shared_noise import shared_noise, sum_release, sum_releases
from fl_protocol.privacy.skellam import skellam
from fl_protocol.privacy.utility import loudness
from fl_protocol.privacy_claims import Adjacency, PrivacyUnit, Trust, promise_of
from fl_protocol.problems import ProblemError
from fl_protocol.runs import RunSpec
from fl_protocol.specs.secure_aggregation import min_members
from fl_protocol.tensors import Header, TensorSpec

SKELLAM = {"kind": "distributed_skellam", "target_epsilon": 8.0, "delta": 1e-6}


def document(
    *, masked: dict[str, Any] | None = None, privacy: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "num_rounds": 10,
        "round": {"quorum": 8, "cohort_size": 10, "min_updates": 8},
        "strategy": {"kind": "mean", "weighting": "uniform"},
        "privacy": SKELLAM | (privacy or {}),
        "secure_aggregation": {"kind": "pairwise"} | (masked or {}),
        **more,
    }


def spec_of(**changes: Any) -> RunSpec:
    return RunSpec.model_validate(document(**changes))


def everyone(clients: int, **privacy: Any) -> RunSpec:
    """A run in which nobody drops out and nobody colludes, as in the specification's reference table."""
    return spec_of(
        round={"quorum": clients},
        masked={"target_members": clients},
        privacy={"assumed_colluders": 0.0, "target_epsilon": 1e6} | privacy,
    )


def spent(spec: RunSpec, count: int, sums: dict[int, int] | None = None) -> float:
    return epsilon_spent(spec, num_participations=count, num_rounds=count, sums=sums)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"secure_aggregation": {"kind": "none"}},
            "privacy.kind 'distributed_skellam' .* needs secure_aggregation.kind",
        ),
        ({"strategy": {"kind": "median"}}, "needs strategy.kind 'mean'"),
        ({"strategy": {"kind": "mean", "weighting": "num_examples"}}, "needs strategy.weighting 'uniform'"),
        ({"round": {"kind": "buffered"}}, "needs round.kind 'synchronous'"),
        ({"algorithm": {"kind": "fednova"}}, "algorithm.kind 'fednova'"),
        ({"evaluation": {"every": 1}}, "evaluation.every 1"),
        ({"masked": {"metrics": {"loss": {"max_abs": 9}}}}, "secure_aggregation.metrics"),
        ({"masked": {"clipping_norm": 2.0}}, "secure_aggregation.clipping_norm 2 must be privacy.clipping_norm 1"),
        ({"privacy": {"delta": 0.01}, "round": {"quorum": 200}}, "privacy.delta 0.01"),
        ({"privacy": {"min_survivors": 4}}, "privacy.min_survivors 4 must be at least .*min_members 5"),
        ({"privacy": {"min_survivors": 11}}, "privacy.min_survivors 11 .* at most the 10 members"),
        ({"privacy": {"assumed_colluders": 0.31}}, "assumed_colluders"),
        (
            {"privacy": {"assumed_colluders": 0.2}, "round": {"quorum": 200}, "masked": {"target_members": 200}},
            "privacy.assumed_colluders 0.2 are 40 of the 200 members .* take at most 0.1",
        ),
    ],
)
def test_what_would_break_the_promise_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RunSpec.model_validate(document(**changes))


def test_a_sum_has_as_many_clients_as_the_round_or_the_session_needs() -> None:
    assert min_members(spec_of()) == 8
    assert min_members(spec_of(privacy={"min_survivors": 6})) == 6
    # Of a round of several sessions each may be as small as a session may be.
    assert min_members(spec_of(masked={"target_members": 6})) == 5
    assert min_members(spec_of(round={"quorum": 8, "cohort_size": 10, "min_updates": 3})) == 5
    assert min_members(RunSpec.model_validate(document() | {"privacy": {"kind": "none"}})) == 5


def test_a_session_below_the_fewest_survivors_ends_before_anything_is_unmasked() -> None:
    spec = calibrated(spec_of(privacy={"min_survivors": 9}))
    told = manifest_ring(spec).min_members
    graph = graph_of(10)
    everybody = neighbours(bytes(32), 10, graph.degree)
    assert told == 9
    for stayed, goes_on in ((9, True), (8, False)):
        alive = range(stayed)
        assert can_proceed(alive, alive, graph=graph, neighbours=everybody, min_members=told) is goes_on
    assert can_proceed(range(8), range(8), graph=graph, neighbours=everybody, min_members=5)


@pytest.mark.parametrize(
    ("epsilon", "multipliers"),
    [
        (1, (4.53980, 10.15129, 14.35609)),
        (2, (2.38727, 5.33809, 7.54920)),
        (4, (1.27078, 2.84155, 4.01856)),
        (8, (0.69603, 1.55637, 2.20104)),
    ],
)
def test_the_calibrated_noise(epsilon: float, multipliers: tuple[float, ...]) -> None:
    """By Renyi DP of integer orders, so that it is up to 8% more than Gaussian noise needs by its exact formula."""
    plans = [
        calibrated(spec_of(selection={"max_participations": count}, privacy={"target_epsilon": epsilon}))
        for count in (1, 5, 10)
    ]
    assert [getattr(plan.privacy, "noise_multiplier", None) for plan in plans] == list(multipliers)
    for plan, count in zip(plans, (1, 5, 10), strict=True):
        assert epsilon * (1 - 1e-4) < spent(plan, count) <= epsilon


@pytest.mark.parametrize(
    ("z", "norm", "clients", "size", "count", "delta", "epsilon"),
    [
        (4, 1, 100, 2**24, 10, 1e-6, 4.02023),
        (1, 1, 100, 2**17, 1, 1e-5, 4.75273),
        (4, 1, 100, 2**17, 10, 1e-6, 4.01175),
        (5, 0.1, 10, 2**17, 5, 1e-5, 1.91620),
    ],
)
def test_a_run_costs_what_the_reference_table_says(
    z: float, norm: float, clients: int, size: int, count: int, delta: float, epsilon: float
) -> None:
    """Table 4.15: the first row here is on the run's own grid, the others are finer, which is hardly cheaper."""
    spec = everyone(clients, noise_multiplier=z, clipping_norm=norm, max_parameters=size, delta=delta)
    assert spent(spec, count) == pytest.approx(epsilon, rel=2e-6 if size == 2**24 else 2.5e-3)
    assert spent(spec, count) >= epsilon * (1 - 2e-6)


def test_a_share_is_as_wide_as_the_fewest_honest_survivors_need() -> None:
    spec = spec_of(privacy={"noise_multiplier": 2.0, "target_epsilon": 1e6, "clipping_norm": 0.5})
    noise, fewest = shared_noise(spec), 8
    assert noise.scale == pytest.approx(max(2**12 * math.sqrt(10) / (2.0 * 0.5), 8 * 2**12 / 0.5))
    assert noise.stddev == pytest.approx(noise.scale * 2.0 * 0.5 / math.sqrt(0.9 * fewest))
    assert noise.headroom == math.ceil(10 * noise.stddev * math.sqrt(10))
    assert sum_release(spec, num_survivors=fewest).stddev == pytest.approx(2.0 * 0.5)
    assert sum_release(spec, num_survivors=10).stddev == pytest.approx(2.0 * 0.5 * math.sqrt(10 / 8))
    fine = spec_of(privacy={"noise_multiplier": 0.05, "target_epsilon": 1e6, "max_parameters": 100})
    assert shared_noise(fine).scale == pytest.approx(2**12 * math.sqrt(10) / 0.05)
    # Rounding lengthens an update by at most 0.2%.
    for one in (spec, fine):
        noise, norm = shared_noise(one), getattr(one.privacy, "clipping_norm", 0.0)
        assert noise.scale * norm < noise.max_norm <= 1.0021 * noise.scale * norm


def test_more_survivors_cost_less_and_the_worst_sums_are_charged() -> None:
    spec = calibrated(spec_of())
    by_size = [spent(spec, 4, {size: 4}) for size in (8, 9, 10)]
    assert by_size == sorted(by_size, reverse=True)
    assert by_size[0] == spent(spec, 4)
    assert by_size[2] < 0.93 * by_size[0]
    mixed = {8: 2, 9: 1, 10: 7}
    assert spent(spec, 4, mixed) == spent(spec, 4, {8: 2, 9: 1, 10: 1})
    assert [(one.count, one.stddev) for one in sum_releases(spec, num_participations=4, sizes=mixed)] == [
        (count, sum_release(spec, num_survivors=size).stddev) for size, count in ((8, 2), (9, 1), (10, 1))
    ]
    # What is not known to be larger counts as the smallest.
    assert spent(spec, 4, {10: 1}) == spent(spec, 4, {10: 1, 8: 3})
    assert (spent(spec, 0), renyi_epsilon_spent(spec, num_participations=1, num_rounds=1)) == (0.0, None)


def test_a_planned_number_of_clients_would_charge_too_little() -> None:
    """Section 4.8: noise that was made for 100 clients, of whom 70 stay, costs 5.39 instead of 4.38."""
    planned = everyone(100, noise_multiplier=1.0, delta=1e-5, max_parameters=100)
    assert spent(planned, 1, {70: 1}) / spent(planned, 1) == pytest.approx(5.39 / 4.38, rel=0.03)


@settings(max_examples=25, deadline=None)
@given(
    epsilon=st.floats(0.3, 30),
    clients=st.integers(5, 300),
    colluders=st.floats(0, 0.1),
    size=st.sampled_from([10, 10**5, 2**24]),
    norm=st.floats(1e-3, 1e3),
)
def test_no_sum_of_the_largest_session_can_wrap(
    epsilon: float, clients: int, colluders: float, size: int, norm: float
) -> None:
    spec = calibrated(
        spec_of(
            num_rounds=3,
            round={"quorum": clients},
            masked={"target_members": clients},
            privacy={
                "target_epsilon": epsilon,
                "assumed_colluders": colluders,
                "max_parameters": size,
                "clipping_norm": norm,
            },
        )
    )
    ring, noise = ring_of(spec), shared_noise(spec)
    assert (ring.step, ring.headroom, ring.extras) == (noise.step, noise.headroom, ())
    assert noise.headroom >= 10 * noise.stddev * math.sqrt(clients)
    assert clients * (noise.scale * norm + 1) + noise.headroom <= 2 ** (ring.bits - 1) - 1
    assert ring.bits in {24, 32}


def test_a_sum_goes_through_the_ring_and_its_checks() -> None:
    spec = calibrated(spec_of())
    ring, noise = ring_of(spec), shared_noise(spec)
    sent = [
        skellam(bytes([client] * 32), first=0, count=5000, variance=noise.variance) + ring.levels
        for client in range(10)
    ]
    words = sum(unpack(pack(to_words(each, ring), ring.bits), ring.bits) for each in sent)
    total = signed(words, ring.bits)  # type: ignore[arg-type]
    np.testing.assert_array_equal(total, sum(sent))
    check_sum(measure_sum(total), np.array([], dtype=np.int64), ring=ring, num_members=10, num_coordinates=5000)


def test_noise_that_no_client_could_draw_is_refused_with_what_would_help() -> None:
    with pytest.raises(ValueError, match=r"privacy.noise_multiplier .* can be drawn; set privacy.max_parameters"):
        calibrated(spec_of(privacy={"target_epsilon": 1.0}, num_rounds=100))
    calibrated(spec_of(privacy={"target_epsilon": 1.0, "max_parameters": 10**6}, num_rounds=100))
    with pytest.raises(ValueError, match=r"privacy.target_epsilon 0.01 .* less than the 0.0"):
        calibrated(spec_of(privacy={"target_epsilon": 0.01}))
    with pytest.raises(ValueError, match=r"not calibrated"):
        shared_noise(spec_of())
    with pytest.raises(ValueError, match=r"no account of a client's updates by their number alone"):
        releases(calibrated(spec_of()), num_participations=1)
    with pytest.raises(ValueError, match=r"no noise that clients share"):
        shared_noise(RunSpec())


def test_a_model_larger_than_the_noise_was_made_for_is_refused() -> None:
    spec = spec_of(privacy={"max_parameters": 10})
    check_masked_model(model(10), spec)
    with pytest.raises(ProblemError, match=r"11 parameters travel, and privacy.max_parameters 10"):
        check_masked_model(model(11), spec)


def model(size: int) -> Header:
    return Header((TensorSpec("w", "F32", (size,), 0, 4 * size),), {}, 100, 100 + 4 * size)


def test_what_is_promised_and_on_whose_honesty_it_rests() -> None:
    spec = spec_of(privacy={"assumed_colluders": 0.2})
    assert promise_of(spec.privacy) == (PrivacyUnit.CLIENT, Adjacency.ZERO_OUT, Trust.CLIENTS)
    sentence = " ".join(promise(spec).sentences)
    assert "even the operator sees only noisy sums" in sentence
    assert "at least 0.8 of the clients in each sum are real, add their noise and tell nobody what it was" in sentence


def test_how_loud_the_noise_is_beside_what_it_learns_from() -> None:
    one = spec_of(privacy={"noise_multiplier": 1.0, "target_epsilon": 1e6}, round={"quorum": 10, "min_updates": 8})
    loud = loudness(one, num_parameters=10_000)
    assert loud.ratio == pytest.approx(math.sqrt(10 / (0.9 * 8)) * 100 / 10)
    assert loud.clients == math.ceil(100 * math.sqrt(10 / (0.9 * 8)))
    many = spec_of(
        privacy={"noise_multiplier": 1.0, "target_epsilon": 1e6, "min_survivors": 8},
        round={"quorum": 100},
        masked={"target_members": 10},
    )
    assert loudness(many, num_parameters=10_000).ratio == pytest.approx(math.sqrt(1 / (0.9 * 8)) * 100 / 10)


def test_sizes_that_are_counted_may_be_a_counter() -> None:
    spec = calibrated(spec_of())
    assert spent(spec, 2, Counter([10, 9, 9])) == spent(spec, 2, {9: 2})
