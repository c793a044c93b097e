"""SDK clients and a participant written with nothing but an HTTP library and numpy take part in the same run."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from client_sdk import EvaluationReport, Participation, TrainedModel, TrainingTask, participate_blocking
from tests.support.participant import Tensors, create_run, enrol, small_model, unpack, update_body, wait_for_run
from tests.support.server import ServerProcess


def _train(task: TrainingTask) -> TrainedModel:
    trained = {name: np.asarray(values) + np.float32(0.5) for name, values in task.model.items()}
    return TrainedModel(tensors=trained, num_examples=3, metrics={"loss": 0.25})


def _evaluate(task: TrainingTask) -> EvaluationReport:
    return EvaluationReport(num_examples=5, metrics={"accuracy": task.base_version / 10})


def _by_hand(_task: Mapping[str, Any], base: Tensors) -> bytes:
    delta = {name: np.full_like(values, -1.0) for name, values in base.items()}
    return update_body(delta, num_examples=2, metrics={"loss": 1.5})


def test_a_participant_of_http_and_numpy_takes_part_beside_sdk_clients(
    server: ServerProcess, operator: httpx.Client, tmp_path: Path
) -> None:
    run_id = create_run(operator, small_model(), num_rounds=4, round={"quorum": 3})
    tokens = [enrol(operator, f"sdk-{index}").token for index in range(2)]
    plain = enrol(operator, "plain-http")

    def sdk_client(token: str, folder: Path) -> Participation:
        return participate_blocking(server.url, run_id, _train, token=token, cache_dir=folder)

    with ThreadPoolExecutor(3) as pool:
        by_sdk: list[Future[Participation]] = []
        for index, token in enumerate(tokens):
            folder = tmp_path / f"cache-{index}"
            folder.mkdir()
            by_sdk.append(pool.submit(sdk_client, token, folder))
        by_hand = pool.submit(plain.take_part, run_id, _by_hand)
        assert by_hand.result() == 4
        assert [done.result().num_updates for done in by_sdk] == [4, 4]
    rounds = operator.get(f"/v1/runs/{run_id}/rounds").json()["items"]
    assert [(one["num_updates"], one["num_examples"], one["metrics"]["loss"]) for one in rounds] == [(3, 8, 0.5625)] * 4
    final = unpack(wait_for_run(operator, run_id, version=4).content)
    expected = small_model()
    for _ in range(4):
        expected = {name: (values.astype(np.float64) + 0.125).astype(np.float32) for name, values in expected.items()}
    for name, values in expected.items():
        # base + 0.5 rounds to float32 at the client, so the delta it takes is 0.5 give or take that rounding.
        np.testing.assert_allclose(final[name], values, rtol=0, atol=1e-6)


def test_sdk_clients_evaluate_the_model_that_a_round_made(
    server: ServerProcess, operator: httpx.Client, tmp_path: Path
) -> None:
    run_id = create_run(
        operator, small_model(), num_rounds=2, round={"quorum": 1, "deadline_seconds": 60}, evaluation={"every": 1}
    )
    token = enrol(operator, "sdk").token
    done = participate_blocking(server.url, run_id, _train, token=token, evaluator=_evaluate, cache_dir=tmp_path)
    assert (done.num_updates, done.num_evaluations) == (2, 2)
    rounds = operator.get(f"/v1/runs/{run_id}/rounds").json()["items"]
    assert [one["evaluation"] for one in rounds] == [{"accuracy": 0.1}, {"accuracy": 0.2}]
