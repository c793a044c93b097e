"""SCAFFOLD and FedNova from the client's side, with trainers of plain numpy against the fake."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from client_sdk import (
    RunSpec,
    TrainedDelta,
    TrainedModel,
    Trainer,
    TrainerError,
    TrainingTask,
    UntrustedAnswerError,
    UsageError,
    participate,
)
from client_sdk.controls import ControlStore
from client_sdk.testing import FakeAggregator
from fl_protocol.arrays import RawTensor, Tensor, decode, encode

RATE = 0.1
STEPS = 5
BASE: dict[str, Tensor] = {
    "w": np.array([1.0, -2.0, 3.0], dtype=np.float32),
    "d": np.array([0.5]),
    "brain": RawTensor("BF16", np.array([0x3F80], dtype=np.uint16)),
    "count": np.array(7),
}
NUM_CLIENTS = 4


def spec(algorithm: Mapping[str, Any], *, rounds: int = 3, quorum: int = 2) -> RunSpec:
    return RunSpec.model_validate(
        {
            "num_rounds": rounds,
            "round": {"quorum": quorum, "cohort_size": quorum, "min_updates": quorum},
            "training": {"learning_rate": RATE},
            "algorithm": algorithm,
        }
    )


SCAFFOLD = {"kind": "scaffold", "num_clients": NUM_CLIENTS}


def gradient(client: int, w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A quadratic loss of each client's own: curvature and optimum differ."""
    return (1.0 + client) * (w - np.array([client, -client, 2.0 * client]))


def scaffold_trainer(client: int) -> Trainer:
    """Trains `w` as the documentation says a trainer of plain numpy does; the other tensors stay."""

    def train(task: TrainingTask) -> TrainedModel:
        assert task.control is not None
        assert task.server_control is not None
        assert sorted(task.control) == sorted(task.server_control) == ["brain", "d", "w"]
        w = task.model["w"].astype(np.float64)
        for _ in range(STEPS):
            w -= RATE * (gradient(client, w) - task.control["w"] + task.server_control["w"])
        tensors = {**task.model, "w": w.astype(np.float32)}
        return TrainedModel(tensors=tensors, num_examples=client + 1, local_steps=STEPS)

    return train


async def take_turns(
    fake: FakeAggregator, run_id: str, folder: Path, turns: list[tuple[int, ...]], trainer: Callable[[int], Trainer]
) -> None:
    """Lets just these clients contribute to each round, and the others leave after their task."""
    for number, members in enumerate(turns, start=1):
        for client in members:
            name = f"client-{client}"
            async with fake.enrolled(name) as http:
                with contextlib.suppress(_LeftError):
                    await participate(http, run_id, trainer(client), state_dir=folder / name, on_event=_leave)
        assert len(fake.runs[run_id].models) == number + 1


class _LeftError(Exception):
    pass


def _leave(event: object) -> None:
    if type(event).__name__ == "UpdateAccepted":
        raise _LeftError


async def test_plain_numpy_follows_the_paper_over_rounds_with_partial_participation(tmp_path: Path) -> None:
    turns = [(0, 1), (2, 3), (1, 2), (0, 1)]
    fake = FakeAggregator()
    run = await fake.start_run(spec(SCAFFOLD, rounds=4), BASE)
    await take_turns(fake, run.run_id, tmp_path, turns, scaffold_trainer)
    x, c = BASE["w"].astype(np.float64), np.zeros(3)
    own = {client: np.zeros(3) for client in range(NUM_CLIENTS)}
    for number, members in enumerate(turns, start=1):
        steps, drifts = [], []
        for client in members:
            y = x.copy()
            for _ in range(STEPS):
                y -= RATE * (gradient(client, y) - own[client] + c)
            after = own[client] - c + (x - y) / (STEPS * RATE)
            steps.append((client + 1, y - x))
            drifts.append(after - own[client])
            own[client] = after
        x = x + sum(weight * step for weight, step in steps) / sum(weight for weight, _ in steps)
        c = c + len(members) / NUM_CLIENTS * np.mean(drifts, axis=0)
        np.testing.assert_allclose(fake.model(run.run_id, number)["w"], x, rtol=1e-5, atol=1e-5)
        control = decode(fake.runs[run.run_id].controls[number] or b"")
        np.testing.assert_allclose(control["control:w"], c, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(control["control:d"], [0.0])
    np.testing.assert_allclose(sum(own.values()) / NUM_CLIENTS, c, atol=1e-12)


async def test_a_run_without_a_state_folder_is_refused_and_the_task_handed_back() -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(SCAFFOLD), BASE)
    async with fake.enrolled("a") as client:
        with pytest.raises(UsageError, match="state_dir"):
            await participate(client, run.run_id, scaffold_trainer(0))
    assert [held.given_up for held in fake.runs[run.run_id].tasks.values()] == [True]


