"""The main job over HTTP: what a run, its rounds and its participants go through."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np

from tests.support.participant import (
    Tensors,
    create_run,
    enrol,
    pack,
    small_model,
    unpack,
    update_body,
    wait_for_run,
)
from tests.support.server import ServerProcess


def _constant_delta(model: Tensors, value: float) -> Tensors:
    return {name: np.full_like(values, value) for name, values in model.items()}


def test_participants_of_plain_http_and_numpy_finish_a_run(server: ServerProcess, operator: httpx.Client) -> None:
    model = small_model()
    run_id = create_run(operator, model, num_rounds=3, round={"quorum": 4})
    participants = [enrol(operator, f"client-{index}") for index in range(4)]

    def delta(number: int) -> Any:
        def compute(_task: Mapping[str, Any], base: Tensors) -> bytes:
            body = _constant_delta(base, float(number))
            return update_body(body, num_examples=number, metrics={"loss": float(number)})

        return compute

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(one.take_part, run_id, delta(index + 1)) for index, one in enumerate(participants)]
        assert [job.result() for job in jobs] == [3, 3, 3, 3]
    run = operator.get(f"/v1/runs/{run_id}").json()
    assert (run["state"], run["current_round"], run["latest_version"]) == ("completed", 3, 3)
    final = unpack(wait_for_run(operator, run_id, version=3).content)
    mean = (1 + 4 + 9 + 16) / 10
    for name, values in model.items():
        expected = values.astype(np.float64)
        for _ in range(3):
            expected = (expected + mean).astype(np.float32).astype(np.float64)
        np.testing.assert_array_equal(final[name], expected.astype(np.float32))
    round_ = operator.get(f"/v1/runs/{run_id}/rounds/2").json()
    assert round_["metrics"] == {"loss": mean}
    assert (round_["num_updates"], round_["num_examples"], round_["num_tasks"]) == (4, 10, 4)


def test_initial_model_is_returned_bit_for_bit(operator: httpx.Client) -> None:
    model = small_model(3)
    run_id = create_run(operator, model, start=False)
    answer = operator.get(f"/v1/runs/{run_id}/models/0")
    assert answer.content == pack(model)
    assert answer.headers["model-version"] == "0"
    assert (
        operator.get(f"/v1/runs/{run_id}/models/0", headers={"If-None-Match": answer.headers["etag"]}).status_code
        == 304
    )
