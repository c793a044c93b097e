"""FedNova on the server: clients report their local steps, and the model is the paper's, exactly."""

from fractions import Fraction

import httpx
import numpy as np
import pytest

from tests.support.participant import MEDIA_TYPE, create_run, enrol, pack, small_model, unpack, wait_for_run
from tests.support.refusals import assert_refused

MODEL = {**small_model(2), "count": np.array([5])}
FEDNOVA = {"kind": "fednova"}


def body(tensors, *, num_examples=1, **metadata):
    return pack(tensors, {"num_examples": str(num_examples), **metadata})


@pytest.fixture(scope="module")
def asked(shared_operator: httpx.Client) -> tuple[str, str]:
    """A client of a FedNova run, with its open task: the token and the task's address."""
    run_id = create_run(shared_operator, MODEL, round={"quorum": 1}, algorithm=FEDNOVA)
    client = enrol(shared_operator)
    return client.token, f"/v1/tasks/{client.claim(run_id).json()['task_id']}/update"


def send(operator: httpx.Client, asked: tuple[str, str], content: bytes) -> httpx.Response:
    token, path = asked
    headers = {"Authorization": f"Bearer {token}", "Content-Type": MEDIA_TYPE}
    return operator.put(path, content=content, headers=headers)


@pytest.mark.parametrize("text", [None, "0", "-1", "1.5", "", " 1", "\u0661", "2147483649", "9" * 17])
def test_local_steps_that_are_no_count_are_refused(
    shared_operator: httpx.Client, asked: tuple[str, str], text: str | None
) -> None:
    told = {} if text is None else {"local_steps": text}
    assert_refused(send(shared_operator, asked, body(MODEL, **told)), "invalid-metadata", "local_steps")


def test_the_model_is_the_exactly_normalised_mean(shared_operator: httpx.Client) -> None:
    told = [(7, 3), (1, 1), (1_000_000, 2**31), (600, 47), (12_345_678, 5)]
    run_id = create_run(shared_operator, MODEL, num_rounds=1, round={"quorum": len(told)}, algorithm=FEDNOVA)
    source = np.random.default_rng(3)
    deltas = []
    for number, (num_examples, steps) in enumerate(told):
        client = enrol(shared_operator, f"nova-{number}")
        delta = {name: source.normal(size=one.shape).astype("f4") for name, one in MODEL.items() if name != "count"}
        deltas.append(delta)
        task = client.claim(run_id).json()
        assert (task["algorithm"], task["control_variate"]) == (FEDNOVA, None)
        counted = delta | {"count": np.array([number])}
        sent = client.put(task["task_id"], body(counted, num_examples=num_examples, local_steps=str(steps)))
        assert sent.status_code == 201, sent.text
    found = unpack(wait_for_run(shared_operator, run_id, version=1).content)
    weights = [min(num_examples, 1_000_000) for num_examples, _ in told]
    parts = [Fraction(weight, sum(weights)) for weight in weights]
    effective = sum(part * steps for part, (_, steps) in zip(parts, told, strict=True))
    for name in deltas[0]:
        for element in range(MODEL[name].size):
            step = effective * sum(
                part * Fraction(float(delta[name].flat[element])) / steps
                for part, delta, (_, steps) in zip(parts, deltas, told, strict=True)
            )
            exact = Fraction(float(MODEL[name].flat[element])) + step
            unit = Fraction(float(np.spacing(np.float32(abs(float(exact))))))
            assert abs(Fraction(float(found[name].flat[element])) - exact) <= unit
    mean = Fraction(sum(number * weight for number, weight in enumerate(weights)), sum(weights))
    assert found["count"].tolist() == [5 + round(mean)]
    listed = shared_operator.get(f"/v1/runs/{run_id}/rounds/1/updates").json()["items"]
    assert sorted(one["local_steps"] for one in listed) == sorted(steps for _, steps in told)


def test_other_algorithms_do_not_ask_for_steps(shared_operator: httpx.Client) -> None:
    run_id = create_run(shared_operator, MODEL, num_rounds=1, round={"quorum": 1})
    client = enrol(shared_operator)
    assert client.put(client.claim(run_id).json()["task_id"], body(MODEL, local_steps="nonsense")).status_code == 201
    listed = shared_operator.get(f"/v1/runs/{run_id}/rounds/1/updates").json()["items"]
    assert [one["local_steps"] for one in listed] == [None]
