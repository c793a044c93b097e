"""A run that trains a part of its model, over HTTP and on both databases: refusals by name, sizes, bytes that stay."""

from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.participant import MEDIA_TYPE, create_run, enrol, pack, unpack, update_body, wait_for_run
from tests.support.refusals import assert_refused

MODEL = {
    "base.weight": np.arange(300_000, dtype=np.float32),
    "base.norm": np.array([np.finfo(np.float32).tiny / 2, -0.0], dtype=np.float32),
    "lora.a": np.ones((2, 3), dtype=np.float32),
    "lora.b": np.zeros(3, dtype=np.float32),
}
NAMES = "'base.weight', 'base.norm', 'lora.a', 'lora.b'"
DELTA = {"lora.a": np.full((2, 3), 0.5, np.float32), "lora.b": np.full(3, -1, np.float32)}
LORA = {"trainable": ["lora.*"], "personal": []}
ONE = {"quorum": 1}


def draft(operator: httpx.Client, **parameters: Any) -> str:
    made = operator.post("/v1/runs", json={"name": "test", "parameters": parameters})
    assert made.status_code == 201, made.text
    return str(made.json()["run_id"])


def put_model(operator: httpx.Client, run_id: str) -> httpx.Response:
    return operator.put(f"/v1/runs/{run_id}/models/0", content=pack(MODEL), headers={"Content-Type": MEDIA_TYPE})


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        (
            {"trainable": ["lora.*", "lora2.*"]},
            ["parameters.trainable[1] 'lora2.*' matches no tensor of the model; it has: " + NAMES],
        ),
        ({"personal": ["bn*"]}, ["parameters.personal[0] 'bn*' matches no tensor of the model; it has: " + NAMES]),
        ({"trainable": ["lora.*"], "personal": ["lora*"]}, ["no floating-point tensor to train that travels"]),
    ],
)
def test_a_model_that_lacks_what_the_patterns_name_is_refused_and_not_stored(
    shared_operator: httpx.Client, parameters: dict[str, Any], named: list[str]
) -> None:
    run_id = draft(shared_operator, **parameters)
    assert_refused(put_model(shared_operator, run_id), "structure-mismatch", *named)
    assert shared_operator.get(f"/v1/runs/{run_id}").json()["latest_version"] is None
    assert shared_operator.get(f"/v1/runs/{run_id}/models").json()["items"] == []


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"personal": ["*"]}, "personal matches every tensor"),
        ({"trainable": []}, "parameters.trainable"),
        ({"trainable": [""]}, "parameters.trainable.0"),
    ],
)
def test_patterns_that_cannot_be_are_refused_when_the_run_is_created(
    shared_operator: httpx.Client, parameters: dict[str, Any], named: str
) -> None:
    answer = shared_operator.post("/v1/runs", json={"name": "test", "parameters": parameters})
    assert_refused(answer, "invalid-request", named)


def test_an_adapter_costs_little_and_the_rest_keeps_its_bytes(shared_operator: httpx.Client) -> None:
    run_id = create_run(shared_operator, MODEL, parameters=LORA, round=ONE, num_rounds=1)
    client = enrol(shared_operator)
    task = client.claim(run_id).json()
    assert task["parameters"] == LORA
    assert task["max_num_bytes"] < 140_000 < task["model_num_bytes"]
    whole = {name: np.zeros_like(values) for name, values in MODEL.items()}
    for tensors, named in (
        ({"lora.a": DELTA["lora.a"]}, "tensor 'lora.b' is missing"),
        (DELTA | {"base.norm": whole["base.norm"]}, "tensor 'base.norm' is not in the base model or does not travel"),
    ):
        assert_refused(client.put(task["task_id"], update_body(tensors, num_examples=1)), "structure-mismatch", named)
    assert_refused(client.put(task["task_id"], update_body(whole, num_examples=1)), "too-large")
    sent = client.put(task["task_id"], update_body(DELTA, num_examples=1))
    assert sent.status_code == 201, sent.text
    model = unpack(wait_for_run(shared_operator, run_id, version=1).content)
    for name, values in MODEL.items():
        assert model[name].tobytes() == (values + DELTA[name] if name in DELTA else values).tobytes()
