from pathlib import Path

import numpy as np
import pytest

from client_sdk import BlockingOperator, Operator, RoundSpec, RunFailedError, RunSpec, TrainedModel, participate
from client_sdk.client import AggregatorClient
from client_sdk.testing import FakeAggregator
from fl_protocol.runs import RunState

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
