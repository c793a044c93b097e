"""Real servers and clients that hold them to a policy: a refusal costs the run nothing but the time of one claim."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from client_sdk import (
    Participation,
    PolicyError,
    PrivacyPolicy,
    Progress,
    TrainedModel,
    TrainingTask,
    participate_blocking,
)
from client_sdk.session.progress import PrivacySpent, TaskClaimed
from fl_protocol.specs.privacy import MAX_LOCAL_PARAMETERS
from tests.support.participant import MEDIA_TYPE, create_run, enrol, pack, small_model
from tests.support.refusals import assert_refused
from tests.support.server import ServerProcess

LOCAL = {"kind": "local_gaussian", "target_epsilon": 8.0, "delta": 1e-6}


def train(task: TrainingTask) -> TrainedModel:
    return TrainedModel(tensors=dict(task.model), num_examples=1)


@pytest.mark.parametrize("kind", ["central_gaussian", "central_blt", "local_laplace", "local_gaussian"])
def test_what_clients_count_is_what_the_server_claims(
    kind: str, shared_server: ServerProcess, shared_operator: httpx.Client, tmp_path: Path
) -> None:
    privacy = {"kind": kind, "target_epsilon": 8.0} | ({} if kind == "local_laplace" else {"delta": 1e-6})
    model = {"w": np.zeros(8, dtype=np.float32)}
    strategy = {"kind": "mean", "weighting": "uniform"}
    run_id = create_run(shared_operator, model, num_rounds=3, round={"quorum": 2}, privacy=privacy, strategy=strategy)
    told: dict[str, list[Progress]] = {"a": [], "b": []}

    def one(name: str) -> Participation:
        folder = tmp_path / name
        folder.mkdir()
        return participate_blocking(
            shared_server.url,
            run_id,
            train,
            token=enrol(shared_operator, name).token,
            state_dir=folder,
            policy=PrivacyPolicy(max_epsilon=8.0, min_cohort=2),
            on_event=told[name].append,
        )

    with ThreadPoolExecutor(2) as pool:
        assert [done.num_updates for done in pool.map(one, told)] == [3, 3]
    for events in told.values():
        claims = [event.task.privacy_claim for event in events if isinstance(event, TaskClaimed)]
        spent = [event.epsilon for event in events if isinstance(event, PrivacySpent)]
        assert spent == pytest.approx([claim.epsilon_yours for claim in claims if claim is not None], rel=1e-9)
        assert len(spent) == 3
        assert 0.99 * 8 < spent[-1] <= 8


def test_noise_that_would_have_updates_refused_is_refused_when_the_run_is_created(
    shared_operator: httpx.Client,
) -> None:
    answer = shared_operator.post("/v1/runs", json={"privacy": LOCAL | {"noise_multiplier": 100.0}})
    assert_refused(answer, "invalid-request", "strategy.max_abs_delta 1024", "2001", "noise, whose width is 200")
    wide = {"kind": "median", "max_abs_delta": 2001.0}
    answer = shared_operator.post("/v1/runs", json={"privacy": LOCAL | {"noise_multiplier": 100.0}, "strategy": wide})
    assert answer.status_code == 201, answer.text


def never(task: TrainingTask) -> TrainedModel:
    raise AssertionError("nothing may be trained")


def test_a_client_whose_policy_refuses_a_run_hands_its_place_to_another(
    shared_server: ServerProcess, shared_operator: httpx.Client, tmp_path: Path
) -> None:
    run_id = create_run(shared_operator, small_model(), num_rounds=1, round={"quorum": 1})
    strict, open_minded = enrol(shared_operator, "strict"), enrol(shared_operator, "open-minded")
    with pytest.raises(PolicyError, match=r"policy\.allowed_kinds .* privacy\.kind 'none'") as refused:
        participate_blocking(
            shared_server.url, run_id, never, token=strict.token, state_dir=tmp_path, policy=PrivacyPolicy()
        )
    assert (refused.value.field, refused.value.value) == ("allowed_kinds", "none")
    done = participate_blocking(
        shared_server.url,
        run_id,
        train,
        token=open_minded.token,
        policy=PrivacyPolicy(allowed_kinds=("none",), min_cohort=1),
    )
    assert done.num_updates == 1
    (counted,) = shared_operator.get(f"/v1/runs/{run_id}/rounds/1/updates").json()["items"]
    assert counted["client_id"] == open_minded.client_id


def test_the_smallest_cohort_is_the_runs_own(
    shared_server: ServerProcess, shared_operator: httpx.Client, tmp_path: Path
) -> None:
    few = {"quorum": 3, "min_updates": 2}
    run_id = create_run(shared_operator, small_model(), num_rounds=1, round=few)
    client = enrol(shared_operator)
    policy = PrivacyPolicy(allowed_kinds=("none",), min_cohort=3)
    with pytest.raises(PolicyError, match=r"policy\.min_cohort 3 is more than round\.min_updates 2"):
        participate_blocking(shared_server.url, run_id, never, token=client.token, state_dir=tmp_path, policy=policy)


def test_a_model_too_large_for_noise_in_each_message_is_refused_when_it_is_uploaded(
    shared_operator: httpx.Client,
) -> None:
    model = {"w": np.zeros(MAX_LOCAL_PARAMETERS + 1, dtype=np.float32)}

    def upload(**fields: object) -> httpx.Response:
        made = shared_operator.post("/v1/runs", json={"privacy": LOCAL | fields})
        assert made.status_code == 201, made.text
        path = f"/v1/runs/{made.json()['run_id']}/models/0"
        return shared_operator.put(path, content=pack(model), headers={"Content-Type": MEDIA_TYPE})

    assert_refused(upload(), "structure-mismatch", "10001 parameters", "at most 10000", "privacy.i_understand")
    assert upload(i_understand=True).status_code == 201


def test_a_model_of_another_run_is_held_to_the_same_bound(shared_operator: httpx.Client) -> None:
    model = {"w": np.zeros(MAX_LOCAL_PARAMETERS + 1, dtype=np.float32)}
    run_id = create_run(shared_operator, model, num_rounds=1, start=False)
    initial = {"kind": "version", "run_id": run_id, "version": 0}
    answer = shared_operator.post("/v1/runs", json={"privacy": LOCAL, "initial_model": initial})
    assert_refused(answer, "structure-mismatch", "10001 parameters")
