from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from client_sdk import BlockingOperator, Operator, RoundSpec, RunFailedError, RunSpec, TrainedModel, participate
from client_sdk.client import AggregatorClient
from client_sdk.errors import StateConflictError, UsageError
from client_sdk.testing import FakeAggregator
from fl_protocol.lineage import LINEAGE_KEY, Lineage
from fl_protocol.runs import RunState
from fl_protocol.specs.evaluation import EvaluationSpec, TargetSpec
from fl_protocol.specs.initial_model import PreviousModel
from fl_protocol.tasks import EvaluationReport

MODEL = {"w": np.array([1.0, 2.0], dtype=np.float32)}
SPEC = RunSpec(name="small", num_rounds=2, round=RoundSpec(quorum=1))


async def test_an_operator_runs_a_run_and_takes_the_result(tmp_path: Path) -> None:
    fake = FakeAggregator()
    async with fake.client() as client, fake.enrolled("a") as alice:
        operator = Operator(client)
        run = await operator.start_run(SPEC, MODEL)
        await participate(
            alice, run.run_id, lambda task: TrainedModel(tensors={"w": task.model["w"] + 1}, num_examples=1)
        )
        done = await operator.wait(run.run_id)
        kinds = [event.type async for event in operator.watch(run.run_id)]
        result = await operator.result(run.run_id, tmp_path)
        first = await operator.result(run.run_id, tmp_path, version=0)
        rounds = await operator.rounds(run.run_id)
    assert (done.state, done.latest_version) == ("completed", 2)
    assert kinds[-1] == "run.state"
    assert kinds.count("model.published") == 2
    np.testing.assert_array_equal(result["w"], MODEL["w"] + 2)
    np.testing.assert_array_equal(first["w"], MODEL["w"])
    assert [found.number for found in rounds] == [1, 2]


async def test_an_operator_goes_back_and_takes_the_best_with_its_lineage(tmp_path: Path) -> None:
    fake = FakeAggregator()
    target = TargetSpec(metric="loss", mode="min", value=0)
    watched = SPEC.model_copy(update={"evaluation": EvaluationSpec(every=1, target=target)})
    async with fake.client() as client, fake.enrolled("a") as alice:
        operator = Operator(client)
        run = await operator.start_run(watched, MODEL)
        with pytest.raises(UsageError, match="has no best version of its model yet"):
            await operator.download(run.run_id, tmp_path, version="best", with_lineage=True)
        made = await operator.rollback(run.run_id, 0)
        await participate(
            alice,
            run.run_id,
            lambda task: TrainedModel(tensors={"w": task.model["w"] + 1}, num_examples=1),
            evaluator=lambda task: EvaluationReport(num_examples=1, metrics={"loss": float(task.model["w"][0])}),
        )
        best = await operator.result(run.run_id, tmp_path, version="best")
        exported = await operator.download(run.run_id, tmp_path, version="best", with_lineage=True)
        models = await operator.models(run.run_id)
        after = await operator.create_run(RunSpec(initial_model=PreviousModel(run_id=run.run_id, version=2)))
        with pytest.raises(UsageError, match="one of the two"):
            await operator.create_run(after.spec, MODEL)
        with pytest.raises(StateConflictError):
            await operator.rollback(run.run_id, 0)
    assert (made.version, made.restored_from) == (1, 0)
    assert [(model.version, model.tags) for model in models] == [(0, []), (1, []), (2, ["best"]), (3, ["latest"])]
    np.testing.assert_array_equal(best["w"], MODEL["w"] + 1)
    with safe_open(exported.path, framework="numpy") as file:
        lineage = Lineage.model_validate_json(file.metadata()[LINEAGE_KEY])
        np.testing.assert_array_equal(file.get_tensor("w"), best["w"])
    assert (lineage.version, lineage.parent_version, lineage.digest) == (2, 1, models[2].digest)
    np.testing.assert_array_equal(fake.model(after.run_id, 0)["w"], best["w"])


async def test_a_stopped_run_is_an_error_to_wait_for() -> None:
    fake = FakeAggregator()
    async with fake.client() as client:
        operator = Operator(client)
        run = await operator.start_run(SPEC, MODEL)
        await client.stop_run(run.run_id)
        with pytest.raises(RunFailedError, match="stopped"):
            await operator.wait(run.run_id)


def open_blocking(fake: FakeAggregator, monkeypatch: pytest.MonkeyPatch) -> BlockingOperator:
    door = BlockingOperator("http://localhost", token="operator-token")
    monkeypatch.setattr(door, "_open", fake.client)
    return door


def run_blocking(fake: FakeAggregator, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_blocking(fake, monkeypatch) as operator:
        run = operator.create_run(SPEC, MODEL)
        fake.runs[run.run_id].move_to(RunState.STOPPED)
        assert [event.type for event in operator.watch(run.run_id)] == ["run.state"]
        np.testing.assert_array_equal(operator.result(run.run_id, folder)["w"], MODEL["w"])


def test_the_blocking_door_opens_in_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_blocking(FakeAggregator(), tmp_path, monkeypatch)


async def test_the_blocking_door_opens_beside_a_running_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_blocking(FakeAggregator(), tmp_path, monkeypatch)


def test_blocking_methods_keep_their_documentation() -> None:
    assert BlockingOperator.wait.__doc__ == Operator.wait.__doc__
    assert issubclass(AggregatorClient, object)
