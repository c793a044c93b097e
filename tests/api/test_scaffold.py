"""SCAFFOLD on the server: what clients send beside the delta, what it makes of it, and what it refuses by name."""

from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.participant import (
    MEDIA_TYPE,
    Participant,
    Tensors,
    create_run,
    enrol,
    pack,
    small_model,
    unpack,
    update_body,
    wait_for_run,
)
from tests.support.refusals import assert_refused

NUM_CLIENTS = 7
SCAFFOLD = {"kind": "scaffold", "num_clients": NUM_CLIENTS}
MODEL: Tensors = {**small_model(1), "double": np.ones(2), "half": np.ones(3, dtype=np.float16), "count": np.array([5])}
FLOATS = [name for name in MODEL if name != "count"]


def controls(seed: int, scale: float = 1.0) -> Tensors:
    """Makes control deltas of the types that the wire has: float32, or float64 beside a float64 tensor."""
    source = np.random.default_rng(seed)
    return {
        f"control:{name}": (source.normal(size=MODEL[name].shape) * scale).astype("f8" if name == "double" else "f4")
        for name in FLOATS
    }


def deltas(seed: int) -> Tensors:
    source = np.random.default_rng(seed)
    return {name: (source.normal(size=MODEL[name].shape) * 0.1).astype(MODEL[name].dtype) for name in FLOATS}


def answer(client: Participant, run_id: str, tensors: Tensors, *, num_examples: int) -> tuple[dict[str, Any], str]:
    claimed = client.claim(run_id)
    assert claimed.status_code == 201, claimed.text
    sent = client.put(claimed.json()["task_id"], update_body(tensors, num_examples=num_examples))
    assert sent.status_code == 201, sent.text
    return claimed.json(), sent.json()["digest"]


def test_the_server_control_is_the_papers_over_rounds_with_partial_participation(shared_operator: httpx.Client) -> None:
    run_id = create_run(shared_operator, MODEL, num_rounds=4, round={"quorum": 3}, algorithm=SCAFFOLD)
    crowd = [enrol(shared_operator, f"scaffold-{number}") for number in range(NUM_CLIENTS)]
    model = {name: values.astype(np.float64) for name, values in MODEL.items()}
    control = {name: np.zeros(MODEL[name].shape) for name in FLOATS}
    newest: dict[int, str | None] = dict.fromkeys(range(NUM_CLIENTS))
    for number, members in enumerate([(0, 1, 2), (3, 4, 5), (6, 0, 3), (1, 0, 2)], start=1):
        weights, sent = [1, 10, 100], [(deltas(10 * number + one), controls(100 * number + one)) for one in members]
        for one, weight, (delta, control_delta) in zip(members, weights, sent, strict=True):
            task, digest = answer(crowd[one], run_id, delta | control_delta, num_examples=weight)
            assert task["algorithm"] == SCAFFOLD
            assert task["counted_update"] == newest[one]
            assert (task["control_variate"] is None) == (number == 1)
            newest[one] = digest
        wait_for_run(shared_operator, run_id, version=number)
        for name in FLOATS:
            mean = (
                sum(weight * delta[name].astype("f8") for weight, (delta, _) in zip(weights, sent, strict=True)) / 111
            )
            model[name] = (model[name] + mean).astype(MODEL[name].dtype).astype(np.float64)
            drift = sum(one[f"control:{name}"].astype("f8") for _, one in sent) / 3
            control[name] = (control[name] + 3 / NUM_CLIENTS * drift).astype("f8" if name == "double" else "f4")
        found = unpack(shared_operator.get(f"/v1/runs/{run_id}/models/{number}/control-variate").content)
        assert sorted(found) == sorted(f"control:{name}" for name in FLOATS)
        published = unpack(shared_operator.get(f"/v1/runs/{run_id}/models/{number}").content)
        assert sorted(published) == sorted(MODEL)
        for name in FLOATS:
            assert found[f"control:{name}"].dtype == ("f8" if name == "double" else "f4")
            np.testing.assert_allclose(found[f"control:{name}"], control[name], rtol=3e-7, atol=1e-9)
            np.testing.assert_allclose(published[name], model[name], rtol=2e-3 if name == "half" else 3e-7, atol=1e-6)
            control[name], model[name] = found[f"control:{name}"].astype("f8"), published[name].astype("f8")
        np.testing.assert_array_equal(published["count"], [5])


def test_a_control_variate_is_downloaded_as_a_model_is(shared_operator: httpx.Client) -> None:
    run_id = create_run(shared_operator, MODEL, num_rounds=2, round={"quorum": 1}, algorithm=SCAFFOLD)
    client = enrol(shared_operator)
    answer(client, run_id, deltas(1) | controls(2), num_examples=1)
    wait_for_run(shared_operator, run_id, version=1)
    named = client.claim(run_id).json()["control_variate"]
    assert named["url"] == f"/v1/runs/{run_id}/models/1/control-variate"
    whole = client.http.get(named["url"])
    assert (whole.status_code, len(whole.content)) == (200, named["num_bytes"])
    assert whole.headers["etag"] == f'"{named["digest"]}"'
    assert whole.headers["model-version"] == "1"
    part = client.http.get(named["url"], headers={"Range": "bytes=10-29"})
    assert (part.status_code, part.content) == (206, whole.content[10:30])
    known = client.http.get(named["url"], headers={"If-None-Match": whole.headers["etag"]})
    assert known.status_code == 304
    assert_refused(client.http.get(f"/v1/runs/{run_id}/models/0/control-variate"), "not-found", "no control variate")
    assert_refused(client.http.get(f"/v1/runs/{run_id}/models/9/control-variate"), "not-found", "version 9")


