"""A masked round of several sessions under a robust strategy: it combines their means, and one session is outvoted."""

from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.masked import MaskedClient, MaskedCohort, flat, masked_spec
from tests.support.participant import create_run, small_model, unpack, wait_for_run
from tests.support.refusals import assert_refused

# The sums are the same bytes on both databases, which tests of sessions show.
pytestmark = pytest.mark.parametrize("shared_server", ["sqlite"], indirect=True)

SHARDS = {"target_members": 3}


def session_of_three(cohort: MaskedCohort, group: list[MaskedClient]) -> None:
    for client in group:
        client.take_seat()
    cohort.phase(MaskedClient.send_shares, group)
    cohort.phase(lambda client: client.send_input(cohort.ring), group)
    cohort.phase(MaskedClient.send_signature, group)
    cohort.phase(MaskedClient.send_answer, group)
    assert group[0].leave("summing") == "done"


@pytest.mark.parametrize(
    ("strategy", "combine"),
    [
        ({"kind": "median"}, lambda means: np.median(means, axis=0)),
        ({"kind": "trimmed_mean", "trim_fraction": 0.34}, lambda means: np.sort(means, axis=0)[1]),
    ],
    ids=["median", "trimmed_mean"],
)
def test_a_robust_strategy_combines_the_sessions_means_and_outvotes_a_poisoned_one(
    shared_operator: httpx.Client, strategy: dict[str, Any], combine: Any
) -> None:
    spec = masked_spec(9, strategy=strategy, secure_aggregation=SHARDS, round={"min_updates": 9})
    run_id = create_run(shared_operator, small_model(), **spec)
    cohort = MaskedCohort.enrol(shared_operator, run_id, 9)
    cohort.claim()
    wrong = cohort.clients[4]
    wrong.vector = np.full_like(wrong.vector, -int(1 / cohort.ring.step))
    for client in cohort.clients:
        client.ask_for_seat()
    groups = [cohort.clients[at : at + 3] for at in (0, 3, 6)]
    # Not in the order in which they began.
    for group in (groups[2], groups[0], groups[1]):
        session_of_three(cohort, group)
    means = np.array([cohort.expected(group) * cohort.ring.step / 3 for group in groups])
    assert np.abs(means[1]).max() > 0.2 > np.abs(combine(means)).max()
    delta = flat(unpack(wait_for_run(shared_operator, run_id, version=1).content)) - flat(small_model())
    np.testing.assert_allclose(delta, combine(means), atol=1e-6)


def test_a_round_with_too_few_sessions_for_its_strategy_is_refused(shared_operator: httpx.Client) -> None:
    trimmed = {"kind": "trimmed_mean", "trim_fraction": 0.2}
    refused = [
        (["strategy.kind 'median'", "2 of them", "secure_aggregation.target_members 5"], {"kind": "median"}, {}),
        (["strategy.trim_fraction 0.2", "none of the 3 sessions"], trimmed, {"target_members": 4}),
        (["strategy.num_byzantine 1 needs", "5 sessions for krum"], {"kind": "krum", "num_byzantine": 1}, {}),
        (["strategy.weighting must be 'uniform'"], {"kind": "geometric_median"}, {"target_members": 3}),
        (["strategy.max_update_norm"], {"kind": "median", "max_update_norm": {"kind": "clip", "norm": 1}}, SHARDS),
    ]
    for parts, strategy, masked in refused:
        members = {"target_members": 5} | masked
        spec = masked_spec(10, strategy=strategy, secure_aggregation=members, round={"min_updates": 10})
        answer = shared_operator.post("/v1/runs", json={"name": "test"} | spec)
        assert_refused(answer, "invalid-request", *parts)


def test_noise_for_a_mean_is_refused_with_another_strategy(shared_operator: httpx.Client) -> None:
    for kind in ("central_gaussian", "distributed_skellam"):
        privacy = {"kind": kind, "target_epsilon": 8.0, "delta": 1e-6}
        if kind == "distributed_skellam":
            privacy["max_parameters"] = 100
        spec = masked_spec(9, strategy={"kind": "median"}, secure_aggregation=SHARDS, privacy=privacy)
        answer = shared_operator.post("/v1/runs", json={"name": "test"} | spec)
        assert_refused(answer, "invalid-request", "it needs strategy.kind 'mean', not 'median'")
