from collections.abc import Callable
from pathlib import Path

import anyio
import httpx
import numpy as np
import pytest

from client_sdk import (
    EvaluationReport,
    Participation,
    Progress,
    RoundSpec,
    RunSpec,
    TrainedDelta,
    TrainedModel,
    TrainerError,
    TrainingTask,
    UntrustedAnswerError,
    participate,
)
from client_sdk.errors import ServerError, UnauthenticatedError
from client_sdk.session.deltas import structure_of
from client_sdk.testing import FakeAggregator
from fl_protocol.arrays import RawTensor, Tensor
from tests.client_sdk.wire import names_in

BASE: dict[str, Tensor] = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1, 2], dtype=np.float16),
    "brain": RawTensor("BF16", np.array([0x3F80, 0x4000], dtype=np.uint16)),
    "count": np.array(7, dtype=np.int64),
    "flags": np.array([True, False]),
}


def moved(task: TrainingTask, by: float) -> dict[str, Tensor]:
    tensors = dict(task.model)
    tensors["weight"] = task.model["weight"] + np.float32(by)
    tensors["count"] = task.model["count"] + 2
    return tensors


def adding(by: float, *, num_examples: int = 1) -> Callable[[TrainingTask], TrainedModel]:
    return lambda task: TrainedModel(
        tensors=moved(task, by), num_examples=num_examples, metrics={"loss": np.float32(0.5)}
    )


def spec(quorum: int = 1, *, rounds: int = 2, every: int = 0) -> RunSpec:
    return RunSpec.model_validate(
        {"num_rounds": rounds, "round": RoundSpec(quorum=quorum), "evaluation": {"every": every}}
    )


async def test_participants_finish_a_run_with_a_weighted_mean() -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(quorum=3, rounds=2), BASE)
    done: list[Participation] = []

    async def one(name: str, by: float, weight: int) -> None:
        async with fake.enrolled(name) as client:
            done.append(await participate(client, run.run_id, adding(by, num_examples=weight)))

    async with anyio.create_task_group() as group:
        group.start_soon(one, "a", 1.0, 1)
        group.start_soon(one, "b", 2.0, 2)
        group.start_soon(one, "c", 4.0, 1)
    assert [one.num_updates for one in done] == [2, 2, 2]
    final = fake.model(run.run_id)
    np.testing.assert_array_equal(final["weight"], BASE["weight"] + np.float32(2 * 9 / 4))
    assert final["count"] == 11
    np.testing.assert_array_equal(final["flags"], BASE["flags"])
    np.testing.assert_array_equal(final["brain"].data, BASE["brain"].data)
    assert fake.runs[run.run_id].rounds[0].metrics == {"loss": 0.5}


async def test_a_delta_is_sent_as_it_is() -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(rounds=1), {"w": np.zeros(2, dtype=np.float32)})

    def train(task: TrainingTask) -> TrainedDelta:
        return TrainedDelta(tensors={"w": np.array([1, -1], dtype=np.float32)}, num_examples=3)

    async with fake.enrolled("a") as client:
        await participate(client, run.run_id, train)
    np.testing.assert_array_equal(fake.model(run.run_id)["w"], np.array([1, -1], dtype=np.float32))


async def test_progress_is_told_and_models_are_cached_by_digest(tmp_path: Path) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(rounds=2, every=1), BASE)
    told: list[Progress] = []

    def evaluate(task: TrainingTask) -> EvaluationReport:
        return EvaluationReport(num_examples=5, metrics={"accuracy": 0.5})

    async with fake.enrolled("a") as client:
        done = await participate(
            client, run.run_id, adding(1.0), evaluator=evaluate, cache_dir=tmp_path, on_event=told.append
        )
    names = [type(event).__name__ for event in told]
    # What the run promises is told once.
    assert names.pop(1) == "PromiseRead"
    trained = ["TaskClaimed", "ModelPulled", "TrainingFinished", "UpdateAccepted"]
    evaluated = ["TaskClaimed", "ModelPulled", "EvaluationAccepted"]
    assert names == trained + evaluated + trained + evaluated + ["RunFinished"]
    assert [event.from_cache for event in told if type(event).__name__ == "ModelPulled"] == [False, False, True, False]
    assert (done.num_updates, done.num_evaluations) == (2, 2)
    assert fake.runs[run.run_id].rounds[1].evaluation == {"accuracy": 0.5}
    assert len(names_in(tmp_path)) == 1


async def test_an_evaluation_is_given_up_without_an_evaluator() -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(rounds=1, every=1), BASE)
    async with fake.enrolled("a") as client:
        done = await participate(client, run.run_id, adding(1.0))
    assert (done.num_updates, done.num_evaluations) == (1, 0)
    assert [task.given_up for task in fake.runs[run.run_id].tasks.values()] == [False, True]