def test_an_evaluation_task_names_no_control_variate(shared_operator: httpx.Client) -> None:
    run_id = create_run(
        shared_operator, MODEL, num_rounds=1, round={"quorum": 1}, algorithm=SCAFFOLD, evaluation={"every": 1}
    )
    client = enrol(shared_operator)
    answer(client, run_id, deltas(1) | controls(2), num_examples=1)
    wait_for_run(shared_operator, run_id, version=1)
    task = client.claim(run_id, wait=10).json()
    assert (task["kind"], task["control_variate"]) == ("evaluate", None)


@pytest.fixture(scope="module")
def asked(shared_operator: httpx.Client) -> tuple[str, str]:
    """A client of a SCAFFOLD run, with its open task: the token and the task's address."""
    run_id = create_run(shared_operator, MODEL, round={"quorum": 1}, algorithm=SCAFFOLD)
    client = enrol(shared_operator)
    return client.token, f"/v1/tasks/{client.claim(run_id).json()['task_id']}/update"


def send(operator: httpx.Client, asked: tuple[str, str], content: bytes) -> httpx.Response:
    token, path = asked
    headers = {"Authorization": f"Bearer {token}", "Content-Type": MEDIA_TYPE}
    return operator.put(path, content=content, headers=headers)


def changed(**changes: Any) -> Tensors:
    body = deltas(1) | controls(2) | {name.replace("__", ":"): values for name, values in changes.items()}
    return {name: values for name, values in body.items() if values is not None}


@pytest.mark.parametrize(
    ("slug", "tensors", "named"),
    [
        ("structure-mismatch", deltas(1), "'control:layer.weight' is missing"),
        ("structure-mismatch", changed(control__scale=None), "'control:scale' is missing"),
        ("structure-mismatch", changed(control__count=np.zeros(1, "f4")), "'control:count' is not in the base model"),
        ("structure-mismatch", changed(control__scale=np.zeros(1, "f4")), "'control:scale' is F32 of shape [1]"),
        ("structure-mismatch", changed(control__half=np.zeros(3, "f2")), "'control:half' is F16"),
        ("structure-mismatch", changed(control__double=np.zeros(2, "f4")), "F64 of shape [2] is expected"),
        ("non-finite", changed(control__scale=np.array(np.nan, "f4")), "'control:scale' holds NaN"),
        (
            "non-finite",
            changed(control__half=np.array([0, 1, np.inf], "f4")),
            "'control:half' holds NaN or infinity at",
        ),
        ("value-out-of-range", changed(control__double=np.array([0, -1025.0])), "'control:double'"),
    ],
)
def test_a_malformed_control_variate_is_refused_by_name(
    shared_operator: httpx.Client, asked: tuple[str, str], slug: str, tensors: Tensors, named: str
) -> None:
    assert_refused(send(shared_operator, asked, update_body(tensors, num_examples=1)), slug, named)


def test_an_update_may_be_as_large_as_the_task_says_and_no_larger(shared_operator: httpx.Client) -> None:
    run_id = create_run(shared_operator, MODEL, round={"quorum": 1}, algorithm=SCAFFOLD)
    client = enrol(shared_operator)
    task = client.claim(run_id).json()
    body = update_body(deltas(1) | controls(2), num_examples=1)
    assert len(body) < task["max_num_bytes"]
    data = sum(values.nbytes for values in (MODEL | controls(2)).values())
    assert task["max_num_bytes"] > data
    assert_refused(client.put(task["task_id"], b"\0" * (task["max_num_bytes"] + 1)), "too-large")


@pytest.mark.parametrize("name", ["control:w", "control:"])
def test_a_model_with_the_reserved_prefix_is_refused(shared_operator: httpx.Client, name: str) -> None:
    model = pack({name: np.ones(2, dtype=np.float32)})
    made = shared_operator.post("/v1/runs", json={"algorithm": SCAFFOLD, "round": {"quorum": 1}}).json()
    put = shared_operator.put(
        f"/v1/runs/{made['run_id']}/models/0", content=model, headers={"Content-Type": MEDIA_TYPE}
    )
    assert_refused(put, "structure-mismatch", repr(name), "rename it")
    other = shared_operator.post("/v1/runs", json={"round": {"quorum": 1}}).json()
    put = shared_operator.put(
        f"/v1/runs/{other['run_id']}/models/0", content=model, headers={"Content-Type": MEDIA_TYPE}
    )
    assert put.status_code == 201


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"algorithm": {"kind": "scaffold"}}, ["algorithm.num_clients"]),
        ({"algorithm": {"kind": "scaffold", "num_clients": 0}}, ["algorithm.num_clients"]),
        ({"algorithm": {"kind": "scafold"}}, ["algorithm.kind", "scafold"]),
        ({"algorithm": SCAFFOLD, "round": {"quorum": 8}}, ["algorithm.num_clients 7", "round.cohort_size 8"]),
        ({"algorithm": SCAFFOLD, "round": {"quorum": 3}, "training": {"proximal_mu": 0.1}}, ["proximal_mu 0.1"]),
        ({"algorithm": {"kind": "fednova"}, "training": {"learning_rate": 2, "proximal_mu": 0.5}}, ["is 1", "below 1"]),
    ],
)
def test_a_run_that_cannot_work_is_refused(
    shared_operator: httpx.Client, spec: dict[str, Any], named: list[str]
) -> None:
    assert_refused(shared_operator.post("/v1/runs", json=spec), "invalid-request", *named)