async def test_a_delta_needs_no_control_and_one_that_is_given_is_kept(tmp_path: Path) -> None:
    def train(task: TrainingTask) -> TrainedDelta:
        assert task.control is not None
        delta = {name: tensor for name, tensor in BASE.items() if name != "count"}
        given = {**task.control, "w": np.full(3, 4.0, dtype=np.float32)} if task.round == 2 else None
        return TrainedDelta(tensors=delta, num_examples=1, local_steps=2, control=given)

    fake = FakeAggregator()
    run = await fake.start_run(spec(SCAFFOLD, rounds=2, quorum=1), BASE)
    async with fake.enrolled("a") as client:
        await participate(client, run.run_id, train, state_dir=tmp_path)
    first, second = (decode(content or b"")["control:w"] for content in fake.runs[run.run_id].controls[1:])
    np.testing.assert_allclose(first, -BASE["w"] / (2 * RATE) / NUM_CLIENTS, rtol=1e-6)
    np.testing.assert_allclose(second, np.full(3, 4.0) / NUM_CLIENTS, rtol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "changes", "message"),
    [
        ({"kind": "fednova"}, {}, "must return local_steps"),
        ({"kind": "fednova"}, {"local_steps": 0}, "local_steps 0 must be"),
        ({"kind": "fednova"}, {"local_steps": 2.0}, "local_steps 2.0 must be"),
        (SCAFFOLD, {}, "must return local_steps"),
        (SCAFFOLD, {"local_steps": 1, "control": {}}, "tensor 'w' is missing"),
        (SCAFFOLD, {"local_steps": 1, "control": {"w": "x"}}, "something else than arrays"),
        (SCAFFOLD, {"local_steps": 1, "control": {"w": np.zeros(3)}}, "'w' is F64 of shape"),
        (SCAFFOLD, {"local_steps": 1, "control": {"w": np.full(3, np.nan, "f4")}}, "'control:w' holds NaN"),
    ],
)
async def test_what_a_trainer_left_out_is_named(
    tmp_path: Path, algorithm: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    def train(task: TrainingTask) -> TrainedModel:
        given = dict(changes)
        if "control" in given and "w" in given["control"]:
            given["control"] = {**(task.control or {}), **given["control"]}
        return TrainedModel(tensors=task.model, num_examples=1, **given)

    fake = FakeAggregator()
    run = await fake.start_run(spec(algorithm), BASE)
    async with fake.enrolled("a") as client:
        with pytest.raises(TrainerError, match=message):
            await participate(client, run.run_id, train, state_dir=tmp_path)
    assert [held.update for held in fake.runs[run.run_id].tasks.values()] == [None]


async def test_fednova_normalises_by_the_steps_that_trainers_report() -> None:
    told = {"a": (1, 2), "b": (3, 8)}
    fake = FakeAggregator()
    run = await fake.start_run(spec({"kind": "fednova"}, rounds=1), {"w": np.zeros(2, dtype=np.float32)})

    async def one(name: str) -> None:
        weight, steps = told[name]
        delta = {"w": np.array([steps, weight], dtype=np.float32)}
        async with fake.enrolled(name) as client:
            await participate(
                client, run.run_id, lambda _: TrainedDelta(tensors=delta, num_examples=weight, local_steps=steps)
            )

    async with anyio.create_task_group() as group:
        for name in told:
            group.start_soon(one, name)
    effective = 0.25 * 2 + 0.75 * 8
    expected = effective * np.array([1.0, 0.25 * 1 / 2 + 0.75 * 3 / 8])
    np.testing.assert_allclose(fake.model(run.run_id)["w"], expected, rtol=1e-6)


def forged(content: bytes | None) -> Callable[[httpx.Request], httpx.Response | None]:
    """Answers requests for a control variate with these bytes."""

    def intercept(request: httpx.Request) -> httpx.Response | None:
        return httpx.Response(200, content=content) if request.url.path.endswith("control-variate") else None

    return intercept


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"control:w": np.zeros(2, "f4")}, r"'control:w' is F32 of shape \[2\]"),
        ({"control:w": np.full(3, np.inf, "f4")}, "NaN or infinity in|holds NaN"),
        ({"control:other": np.zeros(1, "f4")}, "'control:other' is not part of the model"),
        ({"control:d": None}, "'control:d' is missing"),
        ({"control:count": np.zeros((), "i8")}, "announces a control variate|'control:count'"),
    ],
)
async def test_a_control_variate_that_cannot_be_is_not_used(
    tmp_path: Path, tensors: dict[str, Tensor | None], message: str
) -> None:
    whole: dict[str, Tensor | None] = {
        "control:w": np.zeros(3, "f4"),
        "control:d": np.zeros(1),
        "control:brain": np.zeros(1, "f4"),
    }
    content = b"".join(encode({name: one for name, one in (whole | tensors).items() if one is not None}, {}))
    fake = FakeAggregator()
    run = await fake.start_run(spec(SCAFFOLD, quorum=1), BASE)
    fake.runs[run.run_id].controls[0] = content
    async with fake.enrolled("a") as client:
        with pytest.raises(UntrustedAnswerError, match=message):
            await participate(client, run.run_id, scaffold_trainer(0), state_dir=tmp_path)