async def test_a_late_update_is_no_fault() -> None:
    fake = FakeAggregator()
    run = await fake.start_run(RunSpec(num_rounds=1, round=RoundSpec(quorum=1, cohort_size=2)), BASE)
    told: list[Progress] = []
    async with fake.enrolled("slow") as slow, fake.enrolled("fast") as fast:

        def train(task: TrainingTask) -> TrainedModel:
            anyio.from_thread.run(participate, fast, run.run_id, adding(1.0))
            return adding(2.0)(task)

        done = await participate(slow, run.run_id, train, on_event=told.append)
    assert (done.num_updates, done.num_refused) == (0, 1)
    assert "WorkRefused" in {type(event).__name__ for event in told}


async def test_a_failing_trainer_hands_its_task_back_and_is_heard() -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(), BASE)

    def train(task: TrainingTask) -> TrainedModel:
        raise ZeroDivisionError("no data")

    async with fake.enrolled("a") as client:
        with pytest.raises(ZeroDivisionError, match="no data"):
            await participate(client, run.run_id, train)
    assert [task.given_up for task in fake.runs[run.run_id].tasks.values()] == [True]


BAD_RESULTS = {
    "NaN": lambda task: TrainedModel(tensors=moved(task, float("nan")), num_examples=1),
    "a tensor missing": lambda task: TrainedModel(tensors={"weight": task.model["weight"]}, num_examples=1),
    "another shape": lambda task: TrainedModel(
        tensors={**task.model, "weight": np.zeros(6, np.float32)}, num_examples=1
    ),
    "another type": lambda task: TrainedModel(tensors={**task.model, "weight": np.zeros((2, 3))}, num_examples=1),
    "no example": lambda task: TrainedModel(tensors=task.model, num_examples=0),
    "a metric of NaN": lambda task: TrainedModel(tensors=task.model, num_examples=1, metrics={"loss": float("nan")}),
    "a metric of text": lambda task: TrainedModel(tensors=task.model, num_examples=1, metrics={"loss": "low"}),
    "a list": lambda task: [1, 2],
    "a delta of strangers": lambda task: TrainedDelta(tensors={"x": np.zeros(1, np.float32)}, num_examples=1),
    "lists as tensors": lambda task: TrainedModel(tensors={name: [1] for name in task.model}, num_examples=1),
}


@pytest.mark.parametrize("kind", BAD_RESULTS)
async def test_a_result_that_cannot_be_sent_is_a_trainer_error(kind: str) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(), BASE)
    async with fake.enrolled("a") as client:
        with pytest.raises(TrainerError):
            await participate(client, run.run_id, BAD_RESULTS[kind])
    assert all(task.given_up and task.update is None for task in fake.runs[run.run_id].tasks.values())


async def test_a_model_of_another_structure_is_refused_before_it_is_pulled() -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(), {"w": np.zeros(100_000, dtype=np.float32)})
    trainer = adding(1.0)
    trainer.structure = structure_of({"w": np.zeros(10, dtype=np.float32)})  # type: ignore[attr-defined]
    paths: list[str] = []
    fake.intercept = lambda request: paths.append(request.url.path)
    async with fake.enrolled("a") as client:
        with pytest.raises(UntrustedAnswerError, match="at most"):
            await participate(client, run.run_id, trainer)
    assert not any("models" in path for path in paths)


async def test_a_model_that_holds_nan_is_refused() -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(), {"w": np.array([1, np.nan], dtype=np.float32)})
    async with fake.enrolled("a") as client:
        with pytest.raises(UntrustedAnswerError, match="NaN"):
            await participate(client, run.run_id, adding(1.0))


async def test_faults_on_the_way_are_outlived() -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(rounds=3), BASE)
    count = 0

    def sometimes(request: httpx.Request) -> httpx.Response | None:
        nonlocal count
        count += 1
        if count % 3 == 0:
            raise httpx.ReadError("cut")
        return httpx.Response(503, headers={"Retry-After": "0"}) if count % 4 == 0 else None

    fake.intercept = sometimes
    async with fake.enrolled("a") as client:
        done = await participate(client, run.run_id, adding(1.0))
    assert done.num_updates == 3


async def test_a_revoked_client_hears_it() -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(), BASE)
    async with fake.client("unknown-token") as client:
        with pytest.raises(UnauthenticatedError):
            await participate(client, run.run_id, adding(1.0))


async def test_another_refusal_of_an_update_is_raised_and_the_task_is_handed_back() -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(), BASE)
    fake.intercept = lambda request: httpx.Response(415, content=b"no") if request.url.path.endswith("update") else None
    async with fake.enrolled("a") as client:
        with pytest.raises(ServerError):
            await participate(client, run.run_id, adding(1.0))
    assert [task.given_up for task in fake.runs[run.run_id].tasks.values()] == [True]


async def test_a_cancelled_participant_hands_its_task_back() -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(), BASE)
    started = anyio.Event()

    def train(task: TrainingTask) -> TrainedModel:
        anyio.from_thread.run_sync(started.set)
        anyio.from_thread.run(anyio.sleep, 0.3)
        return adding(1.0)(task)

    async with fake.enrolled("a") as client, anyio.create_task_group() as group:
        group.start_soon(participate, client, run.run_id, train)
        await started.wait()
        group.cancel_scope.cancel()
    assert [task.given_up for task in fake.runs[run.run_id].tasks.values()] == [True]
