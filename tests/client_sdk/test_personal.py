"""Personal and frozen tensors on the client's side, with trainers of plain numpy."""

from pathlib import Path

import numpy as np
import pytest

from client_sdk import (
    EvaluationReport,
    RoundSpec,
    RunSpec,
    TrainedDelta,
    TrainedModel,
    TrainerError,
    TrainingTask,
    UsageError,
    participate,
)
from client_sdk.session.deltas import update_of, with_personal
from client_sdk.testing import FakeAggregator
from fl_protocol.arrays import RawTensor, Tensor, decode
from fl_protocol.specs.evaluation import EvaluationSpec
from fl_protocol.specs.parameters import ParametersSpec
from tests.client_sdk.wire import names_in

BASE: dict[str, Tensor] = {
    "body": np.zeros(2, dtype=np.float32),
    "norm.w": np.array([1.0], dtype=np.float32),
    "norm.brain": RawTensor("BF16", np.array([0x3F80], dtype=np.uint16)),
    "norm.count": np.array(0, dtype=np.int64),
    "frozen": np.array([3.0], dtype=np.float32),
}
PARAMETERS = ParametersSpec(trainable=["body"], personal=["norm.*"])


def spec(rounds: int = 3, *, quorum: int = 1, every: int = 0) -> RunSpec:
    return RunSpec(
        num_rounds=rounds,
        round=RoundSpec(quorum=quorum),
        parameters=PARAMETERS,
        evaluation=EvaluationSpec(every=every),
    )


def seen(task: TrainingTask) -> float:
    return float(np.asarray(task.model["norm.w"])[0])


def train(task: TrainingTask) -> TrainedModel:
    """Adds 1 to the body and doubles the personal tensor; reports the personal value that it began with."""
    norm = {name: task.model[name] for name in ("norm.w", "norm.brain", "norm.count")}
    return TrainedModel(
        tensors={"body": task.model["body"] + np.float32(1), **norm, "norm.w": task.model["norm.w"] * np.float32(2)},
        num_examples=1,
        metrics={"seen": seen(task)},
    )


async def test_personal_tensors_stay_with_their_client_and_frozen_ones_are_never_sent() -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(every=3), BASE)
    evaluated: list[float] = []

    def evaluate(task: TrainingTask) -> EvaluationReport:
        evaluated.append(seen(task))
        return EvaluationReport(num_examples=1, metrics={})

    async with fake.enrolled("a") as client:
        await participate(client, run.run_id, train, evaluator=evaluate)
    state = fake.runs[run.run_id]
    assert [done.metrics["seen"] for done in state.rounds] == [1.0, 2.0, 4.0]
    assert evaluated == [8.0]
    sent = [set(decode(held.update)) for held in state.tasks.values() if held.update is not None]
    assert sent == [{"body"}] * 3
    final = fake.model(run.run_id)
    np.testing.assert_array_equal(final["body"], [3, 3])
    assert float(final["norm.w"][0]) == 1.0


async def test_a_state_folder_keeps_personal_tensors_over_a_restart_and_for_their_run_alone(tmp_path: Path) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(2), BASE)

    def only_once(task: TrainingTask) -> TrainedModel:
        if task.round == 2:
            raise InterruptedError
        return train(task)

    async with fake.enrolled("a") as client:
        with pytest.raises(InterruptedError):
            await participate(client, run.run_id, only_once, state_dir=tmp_path)
        await participate(client, run.run_id, train, state_dir=tmp_path)
        assert [done.metrics["seen"] for done in fake.runs[run.run_id].rounds] == [1.0, 2.0]
        other = await fake.start_run(spec(1), BASE)
        await participate(client, other.run_id, train, state_dir=tmp_path)
        assert fake.runs[other.run_id].rounds[0].metrics["seen"] == 1.0
    assert names_in(tmp_path) == sorted([run.run_id, other.run_id])
    assert names_in(tmp_path / run.run_id) == ["personal.safetensors"]


async def test_what_an_update_that_was_not_counted_has_trained_is_not_kept() -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(2), BASE)
    state = fake.runs[run.run_id]

    def late_once(task: TrainingTask) -> TrainedModel:
        if task.attempt == 1 and task.round == 1 and not state.rounds[0].metrics:
            task_id = next(iter(state.tasks))
            state.tasks[task_id].given_up = True
            state._change_round(1, state="abandoned", metrics={"seen": -1.0})
            state._open_round(2)
        return train(task)

    async with fake.enrolled("a") as client:
        done = await participate(client, run.run_id, late_once)
    assert (done.num_refused, done.num_updates) == (1, 1)
    assert state.rounds[1].metrics["seen"] == 1.0


async def test_a_damaged_or_foreign_state_is_refused_by_name(tmp_path: Path) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(1), BASE)
    file = tmp_path / run.run_id / "personal.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"damaged")
    async with fake.enrolled("a") as client:
        with pytest.raises(UsageError, match=r"personal\.safetensors is damaged: .* remove it"):
            await participate(client, run.run_id, train, state_dir=tmp_path)
        with pytest.raises(UsageError, match="is not a run's id"):
            await participate(client, "../elsewhere", train, state_dir=tmp_path)
    foreign = {name: BASE[name] for name in ("norm.w", "norm.brain")}
    with pytest.raises(UsageError, match=r"do not fit its model: tensor 'norm\.count' is missing"):
        with_personal(BASE, foreign, parameters=PARAMETERS)


def test_what_a_trainer_must_return_is_what_travels_and_what_is_personal() -> None:
    whole = dict(BASE)
    for left_out, message in (("body", "'body' is missing"), ("norm.count", "'norm.count' is missing")):
        tensors = {name: tensor for name, tensor in whole.items() if name != left_out}
        with pytest.raises(TrainerError, match=message):
            update_of(TrainedModel(tensors=tensors, num_examples=1), BASE, parameters=PARAMETERS)
    changed = whole | {"frozen": np.array([9.0], dtype=np.float32)}
    update = update_of(TrainedModel(tensors=changed, num_examples=1), BASE, parameters=PARAMETERS)
    assert set(update.delta) == {"body"}
    assert set(update.personal) == {"norm.w", "norm.brain", "norm.count"}
    broken = whole | {"norm.w": np.array([np.inf], dtype=np.float32)}
    with pytest.raises(TrainerError, match=r"tensor 'norm\.w' holds NaN or infinity"):
        update_of(TrainedModel(tensors=broken, num_examples=1), BASE, parameters=PARAMETERS)


def test_a_delta_holds_exactly_what_travels_and_cannot_carry_personal_tensors() -> None:
    lora = ParametersSpec(trainable=["body"])
    body = TrainedDelta(tensors={"body": np.ones(2, dtype=np.float32)}, num_examples=1)
    assert set(update_of(body, BASE, parameters=lora).delta) == {"body"}
    both = TrainedDelta(tensors={**body.tensors, "frozen": np.ones(1, dtype=np.float32)}, num_examples=1)
    with pytest.raises(TrainerError, match="'frozen' is not part of the model"):
        update_of(both, BASE, parameters=lora)
    with pytest.raises(TrainerError, match="return a TrainedModel"):
        update_of(body, BASE, parameters=PARAMETERS)