async def test_a_control_variate_of_another_digest_is_not_used(tmp_path: Path) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(SCAFFOLD, quorum=1), BASE)
    fake.runs[run.run_id].controls[0] = b"".join(encode({"control:w": np.zeros(3, "f4")}, {}))
    fake.intercept = forged(fake.runs[run.run_id].controls[0][:-1] + b"x")
    async with fake.enrolled("a") as client:
        with pytest.raises(UntrustedAnswerError, match=r"digest|ETag"):
            await participate(client, run.run_id, scaffold_trainer(0), state_dir=tmp_path)


async def test_one_model_and_one_control_variate_are_cached(tmp_path: Path) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(SCAFFOLD, rounds=4, quorum=1), BASE)
    async with fake.enrolled("a") as client:
        await participate(
            client, run.run_id, scaffold_trainer(0), state_dir=tmp_path / "state", cache_dir=tmp_path / "cache"
        )
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert len(list((tmp_path / "state" / run.run_id / "controls").iterdir())) == 2


class TestControlStore:
    """The folder: which of its files counts is what the task says."""

    RUN = "run_" + "0" * 32
    FIRST, SECOND = ("sha256:" + digit * 64 for digit in "12")

    @pytest.fixture
    def task(self) -> Any:
        fake = FakeAggregator()
        anyio.run(fake.start_run, spec(SCAFFOLD), BASE)
        held = next(iter(fake.runs.values())).task_for("a")
        assert held is not None
        return held[0]

    def at(self, task: Any, round_number: int, counted: str | None) -> Any:
        return task.model_copy(update={"round": round_number, "counted_update": counted})

    def test_what_was_not_counted_is_not_taken(self, tmp_path: Path, task: Any) -> None:
        store = ControlStore(tmp_path, self.RUN)
        assert store.load(self.at(task, 1, None)) is None
        store.keep(self.at(task, 1, None), self.FIRST, {"w": np.ones(2, "f4")})
        assert store.load(self.at(task, 2, None)) is None
        store.keep(self.at(task, 2, None), self.SECOND, {"w": np.full(2, 2, "f4")})
        found = store.load(self.at(task, 3, self.SECOND))
        assert found is not None
        assert found["w"].tolist() == [2, 2]
        assert [path.name for path in (tmp_path / self.RUN / "controls").iterdir()] == [f"2-1-{'2' * 64}.safetensors"]

    def test_what_waits_for_this_very_round_stays(self, tmp_path: Path, task: Any) -> None:
        store = ControlStore(tmp_path, self.RUN)
        store.keep(self.at(task, 1, None), self.FIRST, {"w": np.ones(2, "f4")})
        store.keep(self.at(task, 2, self.FIRST), self.SECOND, {"w": np.full(2, 2, "f4")})
        assert store.load(self.at(task, 2, self.FIRST)) is not None
        assert store.load(self.at(task, 3, self.SECOND)) is not None

    def test_a_counted_update_without_its_control_is_an_error_that_says_what_to_do(
        self, tmp_path: Path, task: Any
    ) -> None:
        with pytest.raises(UsageError, match="state_dir that was used then"):
            ControlStore(tmp_path, self.RUN).load(self.at(task, 2, self.FIRST))

    def test_a_file_of_something_else_is_refused(self, tmp_path: Path, task: Any) -> None:
        store = ControlStore(tmp_path, self.RUN)
        store.keep(self.at(task, 1, None), self.FIRST, {"w": np.ones(2, "f4")})
        (path,) = (tmp_path / self.RUN / "controls").iterdir()
        path.write_bytes(b"\x80\x04pickle")
        with pytest.raises(UsageError, match="not the safetensors file"):
            store.load(self.at(task, 2, self.FIRST))

    @pytest.mark.parametrize("run_id", ["..", "run_x", "../" + "0" * 32, ""])
    def test_a_run_id_is_no_path(self, tmp_path: Path, run_id: str) -> None:
        with pytest.raises(UsageError, match="not a run's id"):
            ControlStore(tmp_path, run_id)


async def test_a_folder_of_another_model_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    fake = FakeAggregator()
    run = await fake.start_run(spec(SCAFFOLD, rounds=2, quorum=1), BASE)

    def spoil(event: object) -> None:
        if type(event).__name__ == "UpdateAccepted":
            (path,) = (tmp_path / run.run_id / "controls").iterdir()
            kept = {name: tensor for name, tensor in decode(path.read_bytes()).items() if name != "d"}
            path.write_bytes(b"".join(encode(kept, {})))

    async with fake.enrolled("a") as client:
        with pytest.raises(UsageError, match=r"'d' is missing.*folder of its own"):
            await participate(client, run.run_id, scaffold_trainer(0), state_dir=tmp_path, on_event=spoil)
