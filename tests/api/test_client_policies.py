"""Real servers and clients that hold them to a policy: a refusal costs the run nothing but the time of one claim."""

from pathlib import Path

import httpx
import numpy as np
import pytest

from client_sdk import PolicyError, PrivacyPolicy, TrainedModel, TrainingTask, participate_blocking
from fl_protocol.specs.privacy import MAX_LOCAL_PARAMETERS
from tests.support.participant import MEDIA_TYPE, create_run, enrol, pack, small_model
from tests.support.refusals import assert_refused
from tests.support.server import ServerProcess

LOCAL = {"kind": "local_gaussian", "target_epsilon": 8.0, "delta": 1e-6}


def train(task: TrainingTask) -> TrainedModel:
    return TrainedModel(tensors=dict(task.model), num_examples=1)


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
